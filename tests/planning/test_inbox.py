"""What of an inbox is to be run, and when another run of the same could come to something else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from nst_tasks.errors import SettingsError, StorageError, StorageUnavailable, StorageUnusable
from nst_tasks.inputs.options import SweepOptions, find_unstorable_uris
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import ledger
from nst_tasks.outputs.ledger import Entry, RunResult
from nst_tasks.outputs.report import Report
from nst_tasks.planning.inbox import InboxManifest, check_sweep, collect_result_options, is_settled, list_manifests
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri

ROWS = b"content,style\ncat.png,oil.png\n"
OPTIONS = {"size": 64}


@pytest.fixture
def request_(memory: str) -> tuple[str, str, SweepOptions]:
    return join_uri(memory, "in"), join_uri(memory, "out"), SweepOptions(backbone="tiny")


def put(request: tuple[str, str, SweepOptions], file: str, data: bytes = ROWS) -> None:
    files.write(join_uri(request[0], file), data)


def look(request: tuple[str, str, SweepOptions], **options: Any) -> dict[str, InboxManifest]:
    return {found.file: found for found in list_manifests(*request[:2], options or OPTIONS, Settings())}


def enter(request: tuple[str, str, SweepOptions], found: InboxManifest, **fields: Any) -> None:
    usual: dict[str, Any] = dict(
        manifest=found.uri, sha256=found.sha256, version=found.version, settled=True, result=RunResult.GOOD, counts={},
        message="", run_id="", flow_run_id="", began="2026-11-22T02:00:00+00:00", ended="2026-11-22T02:01:00+00:00",
    )  # fmt: skip
    ledger.write(request[1], found.file, Entry(**{**usual, **fields}))


def test_manifests_lie_directly_in_the_inbox_and_are_sorted(request_: tuple[str, str, SweepOptions]) -> None:
    for file in ("b.csv", "a.CSV", "notes.txt", ".hidden.csv", "pictures/c.csv", "two words.csv"):
        put(request_, file)
    found = look(request_)
    assert list(found) == ["a.CSV", "b.csv", "two words.csv"]
    assert found["a.CSV"].out == join_uri(request_[1], "a")
    assert found["b.csv"].sha256 == hashlib.sha256(ROWS).hexdigest()
    assert not any(manifest.is_settled or manifest.problem for manifest in found.values())


def test_an_inbox_that_is_not_there_is_empty(request_: tuple[str, str, SweepOptions]) -> None:
    assert look(request_) == {}


def test_what_is_settled_is_run_again_only_when_it_has_changed(request_: tuple[str, str, SweepOptions]) -> None:
    put(request_, "a.csv")
    enter(request_, look(request_)["a.csv"])
    assert look(request_)["a.csv"].is_settled
    assert not look(request_, size=128)["a.csv"].is_settled
    put(request_, "a.csv", ROWS + b"dog.png,oil.png\n")
    assert not look(request_)["a.csv"].is_settled
    enter(request_, look(request_)["a.csv"], began="2026-11-23T02:00:00+00:00")
    assert look(request_)["a.csv"].is_settled
    put(request_, "a.csv")  # what it was before: its outputs may be the newer version's by now
    assert not look(request_)["a.csv"].is_settled


def test_what_is_not_settled_is_run_again(request_: tuple[str, str, SweepOptions]) -> None:
    put(request_, "a.csv")
    enter(request_, look(request_)["a.csv"], settled=False, result=RunResult.FAILURES)
    assert not look(request_)["a.csv"].is_settled


def test_a_damaged_entry_is_told_and_its_manifest_run_again(request_: tuple[str, str, SweepOptions]) -> None:
    put(request_, "a.csv")
    enter(request_, look(request_)["a.csv"])
    files.write(join_uri(request_[1], "_ledger", "a.csv", "2099.json"), b"torn")
    found = look(request_)["a.csv"]
    assert (found.is_settled, found.problem) == (False, "")
    assert found.warning.startswith("_ledger/a.csv/2099.json: ignored, ")


def test_names_that_cannot_be_folders_of_ours_are_problems(request_: tuple[str, str, SweepOptions]) -> None:
    for file in ("_ledger.csv", "a.csv", "a.CSV", "b.csv"):
        put(request_, file)
    found = look(request_)
    assert found["_ledger.csv"].problem == "its name begins with _, as the folders of nst do; rename it"
    assert found["a.csv"].problem == "its output would be that of a.CSV; rename one of them"
    assert found["a.CSV"].problem == "its output would be that of a.csv; rename one of them"
    assert not found["b.csv"].problem
    # one stays as it is until it is renamed; of two that clash, either may go away
    assert is_settled(found["_ledger.csv"], None, False, Settings())
    assert not is_settled(found["a.csv"], None, False, Settings())


@pytest.mark.parametrize(
    ("place", "out", "problems"),
    [
        ("data/in", "data", {"a.csv": False, "in.csv": True}),
        ("data/in/new/", "data/", {"a.csv": False, "in.csv": True}),
        ("s3/in", "s3/out", {"in.csv": False}),
    ],
)
def test_no_manifest_has_its_output_in_the_inbox(memory: str, place: str, out: str, problems: dict[str, bool]) -> None:
    request = join_uri(memory, place), join_uri(memory, out), SweepOptions(backbone="tiny")
    for file in problems:
        put(request, file)
    check_sweep(*request, Settings())
    sentence = "the inbox lies in what would be its output, and nothing is written there; rename it, or change --out"
    assert {file: found.problem for file, found in look(request).items()} == {
        file: sentence if problem else "" for file, problem in problems.items()
    }


@pytest.mark.parametrize("out", ["/data/in", "/data/in/", "/data/x/../in/out", "file:///data/in/out"])
def test_no_output_lies_in_the_inbox(out: str) -> None:
    with pytest.raises(SettingsError, match="^--out: is the inbox or lies in it, "):
        check_sweep("/data/in", out, SweepOptions(), Settings())
    check_sweep("/data/in", "/data/in-out", SweepOptions(), Settings())


def test_unreadable_ledger_warns_and_runs_the_manifest(
    request_: tuple[str, str, SweepOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = files.list_files

    def refuse(uri: str) -> dict[str, files.Entry]:
        if uri.endswith("_ledger/a.csv"):
            raise failure
        return listing(uri)

    for file in ("a.csv", "b.csv"):
        put(request_, file)
    enter(request_, look(request_)["b.csv"])
    monkeypatch.setattr(files, "list_files", refuse)
    failure: StorageError = StorageError("it: the name is too long")
    found = look(request_)
    assert not found["a.csv"].is_settled and not found["a.csv"].problem and found["b.csv"].is_settled
    assert found["a.csv"].warning.endswith("a.csv: run, for the ledger does not tell whether it was: it: the name is too long")
    failure = StorageUnusable("it: the credentials have expired")
    with pytest.raises(StorageUnusable):
        look(request_)


def test_what_cannot_be_a_manifest_is_a_problem_of_its_own(pictures: Path, tmp_path: Path) -> None:
    """It is not read: it may be anything. A link is none of the inbox's files."""
    (pictures / "a.csv").write_bytes(b"")
    os.truncate(pictures / "a.csv", 2**40)
    (pictures / "b.csv").write_bytes(ROWS)
    (pictures / "c.csv").symlink_to("/etc/passwd")
    found = list_manifests(str(pictures), str(tmp_path / "out"), OPTIONS, Settings())
    assert [manifest.file for manifest in found] == ["a.csv", "b.csv"]
    assert "a.csv: " in found[0].problem
    assert not is_settled(found[0], None, False, Settings())
    assert not found[1].problem


def report(failed: int = 0, rejected: int = 0, data: bytes = ROWS) -> Report:
    counts = {"succeeded": 1, "failed": failed, "rejected": rejected, "skipped": 0}
    sha256 = hashlib.sha256(data).hexdigest()
    return Report("run", "out", 1 + failed + rejected, counts, (), (), (), 1.0, {"report": "r"}, manifest_sha256=sha256)


BAD_ROW = ROWS + b",oil.png\n"


@pytest.mark.parametrize(
    ("data", "ended", "strict", "settled"),
    [
        (ROWS, report(), False, True),
        (ROWS, report(failed=1), False, False),
        (BAD_ROW, report(rejected=1, data=BAD_ROW), False, True),
        (BAD_ROW, report(failed=1, rejected=1, data=BAD_ROW), False, False),
        (BAD_ROW, report(rejected=2, data=BAD_ROW), False, False),  # one more for a recipe's file, or a setting
        (BAD_ROW, report(rejected=1), False, False),  # edited while it was run
        (ROWS, None, False, False),  # refused for what does not lie in it
        (BAD_ROW, None, False, False),
        (BAD_ROW, None, True, True),
        (b"content,stile\na,b\n", None, False, True),
        (b"content,style\n,\n", None, False, True),
    ],
)
def test_settled_is_what_only_an_edit_can_mend(
    request_: tuple[str, str, SweepOptions], data: bytes, ended: Report | None, strict: bool, settled: bool
) -> None:
    put(request_, "a.csv", data)
    assert is_settled(look(request_)["a.csv"], ended, strict, Settings()) is settled


def test_what_has_gone_is_not_settled(request_: tuple[str, str, SweepOptions]) -> None:
    put(request_, "a.csv")
    found = look(request_)["a.csv"]
    files.delete(found.uri)
    assert not is_settled(found, None, False, Settings())


def test_a_store_that_is_away_is_no_manifests_fault(
    request_: tuple[str, str, SweepOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(request_, "a.csv")
    found = look(request_)["a.csv"]

    def away(uri: str) -> bytes:
        raise StorageUnavailable(f"{uri}: the store failed for the moment")

    monkeypatch.setattr(files, "read", away)
    with pytest.raises(StorageUnavailable):
        look(request_)
    with pytest.raises(StorageUnavailable):
        is_settled(found, None, False, Settings())


def test_every_invalid_option_is_reported_at_once(request_: tuple[str, str, SweepOptions]) -> None:
    inbox, out, options = request_
    wrong = SweepOptions(recipe="painterli", size=9, max_failures="many", backbone="tiny")
    with pytest.raises(SettingsError) as caught:
        collect_result_options("s3://u:hunter2@b/in", "http://h/out", wrong, Settings())
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0].split()[0] for line in lines] == [
        "--inbox", "--out", "--recipe", "--size", "--max-failures",
    ]  # fmt: skip
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SettingsError, match="--out: is the inbox or lies in it, and nothing is written there"):
        collect_result_options(inbox, inbox + "/", options, Settings())


def test_path_that_is_not_utf8_is_refused() -> None:
    odd = "/in/\udcff.csv"
    assert find_unstorable_uris({"manifest": odd, "--out": "/ö"}) == [
        "manifest: /in/\\udcff.csv is not UTF-8, in which Prefect would store it; rename it"
    ]
    with pytest.raises(SettingsError, match="--inbox: .* is not UTF-8"):
        check_sweep(odd, "/out", SweepOptions(), Settings())


def test_ledger_version_follows_the_options_that_decide(request_: tuple[str, str, SweepOptions]) -> None:
    inbox, out, options = request_

    def collect(**changed: object) -> dict[str, Any]:
        return collect_result_options(inbox, out, options.model_copy(update=changed), Settings())

    plain = collect()
    # these keys, as version 0.5.0 had them: an inbox is not run again for an upgrade
    assert [*sorted(plain)] == [
        "backbone", "plateau", "precision", "recipe", "size", "steps", "strict", "upscale", "weights",
    ]  # fmt: skip
    assert plain == collect(max_failures="3", pair_timeout=9.0, runner="dask")
    decisive = (
        {"size": 128}, {"steps": 3}, {"precision": "mixed"}, {"plateau": 0.1}, {"strict": True}, {"upscale": True},
        {"recipe": "wasserstein"},
    )  # fmt: skip
    for other in decisive:
        assert plain != collect(**other)
