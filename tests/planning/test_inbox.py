"""Manifests of an inbox: which are due, and which are settled until they are edited."""

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
def sweep_request(memory: str) -> tuple[str, str, SweepOptions]:
    return join_uri(memory, "in"), join_uri(memory, "out"), SweepOptions(backbone="tiny")


def write_file(request: tuple[str, str, SweepOptions], file: str, data: bytes = ROWS) -> None:
    files.write(join_uri(request[0], file), data)


def list_inbox(request: tuple[str, str, SweepOptions], **options: Any) -> dict[str, InboxManifest]:
    return {manifest.file: manifest for manifest in list_manifests(*request[:2], options or OPTIONS, Settings())}


def add_entry(request: tuple[str, str, SweepOptions], manifest: InboxManifest, **fields: Any) -> None:
    usual: dict[str, Any] = dict(
        manifest=manifest.uri, sha256=manifest.sha256, version=manifest.version, settled=True, result=RunResult.GOOD, counts={},
        message="", run_id="", flow_run_id="", began="2026-11-22T02:00:00+00:00", ended="2026-11-22T02:01:00+00:00",
    )  # fmt: skip
    ledger.write(request[1], manifest.file, Entry(**{**usual, **fields}))


def test_manifests_lie_directly_in_the_inbox_and_are_sorted(sweep_request: tuple[str, str, SweepOptions]) -> None:
    for file in ("b.csv", "a.CSV", "notes.txt", ".hidden.csv", "pictures/c.csv", "two words.csv"):
        write_file(sweep_request, file)
    manifests = list_inbox(sweep_request)
    assert list(manifests) == ["a.CSV", "b.csv", "two words.csv"]
    assert manifests["a.CSV"].out == join_uri(sweep_request[1], "a")
    assert manifests["b.csv"].sha256 == hashlib.sha256(ROWS).hexdigest()
    assert not any(manifest.is_settled or manifest.problem for manifest in manifests.values())


def test_missing_inbox_is_empty(sweep_request: tuple[str, str, SweepOptions]) -> None:
    assert list_inbox(sweep_request) == {}


def test_settled_manifest_runs_again_only_when_changed(sweep_request: tuple[str, str, SweepOptions]) -> None:
    write_file(sweep_request, "a.csv")
    add_entry(sweep_request, list_inbox(sweep_request)["a.csv"])
    assert list_inbox(sweep_request)["a.csv"].is_settled
    assert not list_inbox(sweep_request, size=128)["a.csv"].is_settled
    write_file(sweep_request, "a.csv", ROWS + b"dog.png,oil.png\n")
    assert not list_inbox(sweep_request)["a.csv"].is_settled
    add_entry(sweep_request, list_inbox(sweep_request)["a.csv"], began="2026-11-23T02:00:00+00:00")
    assert list_inbox(sweep_request)["a.csv"].is_settled
    write_file(sweep_request, "a.csv")  # the earlier version again: the newer one may have replaced its outputs
    assert not list_inbox(sweep_request)["a.csv"].is_settled


def test_unsettled_manifest_runs_again(sweep_request: tuple[str, str, SweepOptions]) -> None:
    write_file(sweep_request, "a.csv")
    add_entry(sweep_request, list_inbox(sweep_request)["a.csv"], settled=False, result=RunResult.FAILURES)
    assert not list_inbox(sweep_request)["a.csv"].is_settled


def test_damaged_ledger_entry_warns_and_reruns_the_manifest(sweep_request: tuple[str, str, SweepOptions]) -> None:
    write_file(sweep_request, "a.csv")
    add_entry(sweep_request, list_inbox(sweep_request)["a.csv"])
    files.write(join_uri(sweep_request[1], "_ledger", "a.csv", "2099.json"), b"torn")
    manifest = list_inbox(sweep_request)["a.csv"]
    assert (manifest.is_settled, manifest.problem) == (False, "")
    assert manifest.warning.startswith("_ledger/a.csv/2099.json: ignored, ")


def test_names_that_clash_with_output_folders_are_problems(sweep_request: tuple[str, str, SweepOptions]) -> None:
    for file in ("_ledger.csv", "a.csv", "a.CSV", "b.csv"):
        write_file(sweep_request, file)
    manifests = list_inbox(sweep_request)
    assert manifests["_ledger.csv"].problem == "its name begins with _, as the folders of nst do; rename it"
    assert manifests["a.csv"].problem == "its output would be that of a.CSV; rename one of them"
    assert manifests["a.CSV"].problem == "its output would be that of a.csv; rename one of them"
    assert not manifests["b.csv"].problem
    # the first stays a problem until it is renamed; of two that clash, either may be removed
    assert is_settled(manifests["_ledger.csv"], None, False, Settings())
    assert not is_settled(manifests["a.csv"], None, False, Settings())


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
        write_file(request, file)
    check_sweep(*request, Settings())
    sentence = "the inbox lies in what would be its output, and nothing is written there; rename it, or change --out"
    assert {file: manifest.problem for file, manifest in list_inbox(request).items()} == {
        file: sentence if problem else "" for file, problem in problems.items()
    }


@pytest.mark.parametrize("out", ["/data/in", "/data/in/", "/data/x/../in/out", "file:///data/in/out"])
def test_no_output_lies_in_the_inbox(out: str) -> None:
    with pytest.raises(SettingsError, match="^--out: is the inbox or lies in it, "):
        check_sweep("/data/in", out, SweepOptions(), Settings())
    check_sweep("/data/in", "/data/in-out", SweepOptions(), Settings())


def test_unreadable_ledger_warns_and_runs_the_manifest(
    sweep_request: tuple[str, str, SweepOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    list_files = files.list_files

    def refuse(uri: str) -> dict[str, files.Entry]:
        if uri.endswith("_ledger/a.csv"):
            raise failure
        return list_files(uri)

    for file in ("a.csv", "b.csv"):
        write_file(sweep_request, file)
    add_entry(sweep_request, list_inbox(sweep_request)["b.csv"])
    monkeypatch.setattr(files, "list_files", refuse)
    failure: StorageError = StorageError("it: the name is too long")
    manifests = list_inbox(sweep_request)
    assert not manifests["a.csv"].is_settled and not manifests["a.csv"].problem and manifests["b.csv"].is_settled
    assert manifests["a.csv"].warning.endswith(
        "a.csv: run, for the ledger does not tell whether it was: it: the name is too long"
    )
    failure = StorageUnusable("it: the credentials have expired")
    with pytest.raises(StorageUnusable):
        list_inbox(sweep_request)


def test_oversized_manifest_is_a_problem_and_links_are_skipped(pictures: Path, tmp_path: Path) -> None:
    """An oversized file is not read. Links are not manifests of the inbox."""
    (pictures / "a.csv").write_bytes(b"")
    os.truncate(pictures / "a.csv", 2**40)
    (pictures / "b.csv").write_bytes(ROWS)
    (pictures / "c.csv").symlink_to("/etc/passwd")
    manifests = list_manifests(str(pictures), str(tmp_path / "out"), OPTIONS, Settings())
    assert [manifest.file for manifest in manifests] == ["a.csv", "b.csv"]
    assert "a.csv: " in manifests[0].problem
    assert not is_settled(manifests[0], None, False, Settings())
    assert not manifests[1].problem


def make_report(failed: int = 0, rejected: int = 0, data: bytes = ROWS) -> Report:
    counts = {"succeeded": 1, "failed": failed, "rejected": rejected, "skipped": 0}
    sha256 = hashlib.sha256(data).hexdigest()
    return Report("run", "out", 1 + failed + rejected, counts, (), (), (), 1.0, {"report": "r"}, manifest_sha256=sha256)


BAD_ROW = ROWS + b",oil.png\n"


@pytest.mark.parametrize(
    ("data", "report", "strict", "expected"),
    [
        (ROWS, make_report(), False, True),
        (ROWS, make_report(failed=1), False, False),
        (BAD_ROW, make_report(rejected=1, data=BAD_ROW), False, True),
        (BAD_ROW, make_report(failed=1, rejected=1, data=BAD_ROW), False, False),
        (BAD_ROW, make_report(rejected=2, data=BAD_ROW), False, False),  # one more for a recipe's file, or a setting
        (BAD_ROW, make_report(rejected=1), False, False),  # edited while it was run
        (ROWS, None, False, False),  # refused for a cause outside the manifest
        (BAD_ROW, None, False, False),
        (BAD_ROW, None, True, True),
        (b"content,stile\na,b\n", None, False, True),
        (b"content,style\n,\n", None, False, True),
    ],
)
def test_manifest_is_settled_if_only_an_edit_can_change_it(
    sweep_request: tuple[str, str, SweepOptions], data: bytes, report: Report | None, strict: bool, expected: bool
) -> None:
    write_file(sweep_request, "a.csv", data)
    assert is_settled(list_inbox(sweep_request)["a.csv"], report, strict, Settings()) is expected


def test_deleted_manifest_is_not_settled(sweep_request: tuple[str, str, SweepOptions]) -> None:
    write_file(sweep_request, "a.csv")
    manifest = list_inbox(sweep_request)["a.csv"]
    files.delete(manifest.uri)
    assert not is_settled(manifest, None, False, Settings())


def test_unavailable_store_raises(sweep_request: tuple[str, str, SweepOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(sweep_request, "a.csv")
    manifest = list_inbox(sweep_request)["a.csv"]

    def fail(uri: str) -> bytes:
        raise StorageUnavailable(f"{uri}: the store failed for the moment")

    monkeypatch.setattr(files, "read", fail)
    with pytest.raises(StorageUnavailable):
        list_inbox(sweep_request)
    with pytest.raises(StorageUnavailable):
        is_settled(manifest, None, False, Settings())


def test_every_invalid_option_is_reported_at_once(sweep_request: tuple[str, str, SweepOptions]) -> None:
    inbox, out, options = sweep_request
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


def test_ledger_has_the_options_that_decide_results(sweep_request: tuple[str, str, SweepOptions]) -> None:
    inbox, out, options = sweep_request

    def collect(**changes: object) -> dict[str, Any]:
        return collect_result_options(inbox, out, options.model_copy(update=changes), Settings())

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
    for change in decisive:
        assert plain != collect(**change)
