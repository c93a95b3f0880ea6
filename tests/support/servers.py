"""Real servers on loopback: Prefect, S3 (SeaweedFS) and a Dask cluster, each a process of its own on free ports."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import TIMEOUT


def find_free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on, below those from which systems take the ports of clients."""
    free: list[int] = []
    for port in random.SystemRandom().sample(range(15_000, 32_000), 1_000):
        with suppress(OSError), closing(socket.create_server(("127.0.0.1", port))):
            free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError("no ports are free")


def answers(url: str) -> bool:
    """Return whether a server answers there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@dataclass
class Server:
    """A server process that answers at `url`; once killed, it can be started again as it was."""

    command: list[str]
    environment: Mapping[str, str]
    url: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, env=dict(self.environment), stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + TIMEOUT
        while not answers(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.command[0]} did not come up:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def end(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it as Ctrl-C does, or by another signal."""
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def run_server(command: list[str], environment: Mapping[str, str], url: str, log: Path) -> Iterator[Server]:
    """Run a server, and yield it once it answers."""
    running = Server(command, environment, url, log)
    try:
        running.start()
        yield running
    finally:
        running.end()


def read_shipped_settings() -> dict[str, str]:
    """Return the settings of a Prefect server that come with the project."""
    lines = (Path(__file__).parents[2] / "flows" / "prefect-server.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def copy_environment_without_prefect() -> dict[str, str]:
    """Return this process's environment variables without those of Prefect."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def build_own_server_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process that may start a Prefect server of its own, with its home in this folder."""
    own = {"PREFECT_HOME": str(home), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    return copy_environment_without_prefect() | own | more


OWN_SERVER = """
from flows import prefect_server
with prefect_server.start_in_background():
    pass
"""


def create_prefect_database(folder: Path) -> None:
    """Create a database with its empty tables, by the server that a run starts for itself; servers on it start sooner."""
    environment = build_own_server_environment(folder)
    subprocess.run([sys.executable, "-c", OWN_SERVER], env=environment, capture_output=True, check=True)


@contextmanager
def run_prefect_server(home: Path) -> Iterator[str]:
    """Run a Prefect server with the shipped settings that keeps its data in this folder; yield the URL of its API."""
    (port,) = find_free_ports(1)
    environment = {**os.environ, **read_shipped_settings(), "PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with run_server(command, environment, f"http://127.0.0.1:{port}/api/health", home / "log"):
        yield f"http://127.0.0.1:{port}/api"


@dataclass(frozen=True)
class S3:
    """How to reach an S3 server: its endpoint, and the environments of its owner and of one who may only read."""

    endpoint: str
    environment: dict[str, str]
    reader: dict[str, str]


@contextmanager
def run_s3_server(weed: str, folder: Path) -> Iterator[tuple[S3, Server]]:
    """Run a SeaweedFS that keeps its data in this folder; yield it once it accepts objects."""
    actions = {"nst": ["Admin", "Read", "List", "Tagging", "Write"], "reader": ["Read", "List"]}
    keys = {name: {"accessKey": f"{name}-access", "secretKey": f"{name}-secret-key-of-the-tests"} for name in actions}
    identities = [{"name": name, "credentials": [keys[name]], "actions": actions[name]} for name in actions]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    port, *others = find_free_ports(8)
    parts = ("master", "volume", "filer")
    names = [*(f"{part}.port{kind}" for part in parts for kind in ("", ".grpc")), "s3.port.grpc"]
    command = [
        weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-s3", f"-s3.port={port}",
        f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=100", "-master.telemetry=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}={other}" for name, other in zip(names, others, strict=True)),
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    owner, reader = (
        {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": keys[name]["accessKey"],
            "AWS_SECRET_ACCESS_KEY": keys[name]["secretKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name in actions
    )
    with run_server(command, os.environ, endpoint, folder / "log") as running:
        wait_for_objects(owner)
        yield S3(endpoint, owner, reader), running


def wait_for_objects(environment: Mapping[str, str]) -> None:
    """Wait until the S3 server of this environment accepts objects, which it does some time after it answers."""
    import s3fs

    store = s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": environment["AWS_DEFAULT_REGION"]},
        skip_instance_cache=True,
    )
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            if not store.exists("ready"):
                store.mkdir("ready")
            store.pipe_file("ready/object", b"taken")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@dataclass(frozen=True)
class DaskCluster:
    """A Dask scheduler's address, and its worker processes as on other machines."""

    address: str
    scheduler: Server
    workers: list[subprocess.Popen[bytes]]


@contextmanager
def run_dask_cluster(folder: Path, workers: int, environment: Mapping[str, str]) -> Iterator[DaskCluster]:
    """Run a scheduler and workers that each announce one GPU and accept two tasks at a time."""
    port, status = find_free_ports(2)
    program, address = [sys.executable, "-m", "dask"], f"tcp://127.0.0.1:{port}"
    command = [*program, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", f"127.0.0.1:{status}"]
    started: list[subprocess.Popen[bytes]] = []
    with run_server(command, environment, f"http://127.0.0.1:{status}/health", folder / "scheduler") as scheduler:
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
