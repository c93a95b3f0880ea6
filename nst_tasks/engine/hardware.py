"""Detect the fast precision and the fast convolutions of this machine.

TensorFlow is imported only where there may be a GPU, so that manifests can be validated without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

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


class Cpu(NamedTuple):
    """Model name of a CPU, empty if unknown, and its feature flags."""

    model: str
    flags: frozenset[str]


def read_cpu() -> Cpu:
    """Return this machine's CPU; without a /proc/cpuinfo to read it has no name and no flags."""
    path = Path("/proc/cpuinfo")
    return parse_cpuinfo(path.read_text(errors="replace") if path.exists() else "")


def parse_cpuinfo(text: str) -> Cpu:
    """Return the first CPU in a text of Linux's /proc/cpuinfo."""
    model, flags = (re.search(rf"^{key}\s*:(.*)$", text, re.MULTILINE) for key in ("model name", "flags"))
    return Cpu(model[1].strip() if model else "", frozenset(flags[1].split() if flags else ()))


def detect_precision() -> Literal["float32", "mixed"]:
    """Return the precision that `auto` means on this machine: `mixed` if bfloat16 is fast on all devices that run batches."""
    capabilities = _query_gpu_capabilities() if any(Path(driver).exists() for driver in GPU_DRIVER_PATHS) else []
    fast = is_bfloat16_fast_on_gpus(capabilities) if capabilities else is_bfloat16_fast_on_cpu(read_cpu())
    return "mixed" if fast else "float32"


def detect_flipped_direction() -> FlippedDirection:
    """Return the direction in which this machine's CPU computes convolutions with flipped kernels; `none` if it is unknown."""
    return choose_flipped_direction(read_cpu())


def choose_flipped_direction(cpu: Cpu) -> FlippedDirection:
    """Return that direction for a CPU, as measured on x86 with AVX-512 and with AVX2 alone."""
    return "forward" if FAST_GRADIENT_CPU_FLAG in cpu.flags else "backward" if "avx2" in cpu.flags else "none"


def is_bfloat16_fast_on_cpu(cpu: Cpu) -> bool:
    """Return whether a CPU multiplies faster in bfloat16 than in float32."""
    return not BFLOAT16_CPU_FLAGS.isdisjoint(cpu.flags)


def is_bfloat16_fast_on_gpus(capabilities: Iterable[tuple[int, int]]) -> bool:
    """Return whether GPUs of these compute capabilities, (0, 0) if unknown, are all fast at bfloat16."""
    return all(capability >= MIN_BFLOAT16_CAPABILITY for capability in capabilities)


def _query_gpu_capabilities() -> list[tuple[int, int]]:
    import_tensorflow()
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [device_details.get("compute_capability", (0, 0)) for device_details in details]
