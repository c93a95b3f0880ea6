"""Memory that was freed is kept for what is computed next."""

from __future__ import annotations

import ctypes
import os
import sys

LARGEST = 40 * 2**20
"""Bytes of the largest tensor whose memory is kept: features have fewer (core/bands.py), a picture of 2048 x 2048 has more."""

TOGETHER = 2**30
"""Bytes that are kept at most, where they lie together at the end."""

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Parameters of `mallopt`, as <malloc.h> numbers them."""


def keep_freed() -> None:
    """Tell the C library to keep large memory that is freed, unless the environment tells it anything: before threads begin.

    By itself it asks the system for each tensor of some 128 KiB to 32 MiB or more, and gives it back: every page of it is made
    blank and mapped anew, a quarter of a million times in a step of 512 px, a sixth of its time. All threads share one heap,
    since what one of them has freed is otherwise no other's. Does nothing where the C library is not glibc (`man mallopt`).
    """
    told = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if told or set_option is None:
        return
    for option, value in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, TOGETHER), (ARENA_MAX, 1)):
        set_option(option, value)
