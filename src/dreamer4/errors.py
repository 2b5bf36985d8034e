"""The exception for input that a user can mend, and the one for training that came to nothing.

Everything a user hands us (a configuration, a path, a data set, an action) is checked where it enters. What fails the
check raises `InputError`; the command line prints its message and leaves with exit code 2, without a traceback. Any
other exception is a defect of ours and keeps its traceback.
"""

import difflib
import operator
import os
import sys
import traceback
from collections.abc import Iterable


_MOST_KNOWN = 12  # names that a sentence lists


class InputError(ValueError):
    """Bad input, told in one message: what is wrong, the value received, the rule, and what to do."""


class DivergenceError(ArithmeticError):
    """Training steps were left out one after another, because their numbers were not finite or were spikes.

    Attributes:
        step: steps done, those left out included.
        skipped: how many were left out in a row, up to this step.
        advice: what to do, the end of the message.
    """

    def __init__(self, step: int, skipped: int, advice: str = ""):
        what = f"{skipped} training steps in a row were left out as faults, the last of them step {step}."
        super().__init__(f"{what} {advice}".strip())
        self.step = step
        self.skipped = skipped
        self.advice = advice

    def __reduce__(self):
        # To pass from one process to another. By default an exception is made again from its message alone.
        return type(self), (self.step, self.skipped, self.advice)


def told(error: BaseException) -> str:
    """Returns what an exception of other people's code says, in a line: its kind, its message, and where it arose."""
    ours = (sys.prefix, sys.base_prefix, os.path.dirname(__file__))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", *ours))]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + said[0] if said else ''}{where}"


def check_whole(where: str, least: int = 1, **values: object) -> None:
    """Refuses what is no whole number, such as 2.5, True or "3", and what is below `least`."""
    for name, value in values.items():
        try:
            whole = not isinstance(value, bool) and operator.index(value) >= least  # pyright: ignore[reportArgumentType]
        except TypeError:
            whole = False
        if not whole:
            raise InputError(f"{where}: got {name}={value!r}, expected a whole number of at least {least}.")


def nearest(name: str, known: Iterable[str], *, listed: bool = True) -> str:
    """Returns a sentence that names the entries of `known` closest to a mistyped `name`, else lists them if wanted."""
    known = sorted(set(known))
    lowered = {k.lower(): k for k in known}
    close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.65)]
    if close:
        return "Did you mean " + " or ".join(close) + "?"
    if not listed:
        return ""
    more = f" and {len(known) - _MOST_KNOWN} more" if len(known) > _MOST_KNOWN else ""
    return "Known: " + ", ".join(known[:_MOST_KNOWN]) + more + "."
