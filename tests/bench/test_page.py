"""docs/speed.md shows the newest results of each machine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bench.page import PAGE_PATH, build_blocks, format_speed, insert_blocks
from bench.results import describe_machine, get_plot_path, list_newest, slugify
from bench.row import Row, list_precisions

MACHINE = {
    "processor": "a processor", "cores": 2, "bfloat16": ["amx_bf16"], "memory_gib": 24, "gpu": None, "python": "3.11",
    "versions": {"tensorflow": "2.21.0"},
}  # fmt: skip


def build_results(date: str, *rows: Row, machine: dict[str, Any] = MACHINE) -> str:
    plain = [{"date": date, "commit": "abc", "command": "step", "row": row.as_plain()} for row in rows]
    return json.dumps({"quick": False, "machine": machine, "rows": plain})


def test_blocks_show_the_newest_results_of_each_machine(tmp_path: Path) -> None:
    fast = Row("a step", "a loop", 2.0, 3.0, 2.5, 3.5, "x", "3 s against our 1 s")
    slow = Row("a step", "a loop", 4.0, 3.0, 3.0, 3.0, "x", "")
    failure = Row("gone", "", None, *[math.nan] * 3, "", "not measured: why")
    for name, text in {
        "speed-2026-01-02-2-cores.json": build_results("2026-01-02", fast, slow, failure),
        "speed-2026-01-01-2-cores.json": build_results("2026-01-01", slow),
        "speed-2026-01-01-a-gpu.json": build_results("2026-01-01", fast),
        "growth-2026-01-01-2-cores.csv": (
            "over,value,precision,seconds,gib\npixels,64,mixed,1,2\npixels,96,mixed,1.5,2\npixels,128,mixed,2,3\n"
        ),
        "batches-2026-01-01-a-gpu.csv": "recipe,px,precision,pairs,ms,gib\nr,64,mixed,1,3,0.5\nr,64,mixed,8,10,0.0\n",
    }.items():
        (tmp_path / name).write_text(text)
    blocks = build_blocks(tmp_path)
    cpu, _, gpu = blocks["table"].partition("\n\nMeasured on 2026-01-01")
    assert "Measured on 2026-01-02 at commit abc on 2 cores of a processor (amx_bf16), 24 GiB" in cpu
    assert "1 of 2 rows with a goal meet it, 1 are not measured." in cpu
    assert "| a step | a loop | ≥ 2 x | 3 x | 2.5 to 3.5 | met | 3 s against our 1 s |" in cpu
    assert "| gone |" in cpu and "not measured: why" in cpu
    assert "1 of 1 rows" in gpu
    assert "| pixels | 64 | 128 | mixed | 1.00 to 2.00 | 2.00 to 3.00 |" in blocks["growth"]
    assert "| r | 64 | mixed | 1 | 3 | 3.00 | 0.50 |\n| r | 64 | mixed | 8 | 10 | 1.25 |  |" in blocks["batches"]
    assert blocks["profile"] == "Not measured yet."


def test_block_replaces_the_text_between_its_markers() -> None:
    page = "a\n<!-- table -->\nold\n<!-- /table -->\nb"
    assert insert_blocks(page, {"table": "new"}) == "a\n<!-- table -->\nnew\n<!-- /table -->\nb"


def test_mixed_precision_is_measured_where_hardware_has_it(tmp_path: Path) -> None:
    machine = describe_machine()
    assert list_precisions() == (("float32", "mixed") if machine["bfloat16"] or machine["gpu"] else ("float32",))
    slow = {**MACHINE, "bfloat16": []}
    for other_machine, is_omitted in ((slow, True), (MACHINE, False), ({**slow, "gpu": "a GPU"}, False)):
        (tmp_path / "speed.json").write_text(build_results("2026-01-02", machine=other_machine))
        assert ("Mixed precision is not measured" in format_speed(tmp_path / "speed.json")) == is_omitted


def test_result_files_are_named_by_processor_or_gpu() -> None:
    assert slugify({**MACHINE, "processor": "Intel(R) Xeon(R) Processor"}) == "intel-xeon-processor-2-cores"
    assert slugify({**MACHINE, "processor": "AMD EPYC"}) == "amd-epyc-2-cores"
    assert slugify({**MACHINE, "gpu": "NVIDIA H200"}) == "nvidia-h200"


def test_docs_show_the_newest_results() -> None:
    text = PAGE_PATH.read_text()
    assert insert_blocks(text, build_blocks()) == text, "run: python -m bench speed --docs"
    assert all(get_plot_path(path).exists() for path in list_newest("growth"))
