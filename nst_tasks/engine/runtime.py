"""Set up a process: imports without garbage collection, TensorFlow without Keras, freed memory kept by the C library."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nst_tasks import __version__

MAX_REUSED_TENSOR_BYTES = 40 * 2**20
"""Size, in bytes, of the largest tensor whose freed memory is reused.

Features are smaller (core/bands.py), an image of 2048 x 2048 pixels is larger.
"""


MAX_FREE_HEAP_BYTES = 2**30
"""Maximum free bytes at the end of the heap that are not returned to the system."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameter numbers of `mallopt` in <malloc.h>."""


def reuse_freed_memory() -> None:
    """Set glibc's allocator to reuse large freed memory; to be called before threads start.

    By default glibc maps each tensor of some 128 KiB to 32 MiB or more from the system and unmaps it again: pages are zeroed
    and mapped a quarter of a million times in a step at 512 px, a sixth of its time. All threads share one heap (arena), since
    memory freed in one arena is not reused in another. Do nothing if the environment configures the allocator
    (`GLIBC_TUNABLES`, `MALLOC_*`) or the C library is not glibc (`man mallopt`).
    """
    is_configured = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if is_configured or set_option is None:
        return
    for option, value in (
        (M_MMAP_THRESHOLD, MAX_REUSED_TENSOR_BYTES),
        (M_TRIM_THRESHOLD, MAX_FREE_HEAP_BYTES),
        (M_ARENA_MAX, 1),
    ):
        set_option(option, value)


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Exclude objects created in this block, mostly by imports, from garbage collection.

    Each full collection would otherwise traverse half a million objects; those during the imports take a quarter of their time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def import_tensorflow() -> str:
    """Import TensorFlow with standard error closed, and return nst's version, which a cluster asks of its workers.

    TensorFlow prints its build to standard error before its log level takes effect. The import of Keras for `tf.keras` is
    blocked meanwhile, as it costs a second and 100 MB per process and nst does not use it; it can be imported afterwards.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    reuse_freed_memory()
    sys.stderr.flush()
    saved_stderr = os.dup(2)
    blocks_keras = "keras" not in sys.modules
    if blocks_keras:
        sys.modules["keras"] = None  # type: ignore[assignment]  # None makes its import fail
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        with gc_frozen():
            import tensorflow as tf

        tf.config.list_physical_devices()  # searches for GPUs, and prints if there are none
    finally:
        if blocks_keras:
            del sys.modules["keras"]
        os.dup2(saved_stderr, 2)
        os.close(saved_stderr)
    return __version__
