"""Questions to a Prefect server's REST API, as the UI asks them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from tests.support.waiting import TIMEOUT, wait_until

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
"""State types of a run that does not go on."""


def call(url: str, method: str = "GET", body: Any = None) -> Any:
    """Send a request with this body as JSON and return the answer; a server that is too busy (503) is asked again."""
    data = None if method == "GET" else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:  # as for a locked database
                raise
            time.sleep(0.2)


def find(api: str, kind: str, **question: Any) -> list[dict[str, Any]]:
    """Return the flow runs, task runs, artifacts, logs or others that the question's filters select."""
    return call(f"{api}/{kind}/filter", "POST", question)  # type: ignore[no-any-return]


def read_last_run(api: str, name: str, tasks: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the newest flow run of this name and its task runs by name, once the server has recorded the end of so many."""

    def look() -> tuple[dict[str, Any], dict[str, dict[str, Any]]] | None:
        flow_runs = find(api, "flow_runs", flow_runs={"name": {"any_": [name]}}, sort="START_TIME_DESC")
        if not flow_runs:
            return None
        task_runs = find(api, "task_runs", task_runs={"flow_run_id": {"any_": [flow_runs[0]["id"]]}})
        # the server records a task run before the state that it is in
        ended = [run for run in task_runs if run["state"] and run["state_type"] in ENDED]
        return (flow_runs[0], {run["name"]: run for run in task_runs}) if len(ended) >= tasks else None

    return wait_until(look, lambda: f"the flow run {name} with {tasks} task runs")


def wait_for_end(api: str, flow_run_id: str) -> dict[str, Any]:
    """Wait until the flow run has ended, and return it."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = call(f"{api}/flow_runs/{flow_run_id}")
        return found if found["state_type"] in ENDED else None

    return wait_until(look)
