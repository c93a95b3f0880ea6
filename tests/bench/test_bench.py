"""The benchmarks measure what they say: peers have our objective, verdicts are arithmetic, docs show the newest results."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench import growth, ours, profiles, speed
from bench.page import PAGE_PATH, build_blocks, format_table, insert_blocks
from bench.peers import keras_example, tensorflow_tutorial
from bench.results import describe_machine, get_commit, list_newest, slugify
from bench.rows import arithmetic, descent, gap, row
from bench.rows.row import Row
from nst_tasks.core import vgg
from nst_tasks.core.method import LBFGS, Pyramid
from nst_tasks.inputs import presets, weights

CONTENT, STYLE = np.random.default_rng(1).random((2, 48, 64, 3), np.float32)


@pytest.mark.parametrize(("peer", "recipe"), [(keras_example, "keras-io"), (tensorflow_tutorial, "tf-tutorial")])
def test_a_peer_has_the_objective_and_the_steps_of_our_recipe(peer: ModuleType, recipe: str) -> None:
    arrays = weights.load("tiny", None)
    loop = peer.start(arrays, CONTENT, STYLE)
    mine = ours.start(vgg.build("tiny", arrays), presets.find_preset(recipe).method, CONTENT, STYLE)
    theirs = [float(loop.step()) for _ in range(4)]
    assert mine.advance(4) == pytest.approx(theirs, rel=1e-3)
    assert theirs[3] != pytest.approx(theirs[0], rel=1e-3)  # the image has moved
    assert loop.image() == pytest.approx(mine.state.image.numpy()[0], abs=1e-3)
    assert loop.loss(CONTENT) == pytest.approx(theirs[0], rel=1e-5)


def test_what_is_timed_to_the_peers_loss_reaches_it() -> None:
    arrays = weights.load("tiny", None)
    network = vgg.build("tiny", arrays)
    loop = tensorflow_tutorial.start(arrays, CONTENT, STYLE)
    coarse = Pyramid(smallest=32, ratio=1.4, coarse_steps=3, levels=2)
    method = replace(presets.find_preset("tf-tutorial").method, optimizer=LBFGS(), pyramid=coarse, steps=6)
    reached = loop.loss(descent.run_transfer(network, method, CONTENT, STYLE, 6)) * (1.0 + 1e-5)
    assert reached < 0.9 * loop.loss(CONTENT)
    found = descent.count_evaluations(network, method, CONTENT, STYLE, loop, reached, most=8)
    assert (found.evaluations, found.loss <= reached) == (6, True)
    cut_short = descent.count_evaluations(network, method, CONTENT, STYLE, loop, 0.0, most=2)
    assert cut_short.evaluations is None
    assert (cut_short.loss > reached, cut_short.seconds > 0.0) == (True, True)
    looks = list(gap.run_timed_transfer(network, method, CONTENT, STYLE, every=4, shorten=1))
    assert [image.shape for _, image in looks] == [(34, 46, 3), *[(48, 64, 3)] * 2]  # after 3 steps, then after 4 and 6
    assert 0.0 < looks[0][0] < looks[1][0] < looks[2][0]
    assert loop.loss(looks[2][1]) <= reached


def test_a_content_has_closed_no_gap_and_a_style_all_of_it() -> None:
    network = vgg.build("tiny", weights.load("tiny", None))
    assert gap.measure_quality(network, CONTENT, CONTENT, STYLE) == pytest.approx((0.0, 1.0), abs=1e-3)
    style, cosine = gap.measure_quality(network, STYLE, CONTENT, STYLE)
    assert style == pytest.approx(1.0, abs=1e-2)
    assert cosine < 0.999


def test_a_ratio_is_taken_round_by_round_and_must_reach_its_goal() -> None:
    found = row.build_ratio_row("a step", "a loop", 3.0, theirs=[2.0, 9.0, 4.0], ours=[1.0, 3.0, 1.0])
    assert (found.measured, found.least, found.largest, found.verdict) == (3.0, 2.0, 4.0, "met")
    assert found.detail == "4 s against our 1 s"
    assert row.build_ratio_row("a step", "a loop", 3.1, [2.0, 9.0, 4.0], [1.0, 3.0, 1.0]).verdict == "not met"
    assert row.build_ratio_row("a step", "a loop", None, [1.0], [1.0]).verdict == ""


def test_a_cost_must_not_exceed_its_goal() -> None:
    assert row.build_cost_row("a pair", 25.0, [30.0, 25.0, 10.0], "ms", "").verdict == "met"
    dear = row.build_cost_row("a pair", 24.9, [30.0, 25.0, 10.0], "ms", "")
    assert dear.verdict == "not met"
    assert dear.format_cells()[2:6] == ("≤ 24.9 ms", "25 ms", "10 to 30", "not met")


def test_sides_take_turns_and_every_other_round_goes_backwards() -> None:
    called: list[str] = []
    taken = row.time_alternating(3, {name: lambda name=name: called.append(name) for name in "ab"})  # type: ignore[misc]
    assert "".join(called) == "ab" + "ab" + "ba" + "ab"
    assert [len(taken[name]) for name in "ab"] == [3, 3]


def test_operations_of_convolutions_are_counted_by_hand() -> None:
    kernels = {"block1_conv1": (3, 3, 3, 8), "block2_conv1": (3, 3, 8, 5), "block2_conv2": (3, 3, 5, 5)}
    by_hand = 4 * 9 * (3 * 8 * 7 * 9 + 8 * 5 * 3 * 4)  # 7 x 9 px, then 3 x 4; multiply and add, forward and backward
    assert arithmetic.count_operations(kernels, ["block2_conv1", "block1_conv1"], 7, 9) == by_hand


@pytest.mark.parametrize(("command", "quick"), speed.SUITE)
def test_every_row_of_the_suite_is_a_command_with_those_options(command: str, quick: str | None) -> None:
    module, name, *options = f"{command} {quick or ''}".split()
    known = inspect.signature(getattr(importlib.import_module(f"bench.rows.{module}"), name)).parameters
    assert {option.removeprefix("--") for option in options if option.startswith("--")} <= set(known)


def test_a_row_that_fails_says_why_and_counts_as_not_measured(tmp_path: Path) -> None:
    (failed,) = speed.measure_rows(["intake", "large", "--pairs", "0"], tmp_path)
    assert failed.verdict == "not measured"
    assert failed.detail.startswith("not measured: ")


def test_the_phases_of_a_manifest_are_functions_of_nst() -> None:
    for _, functions in profiles.PHASES:
        for function in functions:
            module, _, name = function.rpartition(".")
            assert callable(getattr(importlib.import_module(module), name)), function


def test_a_thread_is_in_the_phase_of_its_innermost_function_that_has_one() -> None:
    here = f"{__name__}.test_a_thread_is_in_the_phase_of_its_innermost_function_that_has_one"

    def inner(names: dict[str, str]) -> str | None:
        return profiles.find_phase(sys._getframe(), names)

    assert inner({here: "outer", f"{__name__}.inner": "inner"}) == "inner"
    assert inner({here: "outer"}) == "outer"
    assert inner({}) is None


MACHINE = {
    "processor": "a processor", "cores": 2, "bfloat16": ["amx_bf16"], "memory_gib": 24, "gpu": None, "python": "3.11",
    "versions": {"tensorflow": "2.21.0"},
}  # fmt: skip


def kept(date: str, *rows: Row, of: dict[str, Any] = MACHINE) -> str:
    stamped = [{"date": date, "commit": "abc", "command": "step", "row": each.as_plain()} for each in rows]
    return json.dumps({"quick": False, "machine": of, "rows": stamped})


def test_the_page_shows_the_newest_results_of_each_machine(tmp_path: Path) -> None:
    fast = Row("a step", "a loop", 2.0, 3.0, 2.5, 3.5, "x", "3 s against our 1 s")
    slow, failed = (
        Row("a step", "a loop", 4.0, 3.0, 3.0, 3.0, "x", ""),
        Row("gone", "", None, *[math.nan] * 3, "", "not measured: why"),
    )
    for name, text in {
        "speed-2026-01-02-2-cores.json": kept("2026-01-02", fast, slow, failed),
        "speed-2026-01-01-2-cores.json": kept("2026-01-01", slow),
        "speed-2026-01-01-a-gpu.json": kept("2026-01-01", fast),
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "growth-2026-01-01-2-cores.csv").write_text(
        "over,value,precision,seconds,gib\npixels,64,mixed,1,2\npixels,96,mixed,1.5,2\npixels,128,mixed,2,3\n"
    )
    shown = build_blocks(tmp_path)
    of_cpu, _, of_gpu = shown["table"].partition("\n\nMeasured on 2026-01-01")
    assert "Measured on 2026-01-02 at commit abc on 2 cores of a processor (amx_bf16), 24 GiB" in of_cpu
    assert "1 of 2 rows with a goal meet it, 1 are not measured." in of_cpu
    assert "| a step | a loop | ≥ 2 x | 3 x | 2.5 to 3.5 | met | 3 s against our 1 s |" in of_cpu
    assert "| gone |" in of_cpu and "not measured: why" in of_cpu
    assert "1 of 1 rows" in of_gpu
    assert "| pixels | 64 | 128 | mixed | 1.00 to 2.00 | 2.00 to 3.00 |" in shown["growth"]
    assert shown["profile"] == "Not measured yet."
    assert insert_blocks("a\n<!-- table -->\nold\n<!-- /table -->\nb", {"table": "new"}) == (
        "a\n<!-- table -->\nnew\n<!-- /table -->\nb"
    )


def test_mixed_precision_is_measured_where_there_is_hardware_for_it(tmp_path: Path) -> None:
    on = describe_machine()
    assert row.list_precisions() == (("float32", "mixed") if on["bfloat16"] or on["gpu"] else ("float32",))
    slow = {**MACHINE, "bfloat16": []}
    for of, says in ((slow, True), (MACHINE, False), ({**slow, "gpu": "a GPU"}, False)):
        (tmp_path / "speed.json").write_text(kept("2026-01-02", of=of))
        assert ("Mixed precision is not measured" in format_table(tmp_path / "speed.json")) == says


def test_machines_of_two_processors_have_files_of_their_own() -> None:
    assert slugify({**MACHINE, "processor": "Intel(R) Xeon(R) Processor"}) == "intel-xeon-processor-2-cores"
    assert slugify({**MACHINE, "processor": "AMD EPYC"}) == "amd-epyc-2-cores"
    assert slugify({**MACHINE, "gpu": "NVIDIA H200"}) == "nvidia-h200"


def test_quick_rows_never_stand_among_the_kept_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", "--quick"])
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert ended.value.code == 2
    assert "--quick needs --keep FILE" in capsys.readouterr().err


def test_rows_measured_alone_take_their_place_among_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SUITE", (("a b", None), ("intake large --pairs 0", None), ("c d", None)))
    on, file = describe_machine(), tmp_path / "speed.json"
    old = Row("old", "", None, 1.0, 1.0, 1.0, "s", "")
    earlier = [{"date": "2026-01-01", "commit": "abc", "command": command, "row": old.as_plain()} for command, _ in speed.SUITE]
    (tmp_path / f"speed-2026-01-01-{slugify(on)}.json").write_text(json.dumps({"quick": False, "machine": on, "rows": earlier}))
    speed.run_suite(quick=False, only="intake", keep=file, torch=Path(sys.executable))
    rows = json.loads(file.read_text())["rows"]
    assert [row["command"] for row in rows] == ["a b", "intake large --pairs 0", "c d"]
    assert [row["date"] == "2026-01-01" for row in rows] == [True, False, True]
    assert rows[1]["row"]["verdict"] == "not measured" and rows[1]["commit"] == get_commit()
    assert "Measured on 2026-01-01, " in format_table(file)
    others = {**on, "versions": {"tensorflow": "1.0"}}
    assert speed.load_earlier_rows(others, tmp_path) == {}


def test_a_row_that_is_not_measured_names_no_path(tmp_path: Path) -> None:
    (failed,) = speed.measure_rows(["nothing", "torch", "--size", "8", "--python", str(tmp_path / "none")], tmp_path)
    assert failed.work == "nothing torch --size 8"
    assert str(tmp_path) not in json.dumps(failed.as_plain())


def test_a_steps_profile_sees_the_network(tmp_path: Path) -> None:
    for kind in profiles.profile_step(size=48, steps=1)[:4]:
        assert all(kind[precision] > 0.0 for precision in row.list_precisions()), kind


def test_docs_show_what_the_newest_results_give() -> None:
    text = PAGE_PATH.read_text()
    assert insert_blocks(text, build_blocks()) == text, "run: python -m bench.speed --docs"
    assert all(growth.get_plot_path(path).exists() for path in list_newest("growth"))
