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


def test_what_is_left_follows_from_the_pace_so_far(tmp_path: Path) -> None:
    whole = Progress(pairs=7, pairs_done=7, work=900, work_done=900)  # with another run, before
    watch = whole.create_part()
    follower = RunReporter("m", run_into(tmp_path), watch, started_at=time.monotonic() - 60)
    assert (follower.compute_percent(), follower.estimate_seconds_left()) == (0.0, None)
    watch.add(pairs=4, work=400)
    assert follower.describe_progress() == "0 of 4 rows done"
    watch.add(work_done=100)
    watch.mark_done(["a"])
    watch.mark_done(["a"])
    assert whole.pairs_done == 8
    assert follower.compute_percent() == 25.0
    assert follower.estimate_seconds_left() == pytest.approx(180, rel=0.05)
    assert follower.describe_progress() == "1 of 4 rows done, about 3 min left"
    watch.add(work_done=500)  # steps gone through twice
    assert follower.compute_percent() == 100.0
    assert follower.describe_progress() == "1 of 4 rows done, about 0 s left"
    failed = RunReporter("m", run_into(tmp_path), Progress(pairs=2, pairs_done=2, work=400, work_done=100))
    assert failed.compute_percent() == 100.0  # before half of its steps
    done = RunReporter("m", run_into(tmp_path), Progress())
    done.progress.add(pairs=2, pairs_done=1)  # nothing to compute
    assert done.compute_percent() == 50.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "about 0 s"), (89, "about 89 s"), (600, "about 10 min"), (9000, "about 2.5 h")]
)
def test_durations_are_told_roughly(seconds: float, words: str) -> None:
    assert format_rough_duration(seconds) == words


def test_keys_of_artifacts_are_what_the_api_takes() -> None:
    assert build_artifact_key("Q3 Töpfe_(final)", "report") == "q3-t-pfe-final-report"
    assert build_artifact_key("…", "report") == "report"


def test_text_from_outside_is_shown_and_not_obeyed() -> None:
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
    shown = artifacts._render_report(name, report)
    assert "\\<img src=x" in shown
    assert "<img" not in shown.replace("\\<", "")
    assert "](" not in shown
    assert "| report | `` /o/'a\\|b'.html `` |" in shown
