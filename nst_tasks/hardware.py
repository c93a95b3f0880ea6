"""What this machine computes fast; without TensorFlow where there is no GPU, so that a manifest is looked at without it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from nst_tasks import quiet

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""One of them is there where CUDA may find a GPU."""

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Of a CPU that multiplies bfloat16 faster than float32, as Linux names them."""

CAPABILITY = (8, 0)
"""CUDA's compute capability from which a GPU does."""


def auto_precision() -> Literal["float32", "mixed"]:
    """What the precision `auto` means on this machine: `mixed` where bfloat16 is fast on all that batches run on."""
    capabilities = _capabilities() if any(Path(driver).exists() for driver in GPU_DRIVERS) else []
    if capabilities:
        fast = are_fast_gpus(capabilities)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        fast = cpuinfo.exists() and is_fast_cpu(cpuinfo.read_text(errors="replace"))
    return "mixed" if fast else "float32"


def is_fast_cpu(cpuinfo: str) -> bool:
    """Whether a CPU is fast at bfloat16, by the text of /proc/cpuinfo."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return flags is not None and not CPU_FLAGS.isdisjoint(flags[1].split())


def are_fast_gpus(capabilities: Iterable[tuple[int, int]]) -> bool:
    """Whether GPUs of these compute capabilities are all fast at bfloat16; an unknown one is (0, 0)."""
    return all(capability >= CAPABILITY for capability in capabilities)


def _capabilities() -> list[tuple[int, int]]:
    quiet.import_tensorflow()
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [found.get("compute_capability", (0, 0)) for found in details]
