"""An undisturbed run, to compare the others with, and a way to an S3 server on which things can happen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.proxy import Proxy, proxy
from tests.support.servers import S3, Server, run_s3_server
from tests.support.session import make_once
from tests.support.survival import run_inputs, write_inputs


@pytest.fixture(scope="session")
def calm(prefect_api: str, session_folder: Path) -> str:
    """Return the output of an undisturbed run of the manifest of `survival`."""

    def make(folder: Path) -> None:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: prefect_api}):
            result = run_inputs(write_inputs(str(folder / "in")), str(folder / "out"))
        assert result.exit_code == 0, result.message

    return str(make_once(session_folder, "calm", make) / "out")


@contextmanager
def open_way(s3: S3) -> Iterator[Proxy]:
    """Put a proxy without faults before the S3 server, point the environment to it, and create the bucket nst-faults.

    Clients of another server are forgotten before and after; to create one takes half a second.
    """
    import s3fs

    with proxy(s3.endpoint, lambda method, path: None) as proxy_server, pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**s3.environment, "AWS_ENDPOINT_URL": proxy_server.endpoint}.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        with suppress(FileExistsError):
            s3fs.S3FileSystem().mkdir("nst-faults")
        yield proxy_server
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def module_way(s3: S3) -> Iterator[Proxy]:
    """Put one proxy for all tests of a file, so that they share its clients."""
    with open_way(s3) as proxy_server:
        yield proxy_server


@pytest.fixture
def way(module_way: Proxy) -> Iterator[Proxy]:
    """Return the proxy before the S3 server, without faults; the environment points to it and its bucket nst-faults."""
    module_way.harmed.clear()
    yield module_way
    module_way.decide = lambda method, path: None


@pytest.fixture
def mortal_way(weed: str, tmp_path: Path) -> Iterator[tuple[Proxy, Server]]:
    """Put the proxy before an S3 server that no other test uses, and return both."""
    (tmp_path / "s3").mkdir()
    with run_s3_server(weed, tmp_path / "s3") as (s3, server), open_way(s3) as proxy_server:
        yield proxy_server, server
