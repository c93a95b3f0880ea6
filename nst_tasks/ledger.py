"""Which version of which manifest was run when, and what came of it.

`OUT/_ledger/{manifest's file name}/{began}-{token}.json`, one small file for each run, written once and never again: nothing is
read, changed and written back, so that nobody's entry can be lost. The newest entry of a manifest is the one that counts.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from nst_tasks import __version__, storage

FOLDER = "_ledger"


class Result(StrEnum):
    """How the run of a manifest ended."""

    GOOD = "good"
    FAILURES = "failures"
    REFUSED = "refused"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Entry:
    """A run of a manifest: `sha256` of the bytes that were run, `version` of these with all that decides what they mean.

    settled: whether another run of this version could only come to the same. manifest: without secrets. began, ended: ISO 8601.
    """

    manifest: str
    sha256: str
    version: str
    settled: bool
    result: Result
    counts: dict[str, int]
    message: str
    run_id: str
    flow_run_id: str
    began: str
    ended: str
    nst: str = __version__


def version(manifest: str, sha256: str, options: Mapping[str, Any]) -> str:
    """SHA-256 of where a manifest lies, of its own SHA-256, and of the options that it is run with."""
    return hashlib.sha256(json.dumps([manifest, sha256, options], sort_keys=True).encode()).hexdigest()


def write(out: str, file: str, entry: Entry) -> str:
    """Add an entry about the manifest of this file name: its URI.

    Raises:
        StorageError: it cannot be written.
    """
    began = datetime.fromisoformat(entry.began)
    uri = storage.join(out, FOLDER, file, f"{began:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(2)}.json")
    storage.write(uri, (json.dumps(asdict(entry), indent=1, sort_keys=True) + "\n").encode())
    return uri


def newest(out: str, file: str) -> Entry | None:
    """The newest entry about the manifest of this file name, if there is any.

    Raises:
        ValueError: it is damaged, so that nobody knows what was run last. StorageError: it cannot be read.
    """
    folder = storage.join(out, FOLDER, file)
    names = [name for name in storage.listing(folder) if name.endswith(".json")]
    if not names:
        return None
    try:
        return _from_json(storage.read(storage.join(folder, names[-1])))
    except ValueError as error:
        raise ValueError(f"{FOLDER}/{file}/{names[-1]}: ignored, {error}") from error


def _from_json(data: bytes) -> Entry:
    """The entry in these bytes; fields that a newer version added are ignored."""
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("not an entry of the ledger")
    try:
        values = {field.name: record[field.name] for field in fields(Entry)}
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    if not isinstance(values["settled"], bool) or not isinstance(values["version"], str):
        raise ValueError("settled is not true or false, or version is no text")
    return Entry(**{**values, "result": Result(values["result"])})
