"""Memory on the CPU that is freed and asked for again in every step."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next tensors.

    glibc gives every block of 32 MiB or more back to the system when it is freed, and the system clears each of its
    pages anew when the next tensor touches it. A training step asks for the same sizes over and over. The most that is
    in use at a time stays what it was.

    Returns:
        Whether it is in force; not so with another C library than glibc, which is no error.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1
