"""Make the C library reuse the memory of freed tensors instead of returning it to the system."""

from __future__ import annotations

import ctypes
import os
import sys

LARGEST = 40 * 2**20
"""Size, in bytes, of the largest tensor whose freed memory is reused.

Features are smaller (core/bands.py), an image of 2048 x 2048 pixels is larger.
"""

TOGETHER = 2**30
"""Maximum free bytes at the end of the heap that are not returned to the system."""

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Parameter numbers of `mallopt` in <malloc.h>."""


def keep_freed() -> None:
    """Set glibc's allocator to reuse large freed memory; to be called before threads start.

    By default glibc maps each tensor of some 128 KiB to 32 MiB or more from the system and unmaps it again: pages are zeroed
    and mapped a quarter of a million times in a step at 512 px, a sixth of its time. All threads share one heap (arena), since
    memory freed in one arena is not reused in another. Do nothing if the environment configures the allocator
    (`GLIBC_TUNABLES`, `MALLOC_*`) or the C library is not glibc (`man mallopt`).
    """
    told = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if told or set_option is None:
        return
    for option, value in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, TOGETHER), (ARENA_MAX, 1)):
        set_option(option, value)
