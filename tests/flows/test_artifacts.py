"""Texts, keys and numbers of the artifacts of a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flows import artifacts
from flows.artifacts import RunReporter, build_artifact_key, format_rough_duration
from nst_tasks.outputs.outcome import Status
from nst_tasks.outputs.report import Report
from nst_tasks.progress import Progress
from tests.support.jobs import run_into


def test_time_left_follows_from_the_pace(tmp_path: Path) -> None:
    run_progress = Progress(pairs=7, pairs_done=7, work=900, work_done=900)  # pairs of an earlier run
    part = run_progress.create_part()
    reporter = RunReporter("m", run_into(tmp_path), part, started_at=time.monotonic() - 60)
    assert (reporter.compute_percent(), reporter.estimate_seconds_left()) == (0.0, None)
    part.add(pairs=4, work=400)
    assert reporter.describe_progress() == "0 of 4 rows done"
    part.add(work_done=100)
    part.mark_done(["a"])
    part.mark_done(["a"])
    assert run_progress.pairs_done == 8
    assert reporter.compute_percent() == 25.0
    assert reporter.estimate_seconds_left() == pytest.approx(180, rel=0.05)
    assert reporter.describe_progress() == "1 of 4 rows done, about 3 min left"
    part.add(work_done=500)  # repeated steps
    assert reporter.compute_percent() == 100.0
    assert reporter.describe_progress() == "1 of 4 rows done, about 0 s left"
    failed_reporter = RunReporter("m", run_into(tmp_path), Progress(pairs=2, pairs_done=2, work=400, work_done=100))
    assert failed_reporter.compute_percent() == 100.0  # before half of its steps
    idle_reporter = RunReporter("m", run_into(tmp_path), Progress())
    idle_reporter.progress.add(pairs=2, pairs_done=1)  # nothing to compute
    assert idle_reporter.compute_percent() == 50.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "about 0 s"), (89, "about 89 s"), (600, "about 10 min"), (9000, "about 2.5 h")]
)
def test_durations_are_rounded(seconds: float, words: str) -> None:
    assert format_rough_duration(seconds) == words


def test_artifact_keys_are_valid_for_the_api() -> None:
    assert build_artifact_key("Q3 Töpfe_(final)", "report") == "q3-t-pfe-final-report"
    assert build_artifact_key("…", "report") == "report"


def test_foreign_text_is_escaped() -> None:
    name = "<img src=x onerror=alert(1)> [a](javascript:b) `c` |d|"
    report = Report(
        run_id="r",
        out="/o",
        rows=1,
        counts={str(status): 0 for status in Status},
        failures=(),
        flagged=(name,),
        warnings=(),
        seconds=1.0,
        files={"report": "/o/`a|b`.html"},
        manifest_sha256="",
    )
    text = artifacts._render_report(name, report)
    assert "\\<img src=x" in text
    assert "<img" not in text.replace("\\<", "")
    assert "](" not in text
    assert "| report | `` /o/'a\\|b'.html `` |" in text
