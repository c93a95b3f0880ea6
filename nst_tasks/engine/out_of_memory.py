"""On out-of-memory, retry the batch in halves; a single pair that does not fit fails."""

from __future__ import annotations

import tensorflow as tf

from nst_tasks.core.memory import fitting_size, peak_bytes
from nst_tasks.engine.devices import Device
from nst_tasks.engine.optimization import TransferResult, optimize
from nst_tasks.engine.preprocessing import LoadedJob
from nst_tasks.errors import MemoryTooSmall, PairError
from nst_tasks.inputs.run import Run
from nst_tasks.progress import Progress

_OUT_OF_MEMORY_PHRASES = ("out of memory", "alloc_failed", "failed to allocate", "dst tensor is not initialized")
"""Substrings of the other TensorFlow errors by which a GPU reports that it ran out of memory, in lower case."""


def optimize_with_halving(
    loaded_jobs: list[LoadedJob], run: Run, device: Device, progress: Progress
) -> list[TransferResult | PairError]:
    """Optimize a batch, in halves if the device's memory is too small for it, each part from its last checkpoint.

    Raises:
        Interrupted: The run was stopped.
        StorageUnavailable: A checkpoint could not be read temporarily.
    """
    try:
        return optimize(loaded_jobs, run, device, progress)
    except (tf.errors.OpError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # outside the handler, whose traceback would keep the allocated tensors alive
    device.clear_caches()
    if len(loaded_jobs) == 1:
        return [_make_memory_error(loaded_jobs[0], run, device)]
    half = len(loaded_jobs) // 2
    progress.warn(
        f"{device.name}: out of memory for {len(loaded_jobs)} pairs at once; halved. A lower NST_BATCH avoids the attempt"
    )
    return [
        *optimize_with_halving(loaded_jobs[:half], run, device, progress),
        *optimize_with_halving(loaded_jobs[half:], run, device, progress),
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the machine ran out of memory."""
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return True
    return isinstance(error, tf.errors.OpError) and any(sign in str(error).lower() for sign in _OUT_OF_MEMORY_PHRASES)


def _make_memory_error(loaded: LoadedJob, run: Run, device: Device) -> MemoryTooSmall:
    job = loaded.job
    # at most half of the estimate for the size that failed: whatever the settings say, that size is too large
    method_and_size = job.recipe.method, job.height, job.width
    estimated_bytes = peak_bytes(*method_and_size, on_gpu=device.is_gpu)
    available_bytes = min(run.settings.device_memory_gib * 2**30, estimated_bytes / 2)
    side = fitting_size(*method_and_size, available_bytes, on_gpu=device.is_gpu)
    return MemoryTooSmall(
        f"out of memory on {device.name.strip('/')} at {job.width} x {job.height}; about {side} px on the longest side would "
        "fit: set size, or take a device with more memory (NST_DEVICE_MEMORY_GIB tells how much one has)"
    )
