"""The ledger: entries are added and never changed, and the newest one counts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nst_tasks.outputs import ledger
from nst_tasks.outputs.ledger import Entry, RunResult
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri

ENTRY = Entry(
    manifest="s3://team/inbox/a.csv",
    sha256="5a",
    version="1b",
    settled=True,
    result=RunResult.GOOD,
    counts={"succeeded": 2, "failed": 0, "rejected": 0, "skipped": 0},
    message="2 succeeded",
    run_id="20261122T020000Z-ab12",
    flow_run_id="6dc5c0ac",
    began="2026-11-22T02:00:00.000001+00:00",
    ended="2026-11-22T02:03:00+00:00",
)


def list_entries(out: str, file: str = "a.csv") -> list[str]:
    return list(files.list_files(join_uri(out, "_ledger", file)))


def test_entry_round_trip_and_the_newest_counts(memory: str) -> None:
    assert ledger.read_newest(memory, "a.csv") is None
    ledger.write(memory, "a.csv", ENTRY)
    assert ledger.read_newest(memory, "a.csv") == ENTRY
    later = replace(ENTRY, result=RunResult.FAILED, settled=False, began="2026-11-22T02:00:00.000002+00:00")
    ledger.write(memory, "a.csv", later)
    ledger.write(memory, "a.csv", replace(ENTRY, began="2025-01-01T00:00:00+00:00"))
    assert ledger.read_newest(memory, "a.csv") == later
    assert ledger.read_newest(memory, "a.CSV") is None


def test_entries_of_the_same_moment_do_not_replace_each_other(memory: str) -> None:
    """Two hosts may write at the same time without losing an entry."""
    for _ in range(5):
        ledger.write(memory, "a.csv", ENTRY)
    assert len(list_entries(memory)) == 5
    assert all(name.startswith("20261122T020000.000001Z-") for name in list_entries(memory))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b"[" * 100_000,
        json.dumps({**vars(ENTRY), "result": "fine"}).encode(),
        json.dumps({**vars(ENTRY), "settled": "no"}).encode(),
        json.dumps({**vars(ENTRY), "version": None}).encode(),
        json.dumps({**vars(ENTRY), "counts": {"failed": "0"}}).encode(),
        json.dumps({**vars(ENTRY), "counts": {"failed": 10**400}}).encode(),
    ],
)
def test_damaged_newest_entry_is_reported(memory: str, damage: bytes) -> None:
    ledger.write(memory, "a.csv", ENTRY)
    files.write(join_uri(memory, "_ledger", "a.csv", "2099-torn.json"), damage)
    with pytest.raises(ValueError, match="^_ledger/a.csv/2099-torn.json: ignored, "):
        ledger.read_newest(memory, "a.csv")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"[]", "not an entry of the ledger"),
        (b"{", "not an entry of the ledger"),
        (b"{}", "it has no 'manifest'"),
        (json.dumps({**vars(ENTRY), "settled": "no"}).encode(), "settled: Input should be a valid boolean"),
    ],
)
def test_warning_says_why_an_entry_is_ignored(memory: str, damage: bytes, reason: str) -> None:
    files.write(join_uri(memory, "_ledger", "a.csv", "1.json"), damage)
    with pytest.raises(ValueError, match=f"^_ledger/a.csv/1.json: ignored, {reason}$"):
        ledger.read_newest(memory, "a.csv")


def test_fields_of_a_newer_version_are_ignored(memory: str) -> None:
    files.write(join_uri(memory, "_ledger", "a.csv", "1.json"), json.dumps({**vars(ENTRY), "host": "b"}).encode())
    assert ledger.read_newest(memory, "a.csv") == ENTRY


def test_entry_of_version_0_5_is_read_and_written_unchanged(memory: str) -> None:
    data = b"""{
 "began": "2026-11-22T02:00:00.000001+00:00",
 "counts": {
  "failed": 0,
  "rejected": 0,
  "skipped": 0,
  "succeeded": 2
 },
 "ended": "2026-11-22T02:03:00+00:00",
 "flow_run_id": "6dc5c0ac",
 "manifest": "s3://team/inbox/a.csv",
 "message": "2 succeeded",
 "nst": "0.5.0",
 "result": "good",
 "run_id": "20261122T020000Z-ab12",
 "settled": true,
 "sha256": "5a",
 "version": "1b"
}
"""
    uri = ledger.write(memory, "a.csv", replace(ENTRY, nst="0.5.0"))
    assert files.read(uri) == data
    assert ledger.read_newest(memory, "a.csv") == replace(ENTRY, nst="0.5.0")


def test_version_depends_on_place_bytes_and_options() -> None:
    version = ledger.compute_version("s3://b/a.csv", "5a", {"size": 512, "recipe": {"tv": 1.0}})
    assert version == ledger.compute_version("s3://b/a.csv", "5a", {"recipe": {"tv": 1.0}, "size": 512})
    other_versions = [
        ledger.compute_version("s3://c/a.csv", "5a", {"size": 512, "recipe": {"tv": 1.0}}),
        ledger.compute_version("s3://b/a.csv", "5b", {"size": 512, "recipe": {"tv": 1.0}}),
        ledger.compute_version("s3://b/a.csv", "5a", {"size": 512, "recipe": {"tv": 2.0}}),
    ]
    assert len({version, *other_versions}) == 4
