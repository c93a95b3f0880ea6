"""A run that nobody disturbs, to compare the others with, and a way to the S3 server on which things can happen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxy import Proxy, proxy
from tests.support.servers import S3, MadeOnce
from tests.support.survival import run, write_manifest


@pytest.fixture(scope="session")
def calm(prefect_api: str, made_once: MadeOnce) -> str:
    """The output of a calm run of the manifest of `survival`."""

    def make(folder: Path) -> None:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: prefect_api}):
            ended = run(write_manifest(str(folder / "in")), str(folder / "out"))
        assert ended.exit_code == 0, ended.message

    return str(made_once("calm", make) / "out")


@pytest.fixture
def way(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to the S3 server and its bucket nst-faults, on which nothing happens yet; the environment leads clients there."""
    import s3fs

    with proxy(s3.endpoint, lambda method, path: None) as running:
        for name, value in {**s3.environment, "AWS_ENDPOINT_URL": running.endpoint}.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        if not store.exists("nst-faults"):
            store.mkdir("nst-faults")
        yield running
        running.decide = lambda method, path: None
        s3fs.S3FileSystem.clear_instance_cache()
