"""A sentinel in place of every password and signature: it must be nowhere where somebody else may read it."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from flows.console import run_flow
from nst_tasks.inputs.options import RunOptions
from tests.support.commands import nst, nst_process
from tests.support.pictures import encode_pattern
from tests.support.prefect_api import find, read_last_run
from tests.support.runs import write_manifest
from tests.support.waiting import wait_until

SECRET = "hunter2-of-no-other-test"


class Site(http.server.BaseHTTPRequestHandler):
    """Pictures on the web, some of which fail in their own way, as their names say."""

    asked: Counter[str]

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/").removesuffix(".png")
        self.asked[f"{self.command} {name}"] += 1
        times = self.asked[f"{self.command} {name}"]
        body = encode_pattern("oil" if name == "oil" else "cat")
        body = body[: len(body) // 2] if name == "torn" else body
        status = {
            "gone": 404,
            "locked": 403,
            "down": 503,
            "flaky": 503 if times == 1 else 200,
            "later": 200 if times == 1 else 503,
        }
        self.send_response(status.get(name, 200))
        self.send_header("Content-Length", "9999" if name == "cut" else str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """Start a web server, and return its host and port."""
    handler = type("Handler", (Site,), {"asked": Counter()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def read_records(api: str, kind: str, flow_run: dict[str, Any], expected: str) -> str:
    """Return all records of a kind that the server has of the flow run, as text, once they contain the `expected` text."""
    level = {kind: {"id" if kind == "flow_runs" else "flow_run_id": {"any_": [flow_run["id"]]}}}

    def look() -> str | None:
        pages: list[list[dict[str, Any]]] = []
        while not pages or pages[-1]:
            pages.append(find(api, kind, offset=sum(map(len, pages)), **level))
        return text if expected in (text := json.dumps(pages)) else None

    return wait_until(look, lambda: f"{expected} is not among the {kind}")


def test_signed_uris_leave_no_trace(prefect_api: str, site: str, tmp_path: Path) -> None:
    names = ("cat", "gone", "locked", "down", "flaky", "later", "torn", "cut")
    style = f"http://ann:{SECRET}@{site}/oil.png?sig={SECRET}"
    rows = [f"http://ann:{SECRET}@{site}/{name}.png?token={SECRET}#{SECRET},{style}," for name in names]
    rows += [f"http://ann:{SECRET}@{site}/cat.png?{SECRET},{style},9", f"s3://ann:{SECRET}@b/../c?{SECRET},{style},"]
    manifest = write_manifest(tmp_path, *rows, header="content,style,size", name="signed.csv")
    out = tmp_path / "out"
    options = ("--out", str(out), "--backbone", "tiny", "--size", "64", "--steps", "1")
    debugging = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG"}
    quick = {"NST_RETRIES": "1", "NST_RETRY_SECONDS": "0"}
    result = nst_process("run", manifest, *options, PREFECT_API_URL=prefect_api, NST_ALLOW_HTTP="1", **debugging, **quick)
    assert "2 succeeded, 6 failed, 2 rejected, 0 skipped of 10 rows" in result.stdout, result.stderr
    assert f"http://{site}/gone.png: does not exist" in result.stderr
    assert SECRET not in result.stdout + result.stderr
    run, _ = read_last_run(prefect_api, "signed", tasks=0)
    for kind, output in (
        ("logs", "gone.png"),
        ("task_runs", "cat x oil"),
        ("flow_runs", "signed.csv"),
        ("artifacts", "gone.png"),
    ):
        assert SECRET not in read_records(prefect_api, kind, run, output)
    leaks = [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    # the one exception: these rows are corrected and submitted again
    assert [path.rpartition("/")[2] for path in leaks] == ["rejected.csv"]
    for command in (["report", str(out)], ["validate", manifest, "--probe"], ["run", manifest, *options, "--dry-run"]):
        ran = nst(*command, NST_ALLOW_HTTP="1")
        assert ran.exit_code == (0 if command[0] == "report" else 1)
        assert SECRET not in ran.output
    assert SECRET.encode() not in (out / "report.html").read_bytes()


class Leaky(LocalFileSystem):
    """A client that fails in an unforeseen way, with its address in the error."""

    protocol = "leaky"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(LocalFileSystem._strip_protocol(path.removeprefix("leaky://")))

    def cat_file(self, path: str, *rest: Any, **more: Any) -> bytes:
        if path.endswith("dog.png"):
            raise RuntimeError(f"GET https://ann:{SECRET}@host/dog.png?token={SECRET}\n{SECRET}")
        return bytes(super().cat_file(path, *rest, **more))


def test_unexpected_error_is_logged_without_secrets(
    flow_api: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.logging.handlers import APILogWorker

    fsspec.register_implementation("leaky", Leaky, clobber=True)
    monkeypatch.setenv("NST_ALLOWED_ROOTS", f"leaky://{pictures}|{tmp_path}")
    write_manifest(pictures, "dog.png,oil.png", header="content,style", name="leaky.csv")
    result = run_flow(f"leaky://{pictures}/leaky.csv", str(tmp_path / "out"), RunOptions(backbone="tiny", size=64, steps=1))
    assert result.report is not None
    assert "unexpected RuntimeError: GET https://host/dog.png" in result.report.failures[0]
    APILogWorker.drain_all(timeout=10)
    run, _ = read_last_run(flow_api, "leaky", tasks=0)
    for kind in ("logs", "task_runs"):
        assert SECRET not in read_records(flow_api, kind, run, "unexpected RuntimeError: GET https://host/dog.png")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert os.environ["NST_ALLOWED_ROOTS"]
