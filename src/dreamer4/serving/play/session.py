"""One person's session: a start, then actions that drive the real game and the dream in lockstep.

In the mode `game` the agent watches the real frames. In the modes `dream` and `both` it dreams, and the real game is
carried along under the same actions, shown or not, so that the two can be compared at any moment. Leaving `game` for
another mode falls asleep: the dream goes on from what was seen last. Coming back wakes up.

A session knows nothing of sockets. Whatever it refuses is an `InputError` with a sentence for the person.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PyTree, UInt8

from dreamer4.data import Episode
from dreamer4.envs import broken
from dreamer4.errors import InputError
from dreamer4.media import differing
from dreamer4.serving.play import worlds
from dreamer4.serving.play.moment import Actor, Mode, Moment, Row, Side, finite, to_episode
from dreamer4.serving.play.recording import Picture
from dreamer4.serving.play.stage import Stage
from dreamer4.serving.play.worlds import Clock, Mind, Reading
from dreamer4.types import Action


_MOST_ROWS = 4096
_MOST_BYTES = 64 * 1024 * 1024


class Session:
    """One person's play. Its state is its own; what it shares with others, the stage, never changes."""

    def __init__(self, stage: Stage, *, mode: Mode = "dream"):
        """Opens a session in some mode; `start` must come first."""
        self._stage = stage
        self._mode: Mode = mode
        self._seed, self._time, self._task = 0, 0, 0
        frame_bytes = math.prod(stage.spec.frame_shape)
        self._context = stage.dreamer.dynamics.context_length or max(e.length for e in stage.episodes)
        most = max(self._context + 1, min(_MOST_ROWS, _MOST_BYTES // frame_bytes))
        self._rows: deque[Row] = deque(maxlen=most)
        self._mind: Mind | None = None
        self._game: PyTree | None = None
        self._real, self._dream = Side(), Side()
        self._reading: Reading | None = None
        self._warnings: dict[str, float | None] | None = None
        self._difference: Bool[np.ndarray, "H W"] | None = None
        self._first_difference: int | None = None
        self._by, self._note = "", ""
        self._filming = False
        pixels = math.prod(stage.spec.frame_shape[:2])
        self._film: deque[Picture] = deque(maxlen=max(1, min(_MOST_ROWS, _MOST_BYTES // (7 * pixels))))

    @property
    def stage(self) -> Stage:
        """What is played."""
        return self._stage

    @property
    def seed(self) -> int:
        """The seed of the newest start."""
        return self._seed

    def start(self, mode: Mode, *, episode: int | None, passed: int = 1, seed: int = 0) -> Moment:
        """Starts anew.

        Args:
            mode: what to show.
            episode: which recorded episode; None: a new one of the real game.
            passed: frames of the recorded episode that have passed, at least 1 and not all.
            seed: of everything that is left to chance.

        Raises:
            InputError: if there is no such start.
        """
        stage, clock = self._stage, Clock.at(seed, 0)
        rows = self._recorded(episode, passed) if episode is not None else None
        self._seed, self._time, self._by, self._note = seed, 0, "", ""
        self._task = stage.task if episode is None else stage.episodes[episode].task
        self._rows.clear()
        self._real, self._dream, self._game = Side(), Side(), None
        if rows is None:
            if stage.env is None:
                raise InputError(f"{stage.absent} Choose a recorded episode to start from.")
            self._game, played = worlds.open_game(stage.env, clock)
            played = jax.device_get(played)
            if not played.sound:
                raise broken(stage.env)
            rows = [self._row(self._nothing(), known=False, real=played.step.frame)]
        else:
            self._game = stage.find_game(stage.episodes[episode or 0], passed)
        self._rows.extend(rows)
        assert rows[-1].real is not None
        self._real.image = np.asarray(worlds.in_colours(rows[-1].real))
        self._mode = self._possible(mode)
        self._look_back()
        return self._show()

    def step(
        self, by: Actor, *, discrete: list[int], continuous: list[float], num_steps: int, twice: bool = False
    ) -> Moment:
        """Advances by one frame, unless the episode is over.

        Args:
            by: who acts.
            discrete: class of each component, if the person acts.
            continuous: continuous part in [-1, 1], if the person acts.
            num_steps: K, denoise passes of the dreamt frame.
            twice: whether to draw it twice, so that the two can be compared.

        Raises:
            InputError: if nothing was started, or the action, the actor or the number of passes does not exist.
        """
        mind, stage = self._started(), self._stage
        if num_steps not in stage.passes:
            raise InputError(f"num_steps: got {num_steps}, expected one of {stage.passes}.")
        if by != "player" and by not in stage.policies:
            raise InputError(f"by: got {by}, expected player or one of {stage.policies}.")
        clock = Clock.at(self._seed, self._time + 1)
        if by == "player":
            action = self._checked(discrete, continuous)
        else:
            action = worlds.choose(stage.dreamer, mind, by, clock)
        self._note = ""
        if self._over():
            return self._show()
        self._time, self._by = self._time + 1, by

        played = dreamt = reading = None
        if self._game is not None and not self._real.end:
            assert stage.env is not None
            self._game, played = worlds.play_game(stage.env, self._game, action, clock)
        if self._mode == "game":
            assert played is not None
            mind, reading = worlds.observe(stage.dreamer, mind, played.step.frame, action, clock)
        elif not self._dream.end:
            passes = np.asarray(num_steps.bit_length() - 1, np.int32)
            mind, dreamt = worlds.imagine(stage.dreamer, mind, action, passes, np.asarray(twice), clock)
        self._mind = mind
        # One wait for all of it, so that the two worlds are computed side by side.
        action, played, dreamt, reading = jax.device_get((action, played, dreamt, reading))
        if played is not None and not played.sound:
            assert stage.env is not None
            raise broken(stage.env)
        self._take_in(action, played, dreamt, reading)
        return self._show()

    def look(self, mode: Mode) -> Moment:
        """Shows another mode; between game and dream the agent falls asleep or wakes up."""
        self._started()
        self._note = ""
        mode = self._possible(mode)
        sleeps, slept = mode != "game", self._mode != "game"
        self._mode = mode
        if sleeps != slept:
            self._look_back()
        return self._show()

    def record(self, on: bool) -> Moment:
        """Begins to record what is shown, from this moment on, or ends it; what was recorded waits to be fetched."""
        self._started()
        self._note = ""
        self._filming = on
        if on:
            self._film.clear()
        return self._show()

    def film(self) -> list[Picture]:
        """Returns what was recorded last.

        Raises:
            InputError: if nothing was.
        """
        if not self._film:
            raise InputError("Nothing was recorded yet. Start a recording first.")
        return list(self._film)

    def episodes(self) -> dict[str, Episode]:
        """Returns the session since its start as episodes: of the `game`, and of the `dream` if there was one."""
        self._started()
        rows, found = list(self._rows), {}
        real = [row for row in rows if row.real is not None]
        if real and self._game is not None:
            found["game"] = to_episode(real, lambda r: (r.real, r.real_reward), self._real.terminal, self._task)
        if self._mode != "game":
            dreamt = [row for row in rows if row.dreamt is not None]
            found["dream"] = to_episode(dreamt, lambda r: (r.dreamt, r.dreamt_reward), self._dream.end, self._task)
        return found

    def _take_in(self, action: Action, played, dreamt, reading) -> None:
        """Keeps what a step brought."""
        self._difference = None
        real = None
        if played is not None:
            real = played.step.frame
            self._real.image, self._real.reward = played.image, float(played.step.reward)
            self._real.total += self._real.reward
            self._real.end, self._real.terminal = bool(played.step.is_last), bool(played.step.is_terminal)
        else:
            self._real.reward = 0.0
        if dreamt is not None:
            self._reading = dreamt.reading
            self._warnings = {name: finite(getattr(dreamt, name)) for name in ("movement", "residual", "disagreement")}
            self._dream.image = dreamt.image
            self._expect(dreamt.reading)
            if real is not None:
                different = differing(real, dreamt.frame)
                if different.any():
                    self._difference = different
                    if self._first_difference is None:
                        self._first_difference = self._time
        elif reading is not None:
            self._reading, self._warnings = reading, None
        else:
            self._dream.reward = 0.0
        shown = dreamt.frame if dreamt is not None else real if self._mode == "game" else None
        expected = float(self._reading.reward) if self._reading is not None and shown is not None else 0.0
        self._rows.append(
            Row(
                np.asarray(action.discrete, np.int32),
                np.asarray(action.continuous, np.float32),
                True,
                real,
                shown,
                self._real.reward,
                expected if math.isfinite(expected) else 0.0,
            )
        )

    def _expect(self, reading: Reading) -> None:
        if "reward" in self._stage.heads:
            self._dream.reward = float(reading.reward)
            self._dream.total += self._dream.reward
            self._dream.end = self._dream.terminal = float(reading.continuation) < 0.5

    def _look_back(self) -> None:
        """Sees the newest real frames again, and so falls asleep or wakes up there."""
        # A new dream follows what really happened, not the dream before it.
        past = [
            replace(row, dreamt=row.real, dreamt_reward=row.real_reward) for row in self._rows if row.real is not None
        ]
        self._rows.clear()
        self._rows.extend(past)
        rows = past[-self._context :]
        index = np.minimum(np.arange(self._context), len(rows) - 1)
        frames = np.stack([rows[i].real for i in index])
        action = Action(
            jnp.asarray(np.stack([rows[i].discrete for i in index])),
            jnp.asarray(np.stack([rows[i].continuous for i in index])),
        )
        mask = np.array([rows[i].known for i in index])
        self._mind, reading = worlds.remember(
            self._stage.dreamer,
            frames,
            action,
            mask,
            np.asarray(len(rows), np.int32),
            np.asarray(self._task, np.int32),
            Clock.at(self._seed, self._time),
        )
        self._reading = jax.device_get(reading)
        self._warnings = self._difference = self._first_difference = None
        self._dream = Side(image=self._real.image, end=self._real.terminal)

    def _possible(self, mode: Mode) -> Mode:
        if mode == "dream" or self._game is not None:
            return mode
        why = self._stage.absent or (
            "The real game could not be brought to this recorded frame, so there is only the dream. "
            "Choose another start to see both."
        )
        self._note = why
        return "dream"

    def _over(self) -> bool:
        return self._dream.end if self._mode == "dream" else self._real.end

    def _started(self) -> Mind:
        if self._mind is None:
            raise InputError("Nothing was started yet.")
        return self._mind

    def _checked(self, discrete: list[int], continuous: list[float]) -> Action:
        spec = self._stage.spec.action
        if len(discrete) != len(spec.num_classes) or len(continuous) != spec.continuous_dim:
            raise InputError(
                f"action: got {len(discrete)} classes and {len(continuous)} numbers, expected "
                f"{len(spec.num_classes)} and {spec.continuous_dim}."
            )
        if not all(0 <= c < n for c, n in zip(discrete, spec.num_classes, strict=True)):
            raise InputError(f"action: got classes {discrete}, expected below {spec.num_classes}.")
        if not all(-1 <= x <= 1 for x in continuous):
            raise InputError(f"action: got {continuous}, expected numbers in [-1, 1].")
        return Action(jnp.asarray(discrete, jnp.int32), jnp.asarray(continuous, jnp.float32))

    def _recorded(self, index: int, passed: int) -> list[Row]:
        stage = self._stage
        if not 0 <= index < len(stage.episodes):
            raise InputError(f"episode: got {index}, expected 0 to {len(stage.episodes) - 1}.")
        episode = stage.episodes[index]
        if not 1 <= passed < episode.length:
            raise InputError(f"passed: got {passed}, expected 1 to {episode.length - 1} frames of this episode.")
        begin = max(0, passed - (self._rows.maxlen or passed))
        return [
            Row(
                episode.discrete[t],
                episode.continuous[t],
                bool(episode.action_mask[t]),
                episode.frame[t],
                episode.frame[t],
                float(episode.reward[t]) if t else 0.0,
                float(episode.reward[t]) if t else 0.0,
            )
            for t in range(begin, passed)
        ]

    def _nothing(self) -> Action:
        return jax.device_get(Action.null(self._stage.spec.action))

    def _row(self, action: Action, *, known: bool, real: UInt8[np.ndarray, "H W C"]) -> Row:
        return Row(np.asarray(action.discrete), np.asarray(action.continuous), known, real, real, 0.0, 0.0)

    def _show(self) -> Moment:
        images = {}
        if self._mode != "dream" and self._real.image is not None:
            images["game"] = self._real.image
        if self._mode != "game" and self._dream.image is not None:
            images["dream"] = self._dream.image
        if self._mode == "both" and self._difference is not None:
            images["difference"] = np.where(self._difference, np.uint8(255), np.uint8(0))[..., None]
        if self._filming:
            self._film.append(Picture(images, self._difference is not None))
        last = self._rows[-1]
        action = {"discrete": last.discrete.tolist(), "continuous": [finite(x) for x in last.continuous]}
        return Moment(
            time=self._time,
            mode=self._mode,
            by=self._by,
            action=action if self._time else None,
            images=images,
            over=self._over(),
            game=self._real.told() if self._game is not None else None,
            dream=self._dream.told() if self._mode != "game" else None,
            reading=self._told_reading(),
            warnings=self._warnings,
            differs=self._difference is not None,
            first_difference=self._first_difference,
            note=self._note,
            recorded=len(self._film) if self._filming else None,
        )

    def _told_reading(self) -> dict[str, Any] | None:
        heads, reading = self._stage.heads, self._reading
        if reading is None or not heads:
            return None
        told: dict[str, Any] = {
            name: finite(getattr(reading, name)) for name in ("reward", "continuation", "value") if name in heads
        }
        told["policy"] = [[finite(p) for p in part] for part in reading.policy]
        told["centre"] = [finite(x) for x in reading.centre]
        return told


def warm_up(stage: Stage, stop: Callable[[], bool]) -> None:
    """Runs every program of a session once, so that players wait for a compiler once, or not at all.

    Args:
        stage: what is played.
        stop: asked between two programs whether to leave it.
    """
    session = Session(stage)
    new = None if stage.env is not None else 0
    nothing = {
        "discrete": list(stage.controls.idle),
        "continuous": [0.0] * len(stage.controls.continuous),
        "num_steps": stage.own_passes,
    }
    # What a page asks for first comes first.
    programs = [partial(session.start, "dream", episode=new), partial(session.step, "player", **nothing)]
    programs += [partial(session.step, policy, **nothing) for policy in stage.policies]
    programs += [partial(session.start, "dream", episode=0)] if stage.episodes else []
    if stage.env is not None:
        programs += [partial(session.start, "game", episode=None), partial(session.step, "player", **nothing)]
    for program in programs:
        if stop():
            return
        program()
