"""Records play in Luanti as segments of VPT: python record.py OUT --minutes 60."""

import argparse
import itertools
import json
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from game import HEIGHT, WIDTH, Game, Input
from players import STYLES, Player


RATE = 20


class Segment:
    """A film and its rows, which have their names only when they are whole."""

    def __init__(self, rows: Path):
        self.rows, self._name = 0, rows
        self._rows = rows.with_suffix(".part").open("w")
        self._film = av.open(str(rows.with_suffix(".mp4.part")), "w", format="mp4")
        self._stream = self._film.add_stream("libx264", RATE, options={"preset": "veryfast", "crf": "23"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        self._stream.thread_count = 1
        self._stream.time_base = Fraction(1, RATE)

    def add(self, frame: np.ndarray, row: dict | None) -> None:
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        for packet in self._stream.encode(picture):
            self._film.mux(packet)
        if row is not None:
            self._rows.write(json.dumps(row, separators=(",", ":")) + "\n")
            self.rows += 1

    def close(self, frame: np.ndarray) -> None:
        """Ends the film with the frame that shows what the last row did."""
        self.add(frame, None)
        for packet in self._stream.encode(None):
            self._film.mux(packet)
        self._film.close()
        self._rows.close()
        self._name.with_suffix(".mp4.part").rename(self._name.with_suffix(".mp4"))
        self._name.with_suffix(".part").rename(self._name)


def row(game: Game, given: Input, before: Input, tick: int, start: int) -> dict:
    """Returns what VPT's recorder would write of a frame and of what is done at it."""
    x, y = (2 * n for n in game.cursor)  # of a window twice as large
    east, up, north = game.pos
    names = [f"key.keyboard.{key}" for key in sorted(given.keys)]
    return {
        "mouse": {
            **{"x": float(x), "y": float(y), "dx": float(given.dx), "dy": float(given.dy)},
            **{"scaledX": (x - 640) / 2, "scaledY": (y - 360) / 2, "dwheel": 0.0},
            **{"buttons": sorted(given.buttons), "newButtons": sorted(given.buttons - before.buttons)},
        },
        "keyboard": {
            **{"keys": names, "newKeys": [f"key.keyboard.{key}" for key in sorted(given.keys - before.keys)]},
            "chars": "",
        },
        **{"isGuiOpen": game.window is not None, "isGuiInventory": game.window == "inventory", "hotbar": game.slot},
        # Minecraft counts yaw to the right, and its axes are right-handed.
        **{"yaw": -game.yaw, "pitch": game.pitch, "xpos": -east, "ypos": up, "zpos": north},
        **{"tick": tick, "milli": start + tick * 1000 // RATE},
        "inventory": [{"type": name, "quantity": amount} for _, (name, amount) in sorted(game.things.items())],
        # Counters that are there from the first row on, so that the first event is none that they began with.
        "stats": {"minecraft.custom:minecraft.leave_game": 1} | game.stats,
    }


def record(out: Path, style: str, seed: int, minutes: float, display: int, segment_minutes: float) -> None:
    """Records one session in a new world."""
    game, random = Game(seed, display), np.random.default_rng(seed)
    player = Player(game, random)
    play = itertools.chain(STYLES[style](player), STYLES["wanderer"](player))
    start, session = int(time.time()), random.bytes(6).hex()
    segment, before = None, Input()
    try:
        for tick in range(round(minutes * 60 * RATE)):
            if segment is None:
                when = time.strftime("%Y%m%d-%H%M%S", time.gmtime(start + tick // RATE))
                segment = Segment(out / f"{style}-{session}-{when}.jsonl")
            given = next(play)
            segment.add(game.frame, row(game, given, before, tick, start * 1000))
            game.step(given)
            before = given
            if segment.rows == round(segment_minutes * 60 * RATE):
                segment.close(game.frame)
                segment = None
    finally:
        if segment is not None and segment.rows:
            segment.close(game.frame)
        print(f"{style} {session}: seed {seed}, {json.dumps(game.stats)}", flush=True)
        game.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the segments")
    parser.add_argument("--minutes", type=float, default=60, help="of play in all")
    parser.add_argument("--session", type=float, default=10, help="minutes in one world")
    parser.add_argument("--segment", type=float, default=5, help="minutes in one film")
    parser.add_argument("--styles", nargs="+", default=list(STYLES), choices=STYLES, help="of play, in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    parser.add_argument("--display", type=int, default=90, help="number of the screen; one for each recorder")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for number in range(max(1, round(given.minutes / given.session))):
        style = given.styles[number % len(given.styles)]
        record(given.out, style, given.seed + number, given.session, given.display, given.segment)


if __name__ == "__main__":
    main()
