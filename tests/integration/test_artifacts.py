"""What a person sees of a run in the Prefect UI, asked of a real server's API: artifacts, log, and task runs of many pairs."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect import flow, task

from flows import artifacts, fanout
from flows.artifacts import RunReporter
from flows.console import FlowEnd, run_flow
from flows.stylize import stylize_manifest
from flows.task_runners import Workers
from nst_tasks.engine import run_batch
from nst_tasks.inputs.jobs import Batch
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.progress import Progress
from nst_tasks.tasks import MAX_STORE_FAILURES_IN_A_ROW, stylize_batches, with_retries
from tests.support.changes import change_job
from tests.support.commands import nst
from tests.support.jobs import run_into, two_jobs
from tests.support.prefect_api import find, read_last_run
from tests.support.runs import request_of, write_manifest
from tests.support.stores import FlakyFileSystem
from tests.support.waiting import wait_until

ROWS = ("a,cat.png,oil.png,", "b,dog.png,ink.png,", "c,gone.png,oil.png,", "d,cat.png,ink.png,9")


def stylize(pictures: Path, out: Path, name: str, *rows: str, header: str = "id,content,style") -> FlowEnd:
    manifest = write_manifest(pictures, *rows, header=header, name=f"{name}.csv")
    return run_flow(*request_of(pictures, manifest, str(out), size=64, steps=1))


def read_artifacts(api: str, flow_run: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the artifacts of a flow run by type."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in find(api, "artifacts", artifacts={"flow_run_id": {"any_": [flow_run["id"]]}}):
        found.setdefault(one["type"], []).append(one)
    return found


def read_log(api: str, flow_run: dict[str, Any], last: str) -> list[str]:
    """Wait until the flow run's log holds this text, and return the log."""

    def look() -> list[str]:
        found = find(api, "logs", logs={"flow_run_id": {"any_": [flow_run["id"]]}}, sort="TIMESTAMP_ASC")
        lines = [line["message"] for line in found]
        return lines if any(last in line for line in lines) else []

    return wait_until(look)


def test_run_publishes_artifacts_and_log(flow_api: str, pictures: Path, tmp_path: Path) -> None:
    result = stylize(pictures, tmp_path / "out", "Weekly run_2", *ROWS, header="id,content,style,size")
    assert result.report is not None
    flow_run, task_runs = read_last_run(flow_api, "Weekly run_2", tasks=3)
    found = read_artifacts(flow_api, flow_run)
    assert {kind: len(some) for kind, some in found.items()} == {"progress": 1, "image": 2, "table": 1, "markdown": 1}
    assert {one["key"] for some in found.values() for one in some} == {
        "weekly-run-2-progress",
        "weekly-run-2-failures",
        "weekly-run-2-report",
        None,
    }
    (progress,) = found["progress"]
    assert (float(progress["data"]), progress["description"]) == (100.0, "4 of 4 rows done")
    (table,) = found["table"]
    assert table["description"] == "2 failed or rejected rows of 4"
    assert json.loads(table["data"]) == [
        {
            "row": 4,
            "pair": "c",
            "status": "failed",
            "reason": f"{pictures}/gone.png: does not exist",
            "remedy": "check the name",
        },
        {
            "row": 5,
            "pair": "",
            "status": "rejected",
            "reason": "row 5, column size: 9 is below the smallest size, 64",
            "remedy": "give 64 to 8192 or leave it empty",
        },
    ]
    for name, pair in (("cat x oil", "a"), ("dog x ink", "b")):
        (shown,) = (one for one in found["image"] if one["task_run_id"] == task_runs[name]["id"])
        assert shown["description"].startswith(f"**{pair}**: content, style and result; painterly, 64 x 48, ")
        data = shown["data"].removeprefix("data:image/jpeg;base64,")
        assert base64.b64decode(data) == (tmp_path / f"out/thumbnails/{pair}.jpg").read_bytes()
        width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
        assert width > 3 * height  # three pictures side by side
    (report,) = found["markdown"]
    assert result.report.files["report"] in report["data"]
    assert result.report.message in report["data"]
    lines = read_log(flow_api, flow_run, "; report: ")
    assert f"{result.report.message}; report: {result.report.files['report']}" in lines
    assert f"row 4, c: {pictures}/gone.png: does not exist; check the name" in lines
    assert any(line.startswith("4 of 4 rows done: row ") for line in lines)


def test_refused_manifest_shows_problems_with_bounded_message(flow_api: str, pictures: Path, tmp_path: Path) -> None:
    manifest = write_manifest(pictures, *["cat.png,oil.png,9"] * 60, header="content,style,size", name="all rejected.csv")
    state = stylize_manifest(*request_of(pictures, manifest, str(tmp_path / "out")), return_state=True)
    lines = (state.message or "").splitlines()
    assert (state.name, len(lines), lines[-1]) == ("Refused", 51, "and 11 more")
    flow_run, _ = read_last_run(flow_api, "all rejected", tasks=0)
    (table,) = read_artifacts(flow_api, flow_run)["table"]
    assert table["description"] == "refused, nothing ran: 61 problems"
    rows = json.loads(table["data"])
    assert len(rows) == 61
    assert rows[59] == {
        "reason": "row 61, column size: 9 is below the smallest size, 64",
        "remedy": "give 64 to 8192 or leave it empty",
    }


def test_batches_beyond_the_limit_share_task_runs(
    flow_api: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NST_TASK_RUNS", "2")
    monkeypatch.setenv("NST_IMAGE_ARTIFACTS", "3")
    rows = [f"p{k},{('cat', 'dog')[k % 2]}.png,oil.png,{k}" for k in range(10)]
    result = stylize(pictures, tmp_path / "out", "many", *rows, header="id,content,style,seed")
    assert result.message == "10 succeeded, 0 failed, 0 rejected, 0 skipped of 10 rows"
    flow_run, task_runs = read_last_run(flow_api, "many", tasks=3)
    assert set(task_runs) == {"inspect pictures 1-3 of 3", "5 pairs, rows 2 to 6", "5 pairs, rows 7 to 11"}
    assert len(read_artifacts(flow_api, flow_run)["image"]) == 3
    assert any(line.startswith("10 of 10 rows done: 5 succeeded") for line in read_log(flow_api, flow_run, "; report: "))
    assert sorted(path.stem for path in (tmp_path / "out/images").iterdir()) == [f"p{k}" for k in range(10)]


def test_shared_task_run_retries_only_affected_batches(
    flow_api: str, flaky: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NST_TASK_RUNS", "1")
    (pictures / "torn.png").write_bytes((whole := (pictures / "cat.png").read_bytes())[: len(whole) // 2])
    write_manifest(pictures, "a,cat.png,oil.png", "b,dog.png,oil.png", "c,torn.png,oil.png", name="shared.csv")
    FlakyFileSystem.spared.update({"cat.png": 1})  # the inspection's
    FlakyFileSystem.failing.update({"cat.png": 1})
    result = run_flow(*request_of(pictures, f"{flaky}/shared.csv", str(tmp_path / "out"), size=64, steps=1))
    assert result.message == "2 succeeded, 1 failed, 0 rejected, 0 skipped of 3 rows"
    flow_run, task_runs = read_last_run(flow_api, "shared", tasks=2)
    shared = task_runs["3 pairs, rows 2 to 4"]
    assert (shared["run_count"], shared["state_name"]) == (2, "Completed with failures")
    assert shared["state"]["message"].startswith("c: ")
    (progress,) = read_artifacts(flow_api, flow_run)["progress"]
    assert progress["description"] == "3 of 3 rows done"  # each counted once, though b was come by twice


def test_bug_in_one_batch_spares_the_others(flow_api: str, tmp_path: Path) -> None:
    good, bad = two_jobs(tmp_path)
    bad = replace(bad, height=0)  # intake lets none through
    run = run_into(tmp_path / "out")

    @flow(name="defect")
    def shared() -> tuple[list[Outcome], str]:
        share = (Batch((bad,)), Batch((good,)))
        future = with_retries(stylize_batches, run.settings).submit(share, run)
        return future.result(raise_on_failure=False), str(future.state.name)

    outcomes, name = shared()
    assert name == "Completed with failures"
    assert [(o.id, o.status) for o in outcomes] == [("b", Status.FAILED), ("a", Status.SUCCEEDED)]
    assert "unexpected" in outcomes[0].error


def test_of_a_task_run_that_is_lost_each_batch_is_tried_alone(flow_api: str, tmp_path: Path) -> None:
    """As a cluster gives up what its workers died over too often: no pair fails for what another one did."""
    run = run_into(tmp_path / "out", settings=Settings(task_runs=1))
    a, b = two_jobs(tmp_path)
    submitted_shares: list[list[str]] = []

    @task
    def kill() -> None:
        raise RuntimeError("the worker died")

    def submit(shell: Any, parameters: dict[str, Any]) -> Any:
        ids = [job.id for batch in parameters["batches"] for job in batch.jobs]
        submitted_shares.append(ids)
        return kill.submit() if "b" in ids else shell.submit(**parameters)

    @flow(name="lost")
    def lost() -> list[Outcome]:
        return fanout.run_jobs([a, b], run, Workers(submit, 1, 1, out_of_process=False), RunReporter("lost", run, Progress()))

    assert {o.id: o.status for o in lost()} == {"a": Status.SUCCEEDED, "b": Status.FAILED}
    assert submitted_shares == [["a", "b"], ["a"], ["b"]]


def test_task_run_stops_trying_batches_during_an_outage(flow_api: str, flaky: str, pictures: Path, tmp_path: Path) -> None:
    a, _ = two_jobs(pictures)
    away = replace(a, content=replace(a.content, uri=f"{flaky}/content1.png"))
    share = [Batch((change_job(away, id=f"p{k}"),)) for k in range(9)]
    settings = Settings(retries=1, retry_seconds=0, allowed_roots=(flaky, str(tmp_path)))
    run = run_into(tmp_path / "out", settings=settings)
    FlakyFileSystem.failing.update({"content1.png": 1000})

    @flow(name="away")
    def shared() -> list[Outcome]:
        return with_retries(stylize_batches, settings).submit(share, run).result(raise_on_failure=False)

    assert [o.status for o in shared()] == [Status.FAILED] * 9  # at the last attempt each is told
    assert 1000 - FlakyFileSystem.failing["content1.png"] == MAX_STORE_FAILURES_IN_A_ROW + 9


def test_last_attempt_fails_only_the_affected_pair(flow_api: str, flaky: str, pictures: Path, tmp_path: Path) -> None:
    a, b = two_jobs(pictures)
    away = replace(a, content=replace(a.content, uri=f"{flaky}/content1.png"))
    run = run_into(tmp_path / "out", settings=Settings(retries=0, allowed_roots=(flaky, str(tmp_path))))
    FlakyFileSystem.failing.update({"content1.png": 1000})

    @flow(name="last attempt")
    def together() -> list[Outcome]:
        share = (Batch((away, b)),)
        return with_retries(stylize_batches, run.settings).submit(share, run).result(raise_on_failure=False)

    assert [(o.id, o.status) for o in together()] == [("a", Status.FAILED), ("b", Status.SUCCEEDED)]


def test_lost_task_run_is_recorded_despite_store_errors(flow_api: str, flaky: str, pictures: Path, tmp_path: Path) -> None:
    """What its worker had finished before it was lost stands."""
    settings = Settings(retries=1, retry_seconds=0, allowed_roots=(flaky, str(tmp_path)))
    run, (a, _) = run_into(f"{flaky}/out", settings=settings), two_jobs(pictures)
    run_batch.stylize(Batch((a,)), run)
    FlakyFileSystem.failing.update({"a.json": 1})

    @task
    def kill() -> None:
        raise RuntimeError("the worker died")

    @flow(name="stumble")
    def stumble() -> list[Outcome]:
        workers = Workers(lambda shell, parameters: kill.submit(), 1, 1, out_of_process=False)
        return fanout.run_jobs([a], run, workers, RunReporter("stumble", run, Progress()))

    assert [o.status for o in stumble()] == [Status.SUCCEEDED]


def test_an_api_that_takes_no_artifact_does_not_stop_a_run(
    flow_api: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a patch makes a server refuse artifacts alone."""

    def refuse(**values: Any) -> None:
        raise ConnectionError("https://user:hunter2@api")

    monkeypatch.setattr(artifacts, "create_progress_artifact", refuse)
    monkeypatch.setattr(artifacts, "create_table_artifact", refuse)
    monkeypatch.setattr(artifacts, "create_markdown_artifact", refuse)
    result = stylize(pictures, tmp_path / "out", "mute", "a,cat.png,oil.png")
    assert result.exit_code == 0
    flow_run, _ = read_last_run(flow_api, "mute", tasks=2)
    lines = read_log(flow_api, flow_run, "artifact")
    assert "the Prefect API did not take an artifact (ConnectionError); the run goes on" in lines
    assert not any("hunter2" in line for line in lines)


def test_terminal_shows_a_hundred_failures_and_a_count(flow_api: str, pictures: Path, tmp_path: Path) -> None:
    manifest = write_manifest(pictures, *(f"gone{k}.png,oil.png" for k in range(103)), header="content,style")
    ran = nst("run", manifest, "--out", str(tmp_path / "out"), "--backbone", "tiny")
    assert ran.exit_code == 1
    told = [line for line in ran.stderr.splitlines() if "does not exist" in line]
    assert len(told) == 100
    assert "and 3 more: run.json has them all" in ran.stderr
