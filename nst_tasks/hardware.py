"""What this machine computes fast; without TensorFlow where there is no GPU, so that a manifest is looked at without it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from nst_tasks import quiet
from nst_tasks.core.architecture import Turns

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""One of them is there where CUDA may find a GPU."""

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Of a CPU that multiplies bfloat16 faster than float32, as Linux names them."""

BLOCKING = "avx512f"
"""The flag of a CPU on which TensorFlow's gradient of a convolution is faster than the convolution; without it, slower."""

CAPABILITY = (8, 0)
"""CUDA's compute capability from which a GPU does."""


def auto_precision() -> Literal["float32", "mixed"]:
    """What the precision `auto` means on this machine: `mixed` where bfloat16 is fast on all that batches run on."""
    capabilities = _capabilities() if any(Path(driver).exists() for driver in GPU_DRIVERS) else []
    fast = are_fast_gpus(capabilities) if capabilities else is_fast_cpu(_cpuinfo())
    return "mixed" if fast else "float32"


def turns() -> Turns:
    """Which way convolutions are computed by their turned kernels on this machine's CPU; none where it does not tell of it."""
    return turns_on(_cpuinfo())


def turns_on(cpuinfo: str) -> Turns:
    """The same, by the text of /proc/cpuinfo: as measured on x86 with AVX-512, and with AVX2 alone."""
    flags = _flags(cpuinfo)
    return "forward" if BLOCKING in flags else "backward" if "avx2" in flags else "none"


def is_fast_cpu(cpuinfo: str) -> bool:
    """Whether a CPU is fast at bfloat16, by the text of /proc/cpuinfo."""
    return not CPU_FLAGS.isdisjoint(_flags(cpuinfo))


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.exists() else ""


def _flags(cpuinfo: str) -> set[str]:
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return set(flags[1].split()) if flags else set()


def are_fast_gpus(capabilities: Iterable[tuple[int, int]]) -> bool:
    """Whether GPUs of these compute capabilities are all fast at bfloat16; an unknown one is (0, 0)."""
    return all(capability >= CAPABILITY for capability in capabilities)


def _capabilities() -> list[tuple[int, int]]:
    quiet.import_tensorflow()
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [found.get("compute_capability", (0, 0)) for found in details]
