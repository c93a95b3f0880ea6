"""A served night on real servers: an inbox on S3, a schedule's run by the API, an alert, a ledger; and what a signal leaves."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import s3fs
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from tests.support.commands import NST, nst
from tests.support.pictures import encode_pattern
from tests.support.prefect_api import call, find, wait_for_end
from tests.support.proxy import Fault, proxy
from tests.support.servers import S3
from tests.support.waiting import TIMEOUT, wait_until

ROOT = Path(__file__).parents[2]
BUCKET = "nst-nightly"
TINY = {"backbone": "tiny", "size": 64, "steps": 1}


class Receiver(http.server.BaseHTTPRequestHandler):
    """Where alerts go."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.received.append(body.decode())  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(s3: S3) -> s3fs.S3FileSystem:
    found = s3fs.S3FileSystem(
        key=s3.environment["AWS_ACCESS_KEY_ID"],
        secret=s3.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=s3.endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    found.mkdir(BUCKET)
    for name in ("cat", "dog", "oil", "ink"):
        found.pipe_file(f"{BUCKET}/inbox/pictures/{name}.png", encode_pattern(name))
    return found


def objects(store: s3fs.S3FileSystem, folder: str) -> dict[str, tuple[str, str]]:
    """Every object below a folder, with its content's mark and the time it was written."""
    found = store.find(f"{BUCKET}/{folder}", detail=True)
    return {
        name.removeprefix(f"{BUCKET}/{folder}/"): (entry["ETag"], str(entry["LastModified"]))
        for name, entry in found.items()
        if entry["type"] == "file" and not name.endswith("/")
    }


def list_child_runs(url: str, run: str) -> dict[str, dict[str, Any]]:
    found = find(url, "flow_runs", flow_runs={"parent_flow_run_id": {"any_": [run]}})
    return {child["name"]: child for child in found}


def alerts(url: str, folder: Path, to: str) -> list[str]:
    """Create the automations of docs/automations as the documentation says, and return their ids."""
    from prefect.blocks.webhook import Webhook
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        block = Webhook(method="POST", url=to).save("nst-alerts", overwrite=True)
    file = folder / "alerts.json"
    file.write_text((ROOT / "docs/automations/alerts.json").read_text().replace("BLOCK", str(block)))
    command = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(file)]
    made = subprocess.run(command, env={**os.environ, "PREFECT_API_URL": url}, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return [found["id"] for found in find(url, "automations") if found["name"].startswith("nst: ")]


def wait_for_alerts(url: str, alert_texts: list[str]) -> None:
    """Wait until the server has loaded the automations, some time after it has stored them, by events that one of them sees."""
    sent: list[str] = []

    def send() -> bool:
        sent.append(f"nst.manifest.sent-{len(sent)}")
        resource = {"prefect.resource.id": sent[-1], "prefect.resource.name": sent[-1], "nst.result": "failed"}
        event = {"id": str(uuid4()), "event": "nst.manifest.completed", "resource": resource, "payload": {"message": "sent"}}
        call(f"{url}/events", "POST", [{**event, "occurred": datetime.now(UTC).isoformat()}])
        time.sleep(0.5)  # for the alert to come, or another event is sent
        return any("nst.manifest.sent-" in text for text in alert_texts)

    wait_until(send)


def test_work_pool_gets_both_deployments(flow_api: str, tmp_path: Path) -> None:
    places = {"NST_INBOX": str(tmp_path / "in"), "NST_OUT": str(tmp_path / "out")}
    done = nst("deploy", "--pool", "gpus", **places)
    assert done.exit_code == 2
    assert done.stderr == (
        "nst: --pool: there is no work pool 'gpus'; create it with: prefect work-pool create gpus --type process\n"
    )
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="gpus", type="process"))
        done = nst("deploy", "--pool", "gpus", "--image", "nst:1", **places)
        assert "--image: the work pool 'gpus' starts no containers" in done.stderr
        done = nst("deploy", "--pool", "gpus", "--precision", "mixed", "--plateau", "0.5", **places)
        assert done.stdout == "nightly/nightly on gpus\nstylize-manifest/stylize-manifest on gpus\n", done.stderr
        registered = client.read_deployment_by_name("nightly/nightly")
        assert (registered.work_pool_name, registered.entrypoint) == ("gpus", "flows.nightly.nightly")
        options = registered.parameters["options"]
        assert [options[name] for name in ("precision", "plateau", "runner")] == ["mixed", 0.5, "threads"]
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)  # the next test serves them


def test_a_served_night(
    prefect_api: str, s3: S3, store: s3fs.S3FileSystem, receiver: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    store.pipe_file(f"{BUCKET}/inbox/good.csv", b"id,content,style\na,pictures/cat.png,pictures/oil.png\n")
    store.pipe_file(f"{BUCKET}/inbox/broken.csv", b"content,stile\npictures/cat.png,pictures/oil.png\n")
    inbox = objects(store, "inbox")
    picture_requests = 0

    def decide(method: str, path: str) -> Fault | None:
        nonlocal picture_requests
        picture_requests += method == "GET" and path.partition("?")[0].endswith("/cat.png")
        return Fault.INTERNAL_ERROR if method == "GET" and "/cat.png" in path and 2 <= picture_requests <= 4 else None

    made: list[str] = []
    with proxy(s3.endpoint, decide) as way:
        environment = {
            **os.environ,
            **s3.environment,
            "AWS_ENDPOINT_URL": way.endpoint,
            "AWS_MAX_ATTEMPTS": "1",
            "PREFECT_API_URL": prefect_api,
            "PREFECT_HOME": str(tmp_path / "home"),
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "NST_INBOX": f"s3://{BUCKET}/inbox",
            "NST_OUT": f"s3://{BUCKET}/out",
            "NST_TIMEZONE": "Europe/Berlin",
            "NST_RETRY_SECONDS": "0",
        }
        command = [NST, "serve", "--precision", "mixed", "--plateau", "0.5"]
        log = tmp_path / "log"
        with log.open("wb") as to:
            serve_process = subprocess.Popen(command, env=environment, stdout=to, stderr=to, cwd=tmp_path)
        try:
            made += alerts(prefect_api, tmp_path, f"http://127.0.0.1:{receiver.server_address[1]}/")
            assert len(made) == 3
            wait_for_alerts(prefect_api, receiver.received)  # type: ignore[attr-defined]
            _run_two_nights(prefect_api, store, receiver, inbox, serve_process, log)
        finally:
            if serve_process.poll() is None:
                serve_process.kill()
            serve_process.wait()
            for automation in made:
                call(f"{prefect_api}/automations/{automation}", "DELETE")


def _run_two_nights(
    url: str,
    store: s3fs.S3FileSystem,
    receiver: http.server.ThreadingHTTPServer,
    inbox: dict[str, tuple[str, str]],
    serve_process: subprocess.Popen[bytes],
    log: Path,
) -> None:
    def deployment() -> dict[str, Any] | None:
        assert serve_process.poll() is None, log.read_text()
        found = find(url, "deployments", deployments={"name": {"any_": ["nightly"]}})
        return found[0] if found else None

    nightly = wait_until(deployment)
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert nightly["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    options = nightly["parameters"]["options"]
    assert (options["precision"], options["plateau"]) == ("mixed", 0.5)
    with pytest.raises(urllib.error.HTTPError, match="409"):  # the form's own check
        call(f"{url}/deployments/{nightly['id']}/create_flow_run", "POST", {"parameters": {"options": {"backbone": "vgg91"}}})

    def trigger() -> str:
        body = {"parameters": {"options": {**options, **TINY}}}
        run = call(f"{url}/deployments/{nightly['id']}/create_flow_run", "POST", body)
        return str(run["id"])

    # --- a night ---
    night = trigger()
    state = wait_for_end(url, night)["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed with failures")
    assert state["message"] == "2 manifests: 1 good, 0 with failures, 1 refused, 0 failed, 0 unchanged"
    runs = list_child_runs(url, night)
    assert {name: run["state_name"] for name, run in runs.items()} == {"good": "Completed", "broken": "Refused"}
    pair = wait_until(
        lambda: [
            run
            for run in find(url, "task_runs", task_runs={"flow_run_id": {"any_": [runs["good"]["id"]]}})
            if run["name"] == "cat x oil" and run["state_type"] == "COMPLETED"
        ]
    )
    assert pair[0]["run_count"] > 1  # the store failed for the moment
    shown = find(url, "artifacts", artifacts={"flow_run_id": {"any_": [night]}})
    assert [artifact["key"] for artifact in shown] == ["nightly"]
    assert "| good.csv | good | 1 succeeded" in shown[0]["data"]
    assert f"/runs/flow-run/{runs['broken']['id']})" in shown[0]["data"]
    kinds = {
        name: sorted(one["type"] for one in find(url, "artifacts", artifacts={"flow_run_id": {"any_": [run["id"]]}}))
        for name, run in runs.items()
    }
    assert kinds == {"good": ["image", "markdown", "progress"], "broken": ["table"]}
    alert_texts: list[str] = receiver.received  # type: ignore[attr-defined]
    wait_until(
        lambda: [text for text in alert_texts if f"nst: s3://{BUCKET}/inbox/broken.csv: refused, manifest s3://" in text]
    )
    assert not [text for text in alert_texts if f"nst: s3://{BUCKET}/inbox/good.csv" in text]

    # --- what it left ---
    assert objects(store, "inbox") == inbox
    out = objects(store, "out")
    entries = {
        name.split("/")[1]: json.loads(store.cat_file(f"{BUCKET}/out/{name}")) for name in out if name.startswith("_ledger/")
    }
    assert {file: (e["result"], e["settled"]) for file, e in entries.items()} == {
        "good.csv": ("good", True), "broken.csv": ("refused", True),
    }  # fmt: skip
    assert entries["good.csv"]["flow_run_id"] == runs["good"]["id"]
    assert f"good/runs/{entries['good.csv']['run_id']}/report.html" in out
    assert {"good/images/a.png", "good/outcomes/a.json", "good/history/a.parquet"} <= set(out)
    assert not [name for name in out if name.startswith("broken/")]

    # --- the next one runs only what is new, and is asked to stop ---
    store.pipe_file(
        f"{BUCKET}/inbox/long.csv", b"content,style,recipe,steps\npictures/dog.png,pictures/ink.png,tf-tutorial,90000\n"
    )
    second = trigger()
    wait_until(lambda: [name for name in objects(store, "out") if name.startswith("long/claims/")])
    assert {*list_child_runs(url, second)} == {"long"}
    child_pids = [int(pid) for pid in subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(serve_process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()]  # fmt: skip
    assert child_pids
    serve_process.send_signal(signal.SIGTERM)
    assert serve_process.wait(TIMEOUT) == 0, log.read_text()
    for pid in child_pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    cancelled_run = wait_for_end(url, second)
    assert cancelled_run["state_name"] == "Cancelled"
    wait_until(lambda: [text for text in alert_texts if f"nst: {cancelled_run['name']}: " in text])
    entry = json.loads(store.cat_file(store.find(f"{BUCKET}/out/_ledger/long.csv")[0]))
    assert (entry["result"], entry["settled"]) == ("interrupted", False)
    left = objects(store, "out")
    assert not [name for name in left if "/claims/" in name]
    assert {name: left[name] for name in out} == out  # nothing of the first night was written again
    assert "Traceback" not in log.read_text()
