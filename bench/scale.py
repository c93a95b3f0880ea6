"""Overhead of a manifest with very many tiny pairs, and whether it stays constant over the run.

    .venv/bin/python -m bench scale [PAIRS] [--plain]

Runs PAIRS pairs (10,000) at 64 px with one step on the tiny backbone, by `nst run` against a separate Prefect server with the
settings of `flows/prefect-server.env`, or with Prefect's defaults (`--plain`). Prints, for each quarter of the run, pairs per
second and the peak resident memory of client and server; then the size of the database, the delay before the next flow starts,
and the time of the same command when all is done. PREFECT_SERVER_DATABASE_CONNECTION_URL, if set, names the server's database.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from bench.processes import NST, ROOT, create_parser
from nst_tasks.images import codec

NEXT_FLOW = """
import time
from prefect import flow

@flow
def next_flow():
    return time.perf_counter() - began

input()  # imports are not what is measured
began = time.perf_counter()
print(next_flow())
"""


def read_server_settings() -> dict[str, str]:
    """Return the settings in `flows/prefect-server.env`."""
    lines = (ROOT / "flows" / "prefect-server.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def write_manifest(folder: Path, pairs: int) -> Path:
    """Write a manifest of this many pairs of small images, all pairs different, and return its path."""
    side = math.ceil(math.sqrt(pairs))
    generator = np.random.default_rng(0)
    for kind in ("content", "style"):
        for k in range(side):
            colors = np.kron(generator.random((8, 8, 3)), np.ones((8, 8, 1))).astype(np.float32)  # (64, 64, 3)
            (folder / f"{kind}{k}.png").write_bytes(codec.encode(colors, None, "png", {}))
    rows = [f"{k},content{k // side}.png,style{k % side}.png,tf-tutorial\n" for k in range(pairs)]
    (folder / "pairs.csv").write_text("id,content,style,recipe\n" + "".join(rows))
    return folder / "pairs.csv"


def start_server(folder: Path, settings: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """Start a Prefect server, wait until it answers, and return its process and the URL of its API.

    Raises:
        SystemExit: The server ended before it answered.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **settings, "PREFECT_HOME": str(folder), "PREFECT_SERVER_API_PORT": str(port)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    api = f"http://127.0.0.1:{port}/api"
    while True:
        try:
            urllib.request.urlopen(f"{api}/health", timeout=2).close()
            return server, api
        except OSError:
            if server.poll() is not None:
                raise SystemExit((folder / "log").read_text()) from None
            time.sleep(0.2)


def measure_resident_mb(pid: int) -> float:
    """Return the resident memory of a process and its children, in MB."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total / 1e6


class Sample(NamedTuple):
    """State of a run at one moment: seconds since its start, pairs done, and resident memory of client and server in MB."""

    seconds: float
    pairs: int
    client_mb: float
    server_mb: float


def record_progress(client: subprocess.Popen[bytes], server: int, outcomes: Path) -> list[Sample]:
    """Record the progress of a run about once a second, until the client ends.

    Args:
        server: Process id of the server.
        outcomes: Folder of the run's outcome markers.
    """
    start, records = time.perf_counter(), []
    while client.poll() is None:
        pairs = len(os.listdir(outcomes)) if outcomes.is_dir() else 0
        seconds = time.perf_counter() - start
        records.append(Sample(seconds, pairs, measure_resident_mb(client.pid), measure_resident_mb(server)))
        time.sleep(1.0)
    return records


def print_quarters(records: Sequence[Sample], pairs: int) -> None:
    """Print pace and peak memory of each quarter of the pairs; the clock starts with the first pair that is done."""
    previous = next(record for record in records if record.pairs)
    for quarter in range(1, 5):
        part = [record for record in records if previous.pairs <= record.pairs <= pairs * quarter / 4] or [previous]
        pace = (part[-1].pairs - previous.pairs) / max(part[-1].seconds - previous.seconds, 1e-9)
        print(
            f"  quarter {quarter}: {pace:5.1f} pairs/s, client {max(record.client_mb for record in part):5.0f} MB, "
            f"server {max(record.server_mb for record in part):5.0f} MB"
        )
        previous = part[-1]


def main(arguments: Sequence[str]) -> None:
    """Measure and print the results."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("pairs", type=int, nargs="?", default=10_000)
    parser.add_argument("--plain", action="store_true", help="with Prefect's default settings")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile() as errors:  # one line per flagged pair
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "prefect").mkdir()
        manifest, out = write_manifest(folder / "in", args.pairs), folder / "out"
        server, api = start_server(folder / "prefect", {} if args.plain else read_server_settings())
        environment = {**os.environ, "PREFECT_API_URL": api, "DO_NOT_TRACK": "1"}
        run = [NST, "run", str(manifest), "--out", str(out), "--backbone", "tiny", "--size", "64", "--steps", "1"]
        try:
            start = time.perf_counter()
            next_flow = subprocess.Popen(
                [sys.executable, "-c", NEXT_FLOW],
                env={**environment, "PREFECT_LOGGING_LEVEL": "ERROR"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            client = subprocess.Popen(run, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
            records = record_progress(client, server.pid, out / "outcomes")
            seconds = time.perf_counter() - start
            delay, _ = next_flow.communicate("\n")
            print(f"{args.pairs} pairs in {seconds:.0f} s, exit code {client.returncode}")
            print_quarters(records, args.pairs)
            files = list((folder / "prefect").glob("prefect.db*"))
            if files:
                print(f"database {sum(file.stat().st_size for file in files) / 1e6:.0f} MB")
            print(f"the next flow began after {float(delay):.1f} s")
            start = time.perf_counter()
            rerun = subprocess.run(run, env=environment, stdout=subprocess.DEVNULL, stderr=errors, check=False)
            print(f"the same command again: {time.perf_counter() - start:.0f} s, exit code {rerun.returncode}")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
