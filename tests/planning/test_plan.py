"""Plans of a run: counts, memory, and a time estimated from a few measured steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli import app
from nst_tasks.core.memory import fitting_size, peak_bytes
from nst_tasks.core.method import Pyramid
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.engine import devices, optimization
from nst_tasks.engine.calibration import _measure_pair, _MeasurementContext, _Measurements, _with_single_steps, calibrate
from nst_tasks.engine.costs import Calibration, Costs, Sample, get_step_kind, interpolate_seconds
from nst_tasks.images.picture import Source
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.manifest import Manifest
from nst_tasks.inputs.options import ResultOptions, RunOptions
from nst_tasks.inputs.recipe import Overrides, override
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import outcome
from nst_tasks.outputs.layout import history_path, image_path, marker_path
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.planning.dry_run import Findings, inspect_inputs
from nst_tasks.planning.plan import Plan, TimeEstimate, build_plan, format_duration
from nst_tasks.planning.prepare import prepare
from nst_tasks.planning.triage import Triage
from nst_tasks.progress import Progress
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri
from tests.support.changes import change_job
from tests.support.jobs import LIGHT, TINY_SHA256, job, run_into, two_jobs
from tests.support.stores import MemoryStore

SETTINGS = Settings(readers=4)
NOTHING = Manifest((), (), (), (), 0)


def make_source(name: str, height: int = 48, width: int = 64) -> Source:
    return Source(f"/in/{name}.png", name, "1", height, width)


def make_plan(*jobs: Job, settings: Settings = SETTINGS, calibration: Calibration | None = None, **rows: Any) -> Plan:
    triage = Triage(**{"to_do": jobs, "done": (), "quarantined": (), "refused": ()} | rows)
    return build_plan(NOTHING, Findings(triage, 0, (), ()), settings, calibration)


# Estimates


def test_seconds_are_interpolated_and_extrapolated() -> None:
    samples = (Sample(100, 1.0), Sample(300, 2.0))
    assert [interpolate_seconds(samples, pixels) for pixels in (10, 100, 200, 300, 600)] == [1.0, 1.0, 1.5, 2.0, 4.0]


A = job(make_source("cat"), make_source("oil"))
HEAVY = replace(A, recipe=override(LIGHT, Overrides(content_weight=3.0)))
KIND = get_step_kind(A)
ONE_SECOND_COSTS = Costs(KIND, (Sample(64 * 64, 1.0),), (Sample(64 * 64, 10.0),), style_seconds=100.0, tracing_seconds=1000.0)
"""Nine steps of one second each, as both sizes of `light` lie below the sample, and ten seconds a pair."""


def estimate_seconds(*jobs: Job, devices: int = 1, costs: Costs = ONE_SECOND_COSTS) -> float:
    estimate = make_plan(*jobs, calibration=Calibration(("/CPU:0",) * devices, 1, 10_000.0, (costs,))).estimate
    assert estimate is not None
    return estimate.seconds


def test_estimate_sums_all_costs() -> None:
    fixed_seconds = 10_000 + 1_000
    assert estimate_seconds(A) == pytest.approx(fixed_seconds + 100 + 19, abs=0.2)
    # one style for two pairs is measured once, whatever the contents' other side, and one method traced once
    b = change_job(A, id="b", content=make_source("dog"), height=52)
    assert estimate_seconds(A, b) == pytest.approx(fixed_seconds + 100 + 2 * 19, abs=0.2)
    assert estimate_seconds(A, replace(b, styles=(make_source("ink"),))) == pytest.approx(fixed_seconds + 200 + 2 * 19, abs=0.2)
    # another weight changes neither graphs nor the statistics of the style
    assert estimate_seconds(A, change_job(HEAVY, id="b")) == pytest.approx(fixed_seconds + 100 + 2 * 19, abs=0.2)


def test_devices_share_the_pairs_but_not_one_pair() -> None:
    free = replace(ONE_SECOND_COSTS, style_seconds=0.0, tracing_seconds=0.0)
    assert estimate_seconds(A, *(change_job(A, id=id) for id in "bcd"), devices=2, costs=free) == pytest.approx(
        10_000 + 2 * 19, abs=0.2
    )
    assert estimate_seconds(A, devices=2, costs=free) == pytest.approx(10_000 + 19, abs=0.2)


def test_a_level_is_estimated_at_its_own_size() -> None:
    steps = (Sample(32 * 43, 1.0), Sample(48 * 64, 2.0))
    costs = Costs(KIND, steps, (Sample(1, 0.0),), style_seconds=0.0, tracing_seconds=0.0)
    assert estimate_seconds(A, costs=costs) == pytest.approx(10_000 + 4 * 1 + 5 * 2, abs=0.2)


def test_estimate_has_the_measured_share() -> None:
    def get_measured_share(*jobs: Job) -> float:
        plan = make_plan(*jobs, calibration=Calibration(("/CPU:0",), 1, 0.0, (ONE_SECOND_COSTS,)))
        assert plan.estimate is not None
        is_carried_over = "carried over" in plan.format_lines()[-1]
        assert is_carried_over == (plan.estimate.measured < 1)
        return plan.estimate.measured

    other = change_job(A, id="b", styles=(make_source("oil"), make_source("ink")), style_weights=(0.5, 0.5))
    larger_job = change_job(A, id="c", height=480, width=640)
    assert get_measured_share(A) == 1
    assert get_measured_share(A, HEAVY) == 1  # its step differs only in numbers
    assert get_measured_share(A, other) == 0.5  # its step was not measured
    assert get_measured_share(A, larger_job) == pytest.approx(
        A.pixel_steps / (A.pixel_steps + larger_job.pixel_steps), abs=0.03
    )  # only its coarse levels have


def test_durations_have_readable_units() -> None:
    durations = [format_duration(s) for s in (0.2, 179, 181, 5340, 5401, 48 * 3600 - 60, 50 * 3600)]
    assert durations == ["1 s", "179 s", "4 min", "89 min", "1 h 31 min", "47 h 59 min", "2 d 2 h"]


# Contents of a plan


def test_plan_lists_shapes_with_memory_and_fitting_size() -> None:
    large = change_job(A, id="b", height=768, width=1024)
    calibration = Calibration(("/GPU:0",), 2, 0.0, ())
    plan = make_plan(A, change_job(A, id="c"), large, settings=Settings(device_memory_gib=0.5), calibration=calibration)
    of_large, of_small = plan.shapes
    assert (of_large.width, of_large.height, of_large.pairs, of_large.at_once) == (1024, 768, 1, 1)
    assert of_large.memory_gib == pytest.approx(peak_bytes(LIGHT.method, 768, 1024, on_gpu=True) / 2**30, abs=1e-3)
    assert (of_small.pairs, of_small.at_once, of_small.fitting_size) == (2, 2, None)
    assert of_small.memory_gib == pytest.approx(2 * peak_bytes(LIGHT.method, 48, 64) / 2**30, abs=1e-3)
    side = of_large.fitting_size
    assert side is not None and side % 16 == 0
    assert side == fitting_size(LIGHT.method, 768, 1024, 2**29, on_gpu=True)
    assert plan.batches == 2
    gib = f"{of_large.memory_gib:.3g} GiB"
    assert any(f"1024 x 768: 1 pair, 1 at once, {gib}: too much, tried all the same; about {side} px" in line
               for line in plan.format_lines())  # fmt: skip


def test_plan_without_device_has_no_batches() -> None:
    assert make_plan(A).batches is None
    assert make_plan(A, settings=Settings(batch=4)).batches is None  # only a GPU runs such batches
    assert make_plan(A, settings=Settings(batch=1)).batches == 1
    assert make_plan().batches == 0


def test_rows_with_the_same_picture_are_reported() -> None:
    b, c = (change_job(A, id=id, row=row) for id, row in (("b", 3), ("c", 4)))
    other = change_job(A, id="d", row=5, seed=1)
    assert make_plan(b, other, done=(A,), quarantined=(c,)).same_picture == (("a", "b", "c"),)
    assert (
        "2 rows would make a picture that another row makes too; each is made by itself:" in make_plan(A, b, c).format_lines()
    )
    assert make_plan(A, other).same_picture == ()


# Calibration


def run_calibration(folder: Path, jobs: list[Job], settings: Settings = SETTINGS, **options: Any) -> Calibration:
    return calibrate(jobs, ResultOptions(backbone="tiny"), TINY_SHA256, settings, **options)


def enlarge_jobs(jobs: list[Job], *, times: int) -> list[Job]:
    return [replace(job, height=times * job.height, width=times * job.width) for job in jobs]


def test_calibration_measures_small_sizes_first(tmp_path: Path) -> None:
    calibration = run_calibration(
        tmp_path, enlarge_jobs(two_jobs(tmp_path), times=2), limit_seconds=600.0
    )  # enough on a busy machine as well
    (costs,) = calibration.costs
    assert costs.kind == KIND
    assert [sample.pixels for sample in costs.step_samples] == [48 * 64, 96 * 128]
    assert [sample.pixels for sample in costs.pair_samples] == [96 * 128]
    assert all(sample.seconds > 0 for sample in (*costs.step_samples, *costs.pair_samples))
    assert costs.tracing_seconds > 0  # graphs were traced
    assert (calibration.devices, calibration.max_pairs) == (("/CPU:0",), 1)
    assert not (tmp_path / "out").exists()


def test_calibration_clears_the_content_cache(tmp_path: Path) -> None:
    with devices.acquire(Progress()) as device:
        device.content_cache.get_or_compute("known before", list)
    run_calibration(tmp_path, two_jobs(tmp_path), limit_seconds=0)
    with devices.acquire(Progress()) as device:
        assert device.content_cache.get_or_compute("known before", lambda: "recomputed") == "recomputed"


def test_a_pair_is_measured_with_all_of_its_levels() -> None:
    """A level without steps is omitted, as in the pair's own pyramid."""
    pyramid = Pyramid(smallest=40, ratio=1.5, coarse_steps=30, first_steps=50)
    for method in (
        LIGHT.method,
        replace(LIGHT.method, pyramid=pyramid),
        replace(LIGHT.method, pyramid=replace(pyramid, first_steps=0)),
        replace(LIGHT.method, pyramid=replace(pyramid, coarse_steps=0)),
        replace(LIGHT.method, pyramid=None, steps=0),
    ):
        own = plan_levels(method, 120, 160)
        single_step_levels = plan_levels(_with_single_steps(method), 120, 160)
        assert single_step_levels == tuple(replace(level, steps=min(level.steps, 1)) for level in own)


class CountingStore(MemoryStore):
    """Store in memory that counts the reads of each file."""

    protocol = "counting"
    reads: Counter[str] = Counter()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.reads[Path(path).stem] += 1
        return super().cat_file(path, start, end, **options)


def test_style_statistics_avoid_reading_the_style_again(tmp_path: Path) -> None:
    CountingStore.store.clear()
    CountingStore.reads.clear()

    def copy_to_store(source: Source) -> Source:
        uri = f"counting://in/{Path(source.uri).name}"
        files.write(uri, Path(source.uri).read_bytes())
        return replace(source, uri=uri)

    first, other = two_jobs(tmp_path)
    stored_job = replace(
        first,
        content=copy_to_store(first.content),
        styles=tuple(map(copy_to_store, first.styles)),
        init=copy_to_store(other.content),
    )
    assert len(run_calibration(tmp_path, [stored_job]).costs) == 1
    other_reads = 1  # to check that they are readable, and for the steps
    assert CountingStore.reads == {"content1": other_reads + 3, "content2": other_reads + 3, "style3": other_reads + 2}


@pytest.mark.parametrize(("coarse", "fine", "is_positive"), [(0.0, 0.0, True), (1e6, 0.0, False), (0.0, 1e6, False)])
def test_pair_seconds_exclude_the_steps(tmp_path: Path, coarse: float, fine: float, is_positive: bool) -> None:
    """Steps that take longer than their pair, at either level, leave the pair no seconds."""
    measurements, run = _Measurements(step_seconds={32 * 43: coarse, 48 * 64: fine}), run_into(tmp_path / "out")
    with devices.acquire(Progress()) as device:
        backbone = device.get_backbone(run.weights_sha256, lambda: optimization.build_backbone(run))
        _measure_pair(two_jobs(tmp_path)[:1], measurements, _MeasurementContext(run, device, backbone, deadline=0.0))
    assert (measurements.pair_seconds[48 * 64] > 0) is is_positive


def test_calibration_omits_shapes_over_time_or_memory(tmp_path: Path) -> None:
    jobs = enlarge_jobs(two_jobs(tmp_path), times=4)
    several = change_job(jobs[0], id="c", styles=(jobs[0].styles[0], jobs[1].styles[0]), style_weights=(0.5, 0.5))
    (costs,) = run_calibration(tmp_path, [*jobs, several], limit_seconds=0).costs
    assert [sample.pixels for sample in (*costs.step_samples, *costs.pair_samples)] == [48 * 64, 48 * 64]
    little = peak_bytes(LIGHT.method, 100, 128) / 2**30
    (costs,) = run_calibration(tmp_path, jobs, settings=Settings.model_construct(device_memory_gib=little)).costs
    assert [sample.pixels for sample in (*costs.step_samples, *costs.pair_samples)] == [48 * 64, 96 * 128, 96 * 128]


def test_shapes_with_little_of_the_work_are_not_measured(tmp_path: Path) -> None:
    a, b = two_jobs(tmp_path)
    rare = change_job(b, styles=(a.styles[0], b.styles[0]), style_weights=(0.5, 0.5))
    jobs = [*(change_job(a, id=str(k)) for k in range(20)), rare]
    assert [costs.kind for costs in run_calibration(tmp_path, jobs).costs] == [KIND]
    assert {costs.kind for costs in run_calibration(tmp_path, jobs[-2:]).costs} == {KIND, get_step_kind(rare)}


def test_calibration_ignores_unreadable_pictures(tmp_path: Path) -> None:
    a, b = two_jobs(tmp_path)
    Path(a.content.uri).write_bytes(b"no picture")
    assert [costs.kind for costs in run_calibration(tmp_path, [a, b]).costs] == [KIND]
    assert run_calibration(tmp_path, [a]).costs == ()


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a manifest of four rows: two with the same inputs, one without its picture, one invalid."""
    two_jobs(tmp_path)
    rows = [
        "a,content1.png,style3.png,64",
        "b,content1.png,style3.png,64",
        "c,none.png,style4.png,64",
        "d,content2.png,style4.png,9",
    ]
    (tmp_path / "m.csv").write_text("\n".join(["id,content,style,size", *rows]) + "\n")
    return tmp_path


def run_nst_plan(folder: Path, *options: str, **environment: str) -> Result:
    place = ["plan", str(folder / "m.csv"), "--out", str(folder / "out"), "--backbone", "tiny"]
    result = CliRunner().invoke(app, [*place, *options], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_plan_counts_every_row_and_writes_nothing(folder: Path) -> None:
    paths = sorted(folder.rglob("*"))
    result = run_nst_plan(folder, "--no-calibrate")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "4 rows: 0 done, 2 to do, 1 rejected, 1 refused, 0 quarantined" in lines
    assert "pictures: 2 contents, 2 styles; 4 to inspect" in lines
    assert "  a = b" in lines
    assert any(line.startswith("row 5, column size: 9 is below") for line in lines)
    assert any("none.png: does not exist" in line for line in lines)
    assert lines[-1] == "estimate: none, nothing was measured"
    assert sorted(folder.rglob("*")) == paths


def test_a_plan_as_json_with_an_estimate(folder: Path) -> None:
    (folder / "m.csv").write_text("content,style\ncontent1.png,style3.png\n")
    paths = sorted(folder.rglob("*"))
    result = run_nst_plan(folder, "--json", "--recipe", "tf-tutorial", "--size", "64", "--steps", "3")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert (plan["rows"], plan["to_do"], plan["done"], plan["batches"], plan["problems"]) == (1, 1, 0, 1, [])
    assert plan["estimate"].keys() == TimeEstimate.__dataclass_fields__.keys()
    assert plan["estimate"]["seconds"] > 0
    assert plan["estimate"]["measured"] == 1
    assert plan["estimate"]["rates"][0]["recipe"] == "tf-tutorial"
    assert result.stderr == "nst: measuring a few steps, for about a minute\n"
    assert sorted(folder.rglob("*")) == paths


FINISHED_PLAN = """
import sys
from flows.cli import app
try:
    app(sys.argv[1:], standalone_mode=True)
except SystemExit as end:
    assert not end.code, end.code
assert not {"tensorflow", "prefect"} & {*sys.modules}
"""


def test_plan_of_finished_output_needs_no_tensorflow(folder: Path) -> None:
    (folder / "m.csv").write_text("content,style\ncontent1.png,style3.png\n")
    manifest, out, run_options = str(folder / "m.csv"), str(folder / "out"), RunOptions(backbone="tiny")
    inputs = prepare(manifest, out, run_options, SETTINGS, will_write=False)
    (todo,) = inspect_inputs(out, run_options, inputs, SETTINGS).rows.to_do
    success = Outcome(
        todo.id, todo.row, Status.SUCCEEDED, key=todo.key, content=todo.content, styles=todo.styles,
        image=image_path(todo.id, "png"), image_bytes=1, history=history_path(todo.id), history_bytes=1,
    )  # fmt: skip
    for path, data in ((success.image, b"i"), (success.history, b"h"), (marker_path(todo.id), outcome.to_json(success))):
        files.write(join_uri(out, path), data)
    times = {path: os.stat(path).st_mtime_ns for path in [folder / "out", *(folder / "out").rglob("*")]}
    command = ["plan", manifest, "--out", out, "--backbone", "tiny"]
    process = subprocess.run([sys.executable, "-c", FINISHED_PLAN, *command], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "1 row: 1 done, 0 to do, 0 rejected, 0 refused, 0 quarantined",
        "pictures: 1 content, 1 style; 0 to inspect",
    ]
    assert {path: os.stat(path).st_mtime_ns for path in [folder / "out", *(folder / "out").rglob("*")]} == times


def test_output_outside_the_roots_is_refused(folder: Path) -> None:
    assert run_nst_plan(folder, "--no-calibrate", NST_ALLOWED_ROOTS=str(folder / "in")).exit_code == 2


def test_refused_input_has_a_line_each_and_exit_code_2(folder: Path) -> None:
    result = run_nst_plan(folder, "--size", "9", "--recipe", "paintrly")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "nst: --recipe: 'paintrly' is not known; did you mean painterly?",
        "nst: --size: 9 is not in 64..8192 pixels",
    ]
