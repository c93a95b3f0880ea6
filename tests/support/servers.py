"""Servers on loopback, pictures and the command line, for tests that need the real thing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nst_tasks.images import codec

PATTERNS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cat": lambda y, x: np.stack([x, y, 0.5 + 0.0 * x], -1),
    "dog": lambda y, x: np.stack([0.5 + 0.5 * np.sin(9 * x), y, 1 - x], -1),
    "oil": lambda y, x: np.stack([0.5 + 0.5 * np.sin(40 * (x + y)), 0.5 + 0.5 * np.sin(31 * y), 0.3 + 0.0 * x], -1),
    "ink": lambda y, x: np.repeat((np.sin(50 * x * y) > 0)[..., None].astype(float), 3, -1),
}


def picture(name: str, height: int = 72, width: int = 96) -> bytes:
    """A PNG with a pattern of its own by name: two contents (cat, dog), two styles (oil, ink)."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return codec.encode(PATTERNS[name](y, x).astype(np.float32), None, "png", {})


def answers(url: str) -> bool:
    """Whether a server answers there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@dataclass
class Server:
    """A server process that answers at `url`, ended by its own pid; once killed, it can be started again as it was."""

    command: list[str]
    environment: Mapping[str, str]
    url: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, env=dict(self.environment), stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        until = time.monotonic() + 120
        while not answers(self.url):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.command[0]} did not come up:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)

    def end(self, number: signal.Signals = signal.SIGINT) -> None:
        """As Ctrl-C would, or by another signal."""
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def server(command: list[str], environment: Mapping[str, str], url: str, log: Path) -> Iterator[Server]:
    """A running server."""
    running = Server(command, environment, url, log)
    try:
        running.start()
        yield running
    finally:
        running.end()


def shipped_settings() -> dict[str, str]:
    """Those of a Prefect server that come with the project."""
    lines = (Path(__file__).parents[2] / "flows" / "prefect-server.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


MadeOnce = Callable[[str, Callable[[Path], object]], Path]
"""The fixture `made_once`: a folder's name and what fills it -> the folder."""


def prefect_database(folder: Path) -> None:
    """A Prefect server's database with its tables and nothing in them, which take a new server longer than all of its start."""
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(command, env={**os.environ, "PREFECT_HOME": str(folder)}, capture_output=True, check=True)


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """The API of a real Prefect server with the shipped settings that keeps what it knows in this folder."""
    port = free_ports(1)[0]
    environment = {**os.environ, **shipped_settings(), "PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server(command, environment, f"http://127.0.0.1:{port}/api/health", home / "log"):
        yield f"http://127.0.0.1:{port}/api"


@dataclass(frozen=True)
class S3:
    """A real S3 server's endpoint, and environments under which clients find it: as its owner, and as one who may only read."""

    endpoint: str
    environment: dict[str, str]
    reader: dict[str, str]
    server: Server


@contextmanager
def s3_server(weed: str, folder: Path) -> Iterator[S3]:
    """A SeaweedFS that keeps its data in this folder and takes objects already."""
    actions = {"nst": ["Admin", "Read", "List", "Tagging", "Write"], "reader": ["Read", "List"]}
    keys = {name: {"accessKey": f"{name}-access", "secretKey": f"{name}-secret-key-of-the-tests"} for name in actions}
    identities = [{"name": name, "credentials": [keys[name]], "actions": actions[name]} for name in actions]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    port, *others = free_ports(8)
    parts = ("master", "volume", "filer")
    names = [*(f"{part}.port{kind}" for part in parts for kind in ("", ".grpc")), "s3.port.grpc"]
    command = [
        weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-s3", f"-s3.port={port}",
        f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=100", "-master.telemetry=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}={other}" for name, other in zip(names, others, strict=True)),
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    whole, reader = (
        {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": keys[name]["accessKey"],
            "AWS_SECRET_ACCESS_KEY": keys[name]["secretKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name in actions
    )
    with server(command, os.environ, endpoint, folder / "log") as running:
        until_objects_are_taken(whole)
        yield S3(endpoint, whole, reader, running)


def until_objects_are_taken(environment: Mapping[str, str]) -> None:
    """Wait until the S3 server that answers under this environment takes objects as well."""
    import s3fs

    store = s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": environment["AWS_DEFAULT_REGION"]},
        skip_instance_cache=True,
    )
    until = time.monotonic() + 60
    while True:
        try:
            if not store.exists("ready"):
                store.mkdir("ready")
            store.pipe_file("ready/object", b"taken")
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def answered(request: urllib.request.Request) -> Any:
    """What an API answers in JSON; one that is too busy (503, for a locked database) is asked again, as its client does."""
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > until:
                raise
            time.sleep(0.5)


def ask(api: str, kind: str, question: dict[str, Any]) -> list[dict[str, Any]]:
    """Filter flow runs or task runs by the server's REST API."""
    request = urllib.request.Request(
        f"{api}/{kind}/filter", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    return answered(request)  # type: ignore[no-any-return]


def last_run(api: str, name: str, tasks: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The newest flow run of this name and its task runs by name, once the server has recorded that many."""
    until = time.monotonic() + 60
    while True:
        flow_runs = ask(api, "flow_runs", {"flow_runs": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC"})
        if flow_runs:
            newest = flow_runs[0]
            found = ask(api, "task_runs", {"task_runs": {"flow_run_id": {"any_": [newest["id"]]}}})
            # the server records a task run before the state that it is in
            ended = [run for run in found if run["state"] and run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
            if len(ended) >= tasks or time.monotonic() > until:
                return newest, {run["name"]: run for run in found}
        time.sleep(0.5)


def nst(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command `nst` as a process of its own, with further environment variables."""
    command = [str(Path(sys.executable).parent / "nst"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False)


@dataclass(frozen=True)
class DaskCluster:
    """A Dask scheduler's address and its worker processes, as they would run on other machines."""

    address: str
    scheduler: Server
    workers: list[subprocess.Popen[bytes]]


@contextmanager
def dask_cluster(folder: Path, workers: int, environment: Mapping[str, str]) -> Iterator[DaskCluster]:
    """A scheduler and workers that each announce one GPU and would take two tasks at a time."""
    port, status = free_ports(2)
    program, address = [sys.executable, "-m", "dask"], f"tcp://127.0.0.1:{port}"
    command = [*program, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", f"127.0.0.1:{status}"]
    started: list[subprocess.Popen[bytes]] = []
    with server(command, environment, f"http://127.0.0.1:{status}/health", folder / "scheduler") as scheduler:
        options = ["--no-nanny", "--no-dashboard", "--nthreads", "2", "--resources", "GPU=1", "--local-directory", str(folder)]
        try:
            for number in range(workers):
                with (folder / f"worker-{number}").open("wb") as log:
                    command = [*program, "worker", address, "--host", "127.0.0.1", *options]
                    started.append(subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log))
            yield DaskCluster(address, scheduler, started)
        finally:
            for process in started:
                process.kill()
                process.wait()
