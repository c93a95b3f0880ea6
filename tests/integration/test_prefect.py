"""What a person sees in Prefect: names, tags, retries, states and messages, asked of a real server's API."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.console import FlowEnd, run_flow
from flows.fanout import submit_in_window
from nst_tasks.inputs.options import RunOptions
from tests.support.commands import nst, nst_process
from tests.support.prefect_api import read_last_run
from tests.support.runs import request_of, write_manifest
from tests.support.stores import FlakyFileSystem


def stylize(folder: Path | str, name: str, out: Path) -> FlowEnd:
    return run_flow(f"{folder}/{name}.csv", str(out), RunOptions(backbone="tiny", size=64, steps=1))


def test_the_api_shows_names_tags_retries_and_state(flow_api: str, flaky: str, pictures: Path, tmp_path: Path) -> None:
    rows = ("cat.png,oil.png,", "dog.png,ink.png,tf-tutorial", "gone.png,oil.png,")
    write_manifest(pictures, *rows, header="content,style,recipe", name="seen.csv")
    FlakyFileSystem.failing.update({"oil.png": 2})  # fails while being inspected, succeeds at the third attempt
    result = stylize(flaky, "seen", tmp_path / "out")
    assert result.exit_code == 1
    flow_run, task_runs = read_last_run(flow_api, "seen", tasks=3)
    assert flow_run["state_type"] == "COMPLETED"
    assert flow_run["state_name"] == "Completed with failures"
    assert flow_run["state"]["message"] == "2 succeeded, 1 failed, 0 rejected, 0 skipped of 3 rows"
    assert set(task_runs) == {"inspect pictures 1-5 of 5", "cat x oil", "dog x ink"}
    assert task_runs["inspect pictures 1-5 of 5"]["run_count"] == 3
    assert FlakyFileSystem.asked["dog.png"] == 2  # by the inspection, once for all its attempts, and by its pair
    assert task_runs["cat x oil"]["run_count"] == 1
    assert task_runs["cat x oil"]["tags"] == ["painterly"]
    assert task_runs["dog x ink"]["tags"] == ["tf-tutorial"]
    assert task_runs["dog x ink"]["state_type"] == "COMPLETED"


def test_a_name_is_no_template_of_the_tasks_parameters(flow_api: str, pictures: Path, tmp_path: Path) -> None:
    for name in ("a{run}", "b{x"):
        (pictures / f"{name}.png").write_bytes((pictures / "cat.png").read_bytes())
    write_manifest(pictures, "a{run}.png,oil.png", "b{x.png,oil.png", header="content,style", name="braces.csv")
    assert stylize(pictures, "braces", tmp_path / "out").message.startswith("2 succeeded")
    _, task_runs = read_last_run(flow_api, "braces", tasks=3)
    assert {"a{run} x oil", "b{x x oil"} < {*task_runs}


def test_pair_is_retried_after_a_transient_store_failure(flow_api: str, flaky: str, pictures: Path, tmp_path: Path) -> None:
    write_manifest(pictures, "a,cat.png,oil.png", name="again.csv")
    FlakyFileSystem.spared.update({"cat.png": 1})  # the inspection's
    FlakyFileSystem.failing.update({"cat.png": 2})
    assert stylize(flaky, "again", tmp_path / "out").message.startswith("1 succeeded")
    _, task_runs = read_last_run(flow_api, "again", tasks=2)
    assert {name: run["run_count"] for name, run in task_runs.items()} == {"cat x oil": 3, "inspect pictures 1-2 of 2": 1}


def test_lasting_store_failure_fails_its_pair_alone(flow_api: str, flaky: str, pictures: Path, tmp_path: Path) -> None:
    write_manifest(pictures, "a,cat.png,oil.png", "b,dog.png,ink.png", name="away.csv")
    FlakyFileSystem.spared.update({"cat.png": 1})
    FlakyFileSystem.failing.update({"cat.png": 1000})
    result = stylize(flaky, "away", tmp_path / "out")
    assert result.message == "1 succeeded, 1 failed, 0 rejected, 0 skipped of 2 rows"
    assert result.report is not None
    assert "the store failed for the moment" in result.report.failures[0]
    _, task_runs = read_last_run(flow_api, "away", tasks=3)
    assert (task_runs["cat x oil"]["run_count"], task_runs["cat x oil"]["state_type"]) == (11, "FAILED")
    assert task_runs["dog x ink"]["run_count"] == 1


def test_what_stays_wrong_is_not_tried_again(flow_api: str, flaky: str, pictures: Path, tmp_path: Path) -> None:
    """A picture whose header is good and whose pixels are torn passes the inspection and fails in its own task, once."""
    whole = (pictures / "cat.png").read_bytes()
    (pictures / "torn.png").write_bytes(whole[: len(whole) // 2])
    write_manifest(pictures, "torn.png,oil.png", "cat.png,oil.png", header="content,style", name="torn.csv")
    result = stylize(flaky, "torn", tmp_path / "out")
    assert result.message == "1 succeeded, 1 failed, 0 rejected, 0 skipped of 2 rows"
    _, task_runs = read_last_run(flow_api, "torn", tasks=3)
    assert (task_runs["torn x oil"]["run_count"], task_runs["torn x oil"]["state_type"]) == (1, "FAILED")
    assert "damaged" in task_runs["torn x oil"]["state"]["message"]


def test_refused_manifest_fails_the_flow_with_its_sentences(flow_api: str, flaky: str, pictures: Path, tmp_path: Path) -> None:
    """As a deployment would be run: without the command line's own check before."""
    from flows.stylize import stylize_manifest

    write_manifest(pictures, "cat.png,oil.png", header="content,stile", name="refused.csv")
    state = stylize_manifest(*request_of(pictures, f"{flaky}/refused.csv", str(tmp_path / "out")), return_state=True)
    assert (state.is_failed(), state.name) == (True, "Refused")
    assert "did you mean style?" in (state.message or "")
    flow_run, _ = read_last_run(flow_api, "refused", tasks=0)
    assert flow_run["state_name"] == "Refused"


def test_no_more_than_the_window_is_in_flight(flow_api: str) -> None:
    """Ten thousand pairs must not wait in memory and in the queue of the API, nor do workers wait while a result is handled."""
    lock, in_flight, most, submitted = threading.Lock(), 0, 0, 0

    @task
    def pair(number: int) -> int:
        nonlocal in_flight
        time.sleep(0.05)
        with lock:
            in_flight -= 1
        return number * number

    def submit(number: int) -> Any:
        nonlocal in_flight, most, submitted
        with lock:
            submitted += 1
            in_flight += 1
            most = max(most, in_flight)
        return pair.submit(number)

    @flow
    def fan_out() -> list[tuple[int, int]]:
        results = []
        for number, future in submit_in_window(range(12), submit, window=3):
            results.append((number, future.result()))
            assert submitted == min(len(results) + 3, 12)
        return results

    assert sorted(fan_out()) == [(number, number * number) for number in range(12)]
    assert most == 3


def test_without_a_server_the_run_starts_its_own(
    create_prefect_home: Callable[[], Path], pictures: Path, tmp_path: Path
) -> None:
    home = create_prefect_home()
    manifest = write_manifest(pictures, "a,cat.png,oil.png")
    options = ("--out", str(tmp_path / "out"), "--backbone", "tiny", "--size", "64", "--steps", "1")
    result = nst_process("run", manifest, *options, PREFECT_HOME=str(home))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Completed: 1 succeeded")
    assert (tmp_path / "out/images/a.png").exists()
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        runs = dict(database.execute("SELECT name, state_name FROM task_run"))
        states = [state for (state,) in database.execute("SELECT type FROM task_run_state")]
        artifacts = [kind for (kind,) in database.execute("SELECT type FROM artifact")]
        (events,) = database.execute("SELECT count(*) FROM events").fetchone()
    assert runs == {"inspect pictures 1-2 of 2": "Completed", "cat x oil": "Completed"}
    assert Counter(states) == dict.fromkeys(("PENDING", "RUNNING", "COMPLETED"), 2)
    assert sorted(artifacts) == ["markdown", "progress"]  # pictures are for a server with a UI
    assert events == 0  # they would never be viewed: keeping them takes time for each pair


def test_silent_api_is_one_sentence_and_exit_code_2(pictures: Path, tmp_path: Path) -> None:
    manifest, silent_url = write_manifest(pictures, "a,cat.png,oil.png"), "http://127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: silent_url}):
        result = nst("run", manifest, "--out", str(tmp_path / "out"), PREFECT_API_URL=silent_url)
    assert result.exit_code == 2
    assert "nst: PREFECT_API_URL: " in result.stderr
