"""What `auto` means: bfloat16 where it is fast."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from nst_tasks.engine import optimization
from nst_tasks.engine.hardware import (
    choose_flipped_direction,
    detect_precision,
    is_bfloat16_fast_on_cpu,
    is_bfloat16_fast_on_gpus,
    parse_cpuinfo,
    read_cpu,
)
from nst_tasks.inputs import weights
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings

CPUINFO = """processor\t: 0
model name\t: A {name} CPU @ 2 GHz, amx_bf16
flags\t\t: fpu sse2 avx512f {flags}
bugs\t\t: spectre_v1

processor\t: 1
flags\t\t: fpu sse2 avx512f {flags}
"""


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("avx512_bf16", True),
        ("amx_tile amx_bf16 amx_int8", True),
        ("avx512_bf16_maybe", False),
        ("avx512_vnni amx_int8", False),
    ],
)
def test_a_cpu_is_fast_that_says_so_among_its_flags(flags: str, fast: bool) -> None:
    assert is_bfloat16_fast_on_cpu(parse_cpuinfo(CPUINFO.format(name="Fine", flags=flags))) is fast


def test_a_cpu_that_lists_no_flags_is_not_fast() -> None:
    assert not is_bfloat16_fast_on_cpu(parse_cpuinfo("processor\t: 0\nFeatures\t: fp asimd bf16\n"))
    assert not is_bfloat16_fast_on_cpu(parse_cpuinfo(""))


def test_cpuinfo_gives_model_and_flags_of_the_first_cpu() -> None:
    cpu = parse_cpuinfo(
        "processor\t: 0\nmodel name\t: A CPU @ 2 GHz \nflags\t\t: fpu avx2\n\nmodel name\t: B\nflags\t\t: sse2\n"
    )
    assert (cpu.model, cpu.flags) == ("A CPU @ 2 GHz", {"fpu", "avx2"})
    assert parse_cpuinfo("") == ("", frozenset())


@pytest.mark.parametrize(
    ("flags", "turns"), [("sse2 avx avx2 avx512f", "forward"), ("avx2", "backward"), ("avx2_not", "none"), ("sse2 avx", "none")]
)
def test_cpu_flags_choose_the_faster_kernel(flags: str, turns: str) -> None:
    assert choose_flipped_direction(parse_cpuinfo(f"flags\t\t: fpu {flags}\n")) == turns
    assert choose_flipped_direction(parse_cpuinfo("processor\t: 0\nFeatures\t: fp asimd\n")) == "none"


def test_a_run_convolves_as_its_machine_is_fastest(tmp_path: Path) -> None:
    run = Run("r", str(tmp_path), "tiny", "", weights.compute_sha256("tiny", None), 1, Settings())
    assert optimization.build_backbone(run).flipped_direction == choose_flipped_direction(read_cpu())


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [([(8, 0)], True), ([(9, 0), (8, 6)], True), ([(7, 5)], False), ([(8, 0), (7, 0)], False), ([(0, 0)], False)],
)
def test_gpus_are_fast_from_capability_8_on_if_all_are(capabilities: list[tuple[int, int]], fast: bool) -> None:
    assert is_bfloat16_fast_on_gpus(capabilities) is fast


def test_auto_precision_follows_the_cpu_without_gpu() -> None:
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    fast = is_bfloat16_fast_on_cpu(read_cpu())
    assert detect_precision() == ("mixed" if fast else "float32")


def test_auto_is_what_this_machines_gpus_are_fast_at() -> None:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        pytest.skip("this machine has no GPU")
    found = [tf.config.experimental.get_device_details(gpu)["compute_capability"] for gpu in gpus]
    assert detect_precision() == ("mixed" if min(found) >= (8, 0) else "float32")
