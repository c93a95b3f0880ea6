"""Devices of this process, leased one batch at a time, each with what was already computed on it.

Threads and leases, not processes: a process pool breaks whole when one worker dies. A device keeps its backbone's weights and
the statistics of pictures, so that a style or a content at one size is measured once and not once per pair.
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

from nst_tasks.core.backbones import Backbone
from nst_tasks.errors import Interrupted
from nst_tasks.kept import Kept
from nst_tasks.progress import Watch

STATISTICS_BYTES = 2**30
"""For style statistics on a device; those of one style at one size are about 5 MB of VGG16."""

CONTENTS_BYTES = 2**28
"""For what is kept of contents on a device, likewise: about 10 MB at 256 pixels, which a grid's rows share with their
neighbours."""

PAIRS_ON_GPU = 8
"""The most pairs in a batch on a GPU where nobody says otherwise."""


@dataclass
class Device:
    """A device of this process, by its TensorFlow name such as `/GPU:0`; used only by the thread that leases it."""

    name: str
    backbones: dict[str, Backbone] = field(default_factory=dict)
    statistics: Kept = field(default_factory=lambda: Kept(STATISTICS_BYTES))
    contents: Kept = field(default_factory=lambda: Kept(CONTENTS_BYTES))

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return "GPU" in self.name

    def backbone(self, sha256: str, make: Callable[[], Backbone]) -> Backbone:
        """The backbone with weights of this SHA-256, made at first use."""
        if sha256 not in self.backbones:
            self.backbones[sha256] = make()
        return self.backbones[sha256]

    def forget(self) -> None:
        """Give up what can be measured again: when memory is short, up to 1.25 GiB of it."""
        self.statistics.clear()
        self.contents.clear()


def names() -> list[str]:
    """The devices that batches run on: all GPUs, or else the CPU, or each of several that it was divided into."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [f"/{kind}:{k}" for k in range(len(tf.config.list_logical_devices(kind)))]


def are_gpus() -> bool:
    """Whether the devices that batches run on are GPUs."""
    return "GPU" in names()[0]


def most_pairs(asked: int, on_gpus: bool) -> int:
    """The most pairs in a batch: on GPUs as asked, or else 8; on a CPU 1, whatever is asked.

    A CPU's product over one pair's positions adds them up in another order than that over several pairs', so that its last bits
    would depend on the neighbours; and a batch gains it little.
    """
    return (asked or PAIRS_ON_GPU) if on_gpus else 1


@contextlib.contextmanager
def lease(watch: Watch) -> Iterator[Device]:
    """A device for the caller alone, as soon as one is free.

    Raises:
        Interrupted: the run is asked to stop while waiting.
    """
    with _POOLING:  # of threads that come first at once, the cache alone would let each make a pool
        pool = _pool()
    while True:
        if watch.stop.is_set():
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


_POOLING = threading.Lock()


@functools.cache
def _pool() -> queue.SimpleQueue[Device]:
    # the same pixels from the same inputs, on a GPU too; must be said before the first operation
    tf.config.experimental.enable_op_determinism()
    # then a GPU's scatters go through the host, buffer and all, for the order of their sums; ours never write to a place twice,
    # so that they need none (on an H200 they stayed on the device so)
    os.environ.setdefault("TF_DISABLE_SCATTER_OP_DETERMINISM", "1")
    # each recipe's graphs are traced once; after a few recipes TensorFlow takes that for one function traced over and over
    tf.get_logger().setLevel(logging.ERROR)
    pool: queue.SimpleQueue[Device] = queue.SimpleQueue()
    for name in names():
        pool.put(Device(name))
    return pool
