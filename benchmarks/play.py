"""Play under measurement: frame rate and latency in a real browser, hostile messages, and memory over many visits.

    pip install -e '.[browser]'                     # and a Chromium of the system's
    python benchmarks/play.py                       # the agent that ships with the package
    python benchmarks/play.py runs/my-run --rate 30

The server runs in a process of its own, as `dreamer4 play` starts it. A key is pressed at random times while the page
plays side by side, game and dream and all heads; a key's latency ends when the browser has drawn the frame that it led
to. Linux only, for it reads the memory of the server in `/proc`.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from dreamer4.files import check_place, write_atomically
from dreamer4.run.facts import device, source_commit
from dreamer4.serving.play import protocol


RESULTS = Path(__file__).parent / "results" / "play.json"


@contextlib.contextmanager
def serving(agent: str) -> Iterator[tuple[int, str]]:
    """Runs `dreamer4 play` and yields its process id and the link that it prints."""
    command = [sys.executable, "-u", "-m", "dreamer4_cli", "play", agent, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        assert server.stdout is not None
        link = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
        yield server.pid, link
    finally:
        server.terminate()
        server.wait(20)


def in_a_browser(link: str, *, seconds: float, rate: int, seed: int) -> dict[str, Any]:
    """Plays by random keys in Chromium."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    keys, words = ["ArrowLeft", "ArrowRight"], random.Random(seed)  # noqa: S311
    with sync_playwright() as driver:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        noise: list[str] = []
        foreign: list[str] = []
        page.on("console", lambda m: noise.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(link.split("#")[0]) else foreign.append(r.url))
        page.goto(link)
        while not page.evaluate("moment !== null"):  # its policy forbids wait_for_function, which evaluates strings
            page.wait_for_timeout(50)
        # Without the rest between two episodes, which would count as lost frames.
        page.evaluate(f"() => {{ speed.value = {rate}; speedChanged(); }}")
        page.evaluate("() => { window.frames_ = []; const f = show; show = (...a) => { f(...a); frames_.push("
                      "performance.now()); if (moment.over) next(); }; }")  # fmt: skip
        page.keyboard.press("ArrowLeft")
        time.sleep(3)  # the first seconds of a page are its own
        page.evaluate("() => { frames_.length = 0; performance.clearMeasures(); }")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            page.keyboard.press(words.choice(keys), delay=words.uniform(20, 90))
            time.sleep(words.uniform(0.1, 0.5))
        frames = np.array(page.evaluate("frames_"))
        key_to_frame = page.evaluate("performance.getEntriesByName('key-to-frame').map(m => m.duration)")
        round_trip = page.evaluate("roundTrips")
        version = browser.version
        browser.close()
    gaps = np.diff(frames)
    by_second = [
        int(((frames >= t) & (frames < t + 1000)).sum()) for t in np.arange(frames[0], frames[-1] - 1000, 1000)
    ]
    return {
        "chromium": version,
        "seconds": round((frames[-1] - frames[0]) / 1000, 1),
        "asked_fps": rate,
        "fps": round(1000 * (len(frames) - 1) / (frames[-1] - frames[0]), 2),
        "fewest_frames_in_a_second": min(by_second),
        "gap_ms_p95": round(float(np.percentile(gaps, 95)), 1),
        "round_trip_ms": {"median": _percentile(round_trip, 50), "p95": _percentile(round_trip, 95)},
        "keys": len(key_to_frame),
        "key_to_frame_ms": {"median": _percentile(key_to_frame, 50), "p95": _percentile(key_to_frame, 95)},
        "console_errors": noise,
        "foreign_requests": foreign,
    }


def _percentile(values: list[float], q: int) -> float:
    return round(float(np.percentile(values, q)), 1)


def visit(link: str) -> ClientConnection:
    """Opens a session as the page does."""
    parts = urlsplit(link)
    token = parts.fragment.removeprefix("token=")
    origin, protocols = Origin(f"http://{parts.netloc}"), [Subprotocol("dreamer4"), Subprotocol(f"token.{token}")]
    return connect(f"ws://{parts.netloc}/session", origin=origin, subprotocols=protocols, proxy=None)


def fuzz(link: str, *, messages: int, seed: int) -> dict[str, Any]:
    """Sends what nobody should, and counts how the server closes."""
    words, codes, answered, sent = random.Random(seed), {}, 0, 0  # noqa: S311
    valid = [
        {"type": "start", "mode": "both", "seed": 1},
        {"type": "step", "by": "player", "discrete": [1], "continuous": [], "num_steps": 4},
        {"type": "look", "mode": "game"},
        {"type": "fetch", "what": "episode"},
    ]
    while sent < messages:
        with visit(link) as socket:
            socket.recv()
            try:
                for _ in range(words.randint(1, 5)):
                    socket.send(_strange(words, valid))
                    sent += 1
                    socket.recv(timeout=30)
                    answered += 1
            except ConnectionClosed as closed:
                code = str(closed.rcvd.code if closed.rcvd else "lost")
                codes[code] = codes.get(code, 0) + 1
    with visit(link) as socket:
        socket.recv()
        socket.send(json.dumps(valid[0]))
        alive = protocol.unpack(bytes(socket.recv()))[0]["type"] == "moment"  # type: ignore[arg-type]
    return {"messages": sent, "answered": answered, "closed_by_code": codes, "alive": alive}


def _strange(words: random.Random, valid: list[dict[str, Any]]) -> str | bytes:
    kind, message = words.randrange(6), dict(words.choice(valid))
    if kind == 0:
        return words.randbytes(words.choice([0, 1, 100, 60_000, 70_000]))
    if kind == 1:
        return words.randbytes(words.choice([0, 1, 100, 30_000])).decode("latin-1")
    if kind == 2:
        return "[" * words.randint(1, 60_000)
    if kind == 3:  # a good message with a bad value
        key = words.choice(list(message))
        message[key] = words.choice([None, -1, 2**40, 1e300, "x" * 1000, [], {}, [[0]], True])
        return json.dumps(message)
    if kind == 4:  # cut off or damaged
        text = json.dumps(message)
        at = words.randrange(len(text))
        return text[:at] + words.choice(["", "\x00", "\ud7ff", "}"]) + text[at + words.choice([0, 1, len(text)]) :]
    return json.dumps(message)


def memory(pid: int) -> float:
    """Returns the resident memory of a process, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def come_and_go(link: str, pid: int, *, visits: int) -> dict[str, Any]:
    """Opens sessions that play and leave, half of them without a word."""

    def once(i: int) -> None:
        with visit(link) as socket:
            socket.recv()
            socket.send(json.dumps({"type": "start", "mode": "both", "seed": i}))
            socket.recv()
            for _ in range(3):
                socket.send(json.dumps({"type": "step", "discrete": [1], "num_steps": 4}))
                socket.recv()
            if i % 2:
                socket.socket.close()

    for i in range(20):  # until what is made once has been made
        once(i)
    time.sleep(1)
    before = memory(pid)
    for i in range(visits):
        once(i)
    time.sleep(1)
    after = memory(pid)
    return {
        "visits": visits,
        "memory_before_mb": round(before, 1),
        "memory_after_mb": round(after, 1),
        "growth": round(after / before - 1, 4),
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", nargs="?", default="catch", help="a run, or the name of a shipped agent")
    parser.add_argument("--rate", type=int, default=20, help="frames per second")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--visits", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    check_place(options.out)
    with serving(options.agent) as (pid, link):
        quiet = os.getloadavg()[0]
        browser = in_a_browser(link, seconds=options.seconds, rate=options.rate, seed=options.seed)
        visits = come_and_go(link, pid, visits=options.visits)
        hostile = fuzz(link, messages=options.messages, seed=options.seed)
    result = {
        "command": f"python benchmarks/play.py {options.agent} --rate {options.rate}",
        "commit": source_commit(),
        "device": device(),
        "load_average_before": round(quiet, 2),
        "browser": browser,
        "fuzz": hostile,
        "come_and_go": visits,
    }
    print(json.dumps(result, indent=1))
    write_atomically(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
