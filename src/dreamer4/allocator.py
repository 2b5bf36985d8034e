"""How the process handles memory that it frees."""

import ctypes
import os


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed() -> bool:
    """Tells the C library to keep large blocks that are freed, for the next training step asks for them again.

    By default glibc hands them back to the system, which then maps and clears every page anew at each step: a quarter
    of the time of a small model's step on the CPU. Threads that start later share one arena, since one of their own
    has no room for 64 MB, and what has no room is mapped in any case; so call this before the first thread starts.
    The commands do so; a program of your own may, before it trains. Returns whether the C library could be told;
    others have no such switch.
    """
    if os.name == "nt":  # which has no library of the process as a whole
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1}
    return mallopt is not None and all(mallopt(option, value) for option, value in wanted.items())
