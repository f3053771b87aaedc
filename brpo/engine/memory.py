"""The C library's allocator on a CPU: keep what was freed for the next update, instead of giving it back to the system."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
KEPT = 512 * 2**20  # bytes at the end of the heap that stay with the process
ON_THE_HEAP = 32 * 2**20  # bytes: larger blocks come from the system one by one; glibc allows no more than this


def keep_freed() -> bool:
    """Let glibc keep the memory of freed tensors; says whether it does. Elsewhere nothing happens.

    By default it gives memory back where some of a tensor's size are free, and the system hands out zeroed pages anew, one
    fault each: an elementwise operation on 2560x256 numbers then takes several times as long (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, ON_THE_HEAP)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
