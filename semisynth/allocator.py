"""How the C library deals with memory that a step frees."""

from __future__ import annotations

import ctypes
import platform

GIB = 2**30
# glibc's malloc.h: mallopt's names of the thresholds above which free gives back, and malloc maps anew.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


def keep() -> bool:
    """Let this process keep up to a GiB that it frees, instead of giving it back; False where there is no glibc.

    Each step asks again for what the step before freed. That the kernel maps and clears those pages anew took about
    half of the time of a step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(MMAP_THRESHOLD, GIB)) and bool(libc.mallopt(TRIM_THRESHOLD, GIB))
