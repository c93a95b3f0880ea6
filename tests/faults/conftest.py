"""A run that nobody disturbs, to compare the others with."""

from __future__ import annotations

import pytest
from survival import run, write_manifest


@pytest.fixture(scope="session")
def calm(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of a calm run of the manifest of `survival`."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    folder = tmp_path_factory.mktemp("calm")
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        ended = run(write_manifest(str(folder / "in")), str(folder / "out"))
    assert ended.exit_code == 0, ended.message
    return str(folder / "out")
