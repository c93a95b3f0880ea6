"""Detect the fast precision and the fast convolutions of this machine.

TensorFlow is imported only where there may be a GPU, so that manifests can be validated without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from nst_tasks.core.vgg_layers import FlippedDirection
from nst_tasks.engine.runtime import import_tensorflow

GPU_DRIVER_PATHS = ("/dev/nvidiactl", "/dev/dxg")
"""Device files, at least one of which exists wherever CUDA may find a GPU."""

BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Linux names of the CPU flags, either of which means that bfloat16 multiplies faster than float32."""

FAST_GRADIENT_CPU_FLAG = "avx512f"
"""CPU flag with which TensorFlow's gradient of a convolution is faster than the convolution; without it, slower."""

MIN_BFLOAT16_CAPABILITY = (8, 0)
"""Minimum CUDA compute capability of a GPU that is fast at bfloat16."""


def detect_precision() -> Literal["float32", "mixed"]:
    """Return the precision that `auto` means on this machine: `mixed` if bfloat16 is fast on all devices that run batches."""
    capabilities = _query_gpu_capabilities() if any(Path(driver).exists() for driver in GPU_DRIVER_PATHS) else []
    fast = is_bfloat16_fast_on_gpus(capabilities) if capabilities else is_bfloat16_fast_on_cpu(_read_cpuinfo())
    return "mixed" if fast else "float32"


def detect_flipped_direction() -> FlippedDirection:
    """Return the direction in which this machine's CPU computes convolutions with flipped kernels.

    The direction is `none` without a /proc/cpuinfo to read.
    """
    return choose_flipped_direction(_read_cpuinfo())


def choose_flipped_direction(cpuinfo: str) -> FlippedDirection:
    """Return that direction for a text of /proc/cpuinfo, as measured on x86 with AVX-512 and with AVX2 alone."""
    flags = _parse_cpu_flags(cpuinfo)
    return "forward" if FAST_GRADIENT_CPU_FLAG in flags else "backward" if "avx2" in flags else "none"


def is_bfloat16_fast_on_cpu(cpuinfo: str) -> bool:
    """Return whether a CPU is fast at bfloat16, from the text of its /proc/cpuinfo."""
    return not BFLOAT16_CPU_FLAGS.isdisjoint(_parse_cpu_flags(cpuinfo))


def _read_cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.exists() else ""


def _parse_cpu_flags(cpuinfo: str) -> set[str]:
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return set(flags[1].split()) if flags else set()


def is_bfloat16_fast_on_gpus(capabilities: Iterable[tuple[int, int]]) -> bool:
    """Return whether GPUs of these compute capabilities, (0, 0) if unknown, are all fast at bfloat16."""
    return all(capability >= MIN_BFLOAT16_CAPABILITY for capability in capabilities)


def _query_gpu_capabilities() -> list[tuple[int, int]]:
    import_tensorflow()
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [device_details.get("compute_capability", (0, 0)) for device_details in details]
