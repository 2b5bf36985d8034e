"""The one exception for input that a user can mend.

Everything a user hands us (a configuration, a path, a data set, an action) is checked where it enters. What fails the
check raises `InputError`; the command line prints its message and leaves with exit code 2, without a traceback. Any
other exception is a defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, told in one message: what is wrong, the value received, the rule, and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a sentence that names the entries of `known` closest to a mistyped `name`."""
    known = sorted(set(known))
    lowered = {k.lower(): k for k in known}
    close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    if close:
        return "Did you mean " + " or ".join(close) + "?"
    return "Known: " + ", ".join(known) + "."
