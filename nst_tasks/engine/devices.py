"""Devices of this process, each used by one batch at a time, with their caches.

Threads share a pool of devices in one process: a process pool breaks as a whole when one worker dies. A device caches its
backbone's weights and image statistics, so that a style or a content at one size is measured once and not once per pair.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import tensorflow as tf

from nst_tasks.cache import ByteLRU
from nst_tasks.core.vgg import Backbone
from nst_tasks.errors import Interrupted
from nst_tasks.progress import Progress

STYLE_CACHE_BYTES = 2**30
"""Size of a device's cache of style statistics; one style at one size takes about 5 MB with VGG16."""

CONTENT_CACHE_BYTES = 2**28
"""Size of a device's cache of content statistics; one content takes about 10 MB at 256 pixels, shared by neighboring rows of a
grid."""

DEFAULT_GPU_BATCH_SIZE = 8
"""Default maximum number of pairs in a batch on a GPU."""


@dataclass
class Device:
    """A device of this process, by its TensorFlow name such as `/GPU:0`; used only by the thread that has acquired it."""

    name: str
    backbones: dict[str, Backbone] = field(default_factory=dict)
    style_cache: ByteLRU = field(default_factory=lambda: ByteLRU(STYLE_CACHE_BYTES))
    content_cache: ByteLRU = field(default_factory=lambda: ByteLRU(CONTENT_CACHE_BYTES))

    @property
    def is_gpu(self) -> bool:
        """Return whether the device is a GPU."""
        return "GPU" in self.name

    def get_backbone(self, sha256: str, make: Callable[[], Backbone]) -> Backbone:
        """Return the backbone with weights of this SHA-256, built by `make` on first use."""
        if sha256 not in self.backbones:
            self.backbones[sha256] = make()
        return self.backbones[sha256]

    def clear_caches(self) -> None:
        """Clear the caches of statistics, up to 1.25 GiB, when memory is short."""
        self.style_cache.clear()
        self.content_cache.clear()


def list_names() -> list[str]:
    """Return the names of the devices that run batches: all GPUs, or else the CPU, or all logical CPUs it is divided into."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [f"/{kind}:{k}" for k in range(len(tf.config.list_logical_devices(kind)))]


def has_gpus() -> bool:
    """Return whether the devices that run batches are GPUs."""
    return "GPU" in list_names()[0]


def limit_batch_size(requested: int, on_gpus: bool) -> int:
    """Return the maximum number of pairs in a batch: on GPUs `requested`, or 8 if that is 0; on a CPU always 1.

    On a CPU, a matrix product over one pair's positions is summed in another order than one over several pairs', so that the
    last bits of a pair would depend on its batch; and batching gains little there.
    """
    return (requested or DEFAULT_GPU_BATCH_SIZE) if on_gpus else 1


@contextlib.contextmanager
def acquire(progress: Progress) -> Iterator[Device]:
    """Acquire a device for the caller alone, as soon as one is free.

    Raises:
        Interrupted: The run was stopped while waiting.
    """
    with _POOL_LOCK:  # `functools.cache` alone would let simultaneous first callers make a pool each
        pool = _get_pool()
    while True:
        if progress.stop.is_set():
            raise Interrupted("interrupted while waiting for a device")
        try:
            device = pool.get(timeout=0.2)
            break
        except queue.Empty:
            continue
    try:
        with tf.device(device.name):
            yield device
    finally:
        pool.put(device)


_POOL_LOCK = threading.Lock()


@functools.cache
def _get_pool() -> queue.SimpleQueue[Device]:
    # same inputs, same pixels, on a GPU too; must be set before the first operation
    tf.config.experimental.enable_op_determinism()
    # a deterministic GPU scatter goes through the host, buffer and all, to fix the order of its sums; ours never write to a
    # place twice and need no order (measured on an H200: with this variable they stay on the device)
    os.environ.setdefault("TF_DISABLE_SCATTER_OP_DETERMINISM", "1")
    # no retracing warnings: each recipe's graphs are traced once, which looks like one function traced over and over
    tf.get_logger().setLevel(logging.ERROR)
    pool: queue.SimpleQueue[Device] = queue.SimpleQueue()
    for name in list_names():
        pool.put(Device(name))
    return pool
