"""Ledger of an inbox: the version, time and result of every run of a manifest.

`OUT/_ledger/{manifest's file name}/{began}-{token}.json`, one small file per run, written once and never changed: without
read-modify-write, concurrent runs cannot lose each other's entries. The newest entry of a manifest counts.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from nst_tasks import __version__
from nst_tasks.outputs.layout import ledger_folder, ledger_path
from nst_tasks.outputs.record import Count, decode, encode
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri


class RunResult(StrEnum):
    """Final result of one run of a manifest."""

    GOOD = "good"
    FAILURES = "failures"
    REFUSED = "refused"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Entry:
    """One run of a manifest.

    Attributes:
        manifest: The URI of the manifest, without secrets.
        sha256: SHA-256 of the bytes that were run.
        version: SHA-256 of these bytes, their URI and the options of the run; see the function `compute_version`.
        settled: True if another run of this version would have the same result.
        began, ended: ISO 8601.
    """

    manifest: str
    sha256: str
    version: str
    settled: bool
    result: RunResult
    counts: dict[str, Count]
    message: str
    run_id: str
    flow_run_id: str
    began: str
    ended: str
    nst: str = __version__


def compute_version(manifest: str, sha256: str, options: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's URI, its SHA-256 and the options that it is run with."""
    return hashlib.sha256(json.dumps([manifest, sha256, options], sort_keys=True).encode()).hexdigest()


def write(out: str, file: str, entry: Entry) -> str:
    """Write an entry for the manifest of this file name, and return the entry's URI.

    Raises:
        StorageError: The entry cannot be written.
    """
    uri = join_uri(out, ledger_path(file, datetime.fromisoformat(entry.began), secrets.token_hex(2)))
    files.write(uri, encode(entry))
    return uri


def read_newest(out: str, file: str) -> Entry | None:
    """Return the newest entry for the manifest of this file name, or None.

    Raises:
        ValueError: The newest entry is damaged, so that the last run is unknown.
        StorageError: The ledger cannot be read.
    """
    folder = ledger_folder(file)
    names = [name for name in files.list_files(join_uri(out, folder)) if name.endswith(".json")]
    if not names:
        return None
    try:
        return decode(Entry, files.read(join_uri(out, folder, names[-1])))
    except ValidationError as error:
        raise ValueError(f"{folder}/{names[-1]}: ignored, {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    """Describe the first thing that is wrong with an entry."""
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        return "not an entry of the ledger"
    field = problem["loc"][0]
    return f"it has no {field!r}" if problem["type"] == "missing" else f"{field}: {problem['msg']}"
