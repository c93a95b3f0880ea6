"""On out-of-memory, retry the batch in halves; a single pair that does not fit fails."""

from __future__ import annotations

import tensorflow as tf

from nst_tasks import batching
from nst_tasks.devices import Device
from nst_tasks.errors import MemoryTooSmall, PairError
from nst_tasks.loading import Loaded
from nst_tasks.optimization import Result, optimize
from nst_tasks.progress import Watch
from nst_tasks.settings import Run

_SIGNS = ("out of memory", "alloc_failed", "failed to allocate", "dst tensor is not initialized")
"""Substrings of the other TensorFlow errors by which a GPU reports that it ran out of memory, in lower case."""


def optimized(loaded: list[Loaded], run: Run, device: Device, observer: Watch) -> list[Result | PairError]:
    """Optimize a batch, in halves if the device's memory is too small for it, each part from its last checkpoint.

    Raises:
        Interrupted: The run was stopped.
        StorageUnavailable: A checkpoint could not be read temporarily.
    """
    try:
        return optimize(loaded, run, device, observer)
    except (tf.errors.OpError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # outside the handler, whose traceback would keep the allocated tensors alive
    device.forget()
    if len(loaded) == 1:
        return [_too_small(loaded[0], run, device)]
    half = len(loaded) // 2
    observer.warn(f"{device.name}: out of memory for {len(loaded)} pairs at once; halved. A lower NST_BATCH avoids the attempt")
    return [*optimized(loaded[:half], run, device, observer), *optimized(loaded[half:], run, device, observer)]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the machine ran out of memory."""
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return True
    return isinstance(error, tf.errors.OpError) and any(sign in str(error).lower() for sign in _SIGNS)


def _too_small(ready: Loaded, run: Run, device: Device) -> MemoryTooSmall:
    job = ready.job
    # at most half of the estimate for the size that failed: whatever the settings say, that size is too large
    what = job.recipe.method, job.height, job.width
    tried = batching.memory(*what, on_gpu=device.is_gpu)
    room = min(run.settings.device_memory_gib * 2**30, tried / 2)
    side = batching.fitting_size(*what, room, on_gpu=device.is_gpu)
    return MemoryTooSmall(
        f"out of memory on {device.name.strip('/')} at {job.width} x {job.height}; about {side} px on the longest side would "
        "fit: set size, or take a device with more memory (NST_DEVICE_MEMORY_GIB tells how much one has)"
    )
