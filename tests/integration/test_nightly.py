"""Sweeps of an inbox as flow runs: what is run, what is left alone, and what ends one."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import fanout, nightly, stylize
from flows.console import FlowEnd, run_sweep
from flows.nightly import SweepResult
from nst_tasks.errors import ClusterError, InputError
from nst_tasks.inputs.options import SweepOptions
from nst_tasks.outputs import ledger
from nst_tasks.outputs.claims import Claim
from nst_tasks.outputs.ledger import RunResult
from nst_tasks.storage import files
from tests.support.commands import nst
from tests.support.pictures import encode_pattern
from tests.support.prefect_api import call
from tests.support.runs import request_of
from tests.support.stores import MemoryStore
from tests.support.waiting import wait_until

GOOD = "id,content,style\na,cat.png,oil.png\n"


def sweep(pictures: Path, out: Path, **options: Any) -> tuple[FlowEnd, SweepResult | None]:
    return run_sweep(str(pictures), str(out), SweepOptions(backbone="tiny", size=64, steps=1, **options))


def results(sweep_result: SweepResult | None) -> dict[str, str]:
    assert sweep_result is not None
    return {file: entry.result.value for file, entry in sweep_result.entries.items()}


def read_folder(folder: Path) -> dict[str, tuple[bytes, float]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("flow_api")
def test_each_manifest_is_run_once_until_it_changes(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (pictures / "good.csv").write_text(GOOD)
    (pictures / "broken.csv").write_text("content,stile\ncat.png,oil.png\n")
    (pictures / "_own.csv").write_text(GOOD)
    (pictures / "half.csv").write_text("content,style\ncat.png,oil.png\n,oil.png\n")
    (pictures / "gone.csv").write_text("content,style\ngone.png,oil.png\ndog.png,oil.png\n")
    inbox = read_folder(pictures)
    result, sweep_result = sweep(pictures, out)
    assert results(sweep_result) == {
        "_own.csv": "refused", "broken.csv": "refused", "gone.csv": "failures", "good.csv": "good", "half.csv": "failures",
    }  # fmt: skip
    assert (result.name, result.exit_code) == ("Completed with failures", 1)
    assert result.message == "5 manifests: 1 good, 2 with failures, 2 refused, 0 failed, 0 unchanged"
    assert (out / "good/images/a.png").exists()
    assert read_folder(pictures) == inbox

    # a picture may come; a row that is wrong, and a manifest that is, can only be edited
    left = read_folder(out)
    result, sweep_result = sweep(pictures, out)
    assert results(sweep_result) == {"gone.csv": "failures"}
    assert result.message == "5 manifests: 0 good, 1 with failures, 0 refused, 0 failed, 4 unchanged"
    now = read_folder(out)
    assert {path for path, content in now.items() if left.get(path) != content and "/gone" not in path} == set()

    (pictures / "gone.png").write_bytes((pictures / "cat.png").read_bytes())
    (pictures / "broken.csv").write_text("content,style\ncat.png,oil.png\n")
    result, sweep_result = sweep(pictures, out)
    assert results(sweep_result) == {"broken.csv": "good", "gone.csv": "good"}
    assert (result.name, result.exit_code) == ("Completed", 0)
    assert sweep_result is not None
    assert sweep_result.entries["gone.csv"].counts == {"succeeded": 1, "failed": 0, "rejected": 0, "skipped": 1}
    result, sweep_result = sweep(pictures, out)
    assert (result.name, result.exit_code, results(sweep_result)) == ("Completed", 0, {})
    assert len(list((out / "_ledger/gone.csv").iterdir())) == 3


@pytest.mark.usefixtures("flow_api")
def test_a_manifest_whose_name_is_not_utf_8_stops_no_other(pictures: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff.csv")
    for name in ("good.csv", odd):
        (pictures / name).write_text(GOOD)
    result, sweep_result = sweep(pictures, tmp_path / "out")
    assert results(sweep_result) == {"good.csv": "good", odd: "refused"}
    assert result.name == "Completed with failures"
    assert sweep_result is not None
    assert "not UTF-8" in sweep_result.entries[odd].message


@pytest.mark.usefixtures("flow_api")
def test_the_ledger_tells_the_version_that_was_really_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that is edited after it was looked at, and before it is run."""
    list_original = nightly.list_manifests

    def edited_after(*arguments: Any) -> Any:
        found = list_original(*arguments)
        (pictures / "good.csv").write_text(GOOD + "b,dog.png,oil.png\n")
        return found

    (pictures / "good.csv").write_text(GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(nightly, "list_manifests", edited_after)
        _, sweep_result = sweep(pictures, tmp_path / "out")
    assert sweep_result is not None
    assert sweep_result.entries["good.csv"].counts["succeeded"] == 2
    _, sweep_result = sweep(pictures, tmp_path / "out")
    assert results(sweep_result) == {}


@pytest.mark.usefixtures("flow_api")
def test_concurrent_sweep_runs_nothing(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (pictures / "good.csv").write_text(GOOD)
    claim = Claim("nightly", 0, "o", "r", "elsewhere", "1.1", "", 0, time.time() + 1000)
    place = out / "_ledger/claims/nightly.0.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(vars(claim)))
    result, sweep_result = sweep(pictures, out)
    assert (result.name, result.exit_code, sweep_result) == ("Cancelled", 1, None)
    assert result.message == f"another sweep into {out} is going on; nothing was run"
    assert [path.name for path in out.iterdir()] == ["_ledger"]
    place.write_text(json.dumps(vars(replace(claim, expires=time.time() - 1))))
    result, sweep_result = sweep(pictures, out)
    assert results(sweep_result) == {"good.csv": "good"}
    assert list(place.parent.iterdir()) == []


class FullStore(MemoryStore):
    """A place in memory where nothing more fits into the images of the second manifest."""

    protocol = "fullstore"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if "/b/images" in path:
            raise OSError(errno.ENOSPC, "no space")
        super().pipe_file(path, value, mode=mode, **more)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NST_ALLOWED_ROOTS", "fullstore://team")
    yield "fullstore://team"
    FullStore.store.clear()


@pytest.mark.usefixtures("flow_api")
def test_a_store_that_is_full_ends_the_sweep_with_its_sentence(full: str) -> None:
    for name in ("cat", "oil"):
        files.write(f"{full}/in/{name}.png", encode_pattern(name))
    for name in "abc":
        files.write(f"{full}/in/{name}.csv", GOOD.encode())
    result, sweep_result = run_sweep(f"{full}/in", f"{full}/out", SweepOptions(backbone="tiny", size=64, steps=1))
    assert (result.name, result.exit_code, sweep_result) == ("Failed", 1, None)
    assert result.message.startswith("the sweep could not go on, what is finished is safe: fullstore://team/out/b/images/")
    assert "the disk is full" in result.message
    found = {file: ledger.read_newest(f"{full}/out", file) for file in ("a.csv", "b.csv", "c.csv")}
    assert {file: entry and (entry.result.value, entry.settled) for file, entry in found.items()} == {
        "a.csv": ("good", True), "b.csv": ("failed", False), "c.csv": None,
    }  # fmt: skip


class LaxStore(FullStore):
    """A place in memory where no condition of a write is heeded, and the ledger takes no entry of the first manifest."""

    protocol = "laxstore"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if "/_ledger/a.csv/" in path:
            raise OSError(errno.ENAMETOOLONG, "1,024 bytes are the most")
        MemoryStore.pipe_file(self, path, value, **more)


@pytest.mark.usefixtures("flow_api")
def test_store_without_conditional_create_only_warns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("NST_ALLOWED_ROOTS", "laxstore://team")
    for name in ("a", "b"):
        files.write(f"laxstore://team/in/{name}.csv", b"content,stile\n")
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(caplog.handler)
    try:
        _, sweep_result = run_sweep("laxstore://team/in", "laxstore://team/out", SweepOptions(backbone="tiny"))
    finally:
        logger.removeHandler(caplog.handler)
        LaxStore.store.clear()
    assert results(sweep_result) == {"a.csv": "refused", "b.csv": "refused"}
    assert "laxstore://team/out: its store ignores conditional creates, so start no second sweep" in caplog.messages
    assert any("a.csv: not in the ledger, and so run again by the next sweep: " in line for line in caplog.messages)


@pytest.mark.usefixtures("flow_api")
def test_lost_cluster_ends_the_sweep_with_one_sentence(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked it to stop, and so it has failed, for those who are alerted by that."""

    def gone(*arguments: Any) -> Any:
        raise ClusterError("the cluster's scheduler went away")

    monkeypatch.setattr(fanout, "run_jobs", gone)
    for name in "ab":
        (pictures / f"{name}.csv").write_text(GOOD)
    result, sweep_result = sweep(pictures, tmp_path / "out")
    assert (result.name, result.exit_code, sweep_result) == ("Failed", 1, None)
    assert "the cluster's scheduler went away" in result.message
    found = ledger.read_newest(str(tmp_path / "out"), "a.csv")
    assert found is not None and (found.result, found.settled) == (RunResult.FAILED, False)


@pytest.mark.usefixtures("flow_api")
def test_a_defect_in_one_manifests_run_does_not_stop_the_others(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_original = stylize.prepare

    def prepare_with_defect(manifest: str, *rest: Any) -> Any:
        if manifest.endswith("a.csv"):
            raise ZeroDivisionError("a defect of ours")
        return prepare_original(manifest, *rest)

    monkeypatch.setattr(stylize, "prepare", prepare_with_defect)
    for name in "ab":
        (pictures / f"{name}.csv").write_text(GOOD)
    _, sweep_result = sweep(pictures, tmp_path / "out")
    assert results(sweep_result) == {"a.csv": "failed", "b.csv": "good"}
    assert sweep_result is not None
    assert not sweep_result.entries["a.csv"].settled


@pytest.mark.usefixtures("flow_api")
def test_a_sweep_of_which_all_that_ran_failed_has_failed(pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.csv").write_text("content,stile\ncat.png,oil.png\n")
    result, _ = sweep(pictures, tmp_path / "out")
    assert (result.name, result.exit_code) == ("Failed", 1)


@pytest.mark.usefixtures("flow_api")
def test_empty_inbox_is_reported(tmp_path: Path) -> None:
    result, _ = sweep(tmp_path / "inbocks", tmp_path / "out")
    assert result.message == f"no manifest in {tmp_path}/inbocks; if there should be one, correct --inbox"
    assert (result.name, result.exit_code) == ("Completed", 0)


@pytest.mark.usefixtures("flow_api")
def test_wrong_option_refuses_the_sweep(pictures: Path, tmp_path: Path) -> None:
    (pictures / "good.csv").write_text(GOOD)
    with pytest.raises(InputError, match="^--max-failures: 'many' is not"):
        sweep(pictures, tmp_path / "out", max_failures="many")
    assert not (tmp_path / "out").exists()


def test_every_end_of_a_run_is_an_event_that_tells_no_secret(flow_api: str, pictures: Path, tmp_path: Path) -> None:
    from flows.stylize import stylize_manifest

    secret = f"s3://k:hunter3@{tmp_path.name}/x.csv?sig=hunter2"
    (pictures / "well.csv").write_text(GOOD)
    (pictures / "ill.csv").write_text("content,style\ncat.png,oil.png\ngone.png,oil.png\n")
    for manifest in (str(pictures / "well.csv"), str(pictures / "ill.csv"), secret):
        stylize_manifest(*request_of(pictures, manifest, str(tmp_path / "out"), size=64, steps=1), return_state=True)

    def look() -> list[dict[str, Any]]:
        names = [
            f"nst.manifest.{name}" for name in (pictures / "well.csv", pictures / "ill.csv", f"s3://{tmp_path.name}/x.csv")
        ]
        question = {"event": {"name": ["nst.manifest.completed"]}, "resource": {"id": names}}
        found: list[dict[str, Any]] = call(f"{flow_api}/events/filter", "POST", {"filter": question})["events"]
        return found if len(found) == 3 else []

    found = wait_until(look)
    by_result = {event["resource"]["nst.result"]: event for event in found}
    assert set(by_result) == {"good", "failures", "refused"}
    assert by_result["good"]["resource"]["prefect.resource.id"] == f"nst.manifest.{pictures}/well.csv"
    payload = by_result["failures"]["payload"]
    assert payload["counts"] == {"succeeded": 1, "failed": 1, "rejected": 0, "skipped": 0}
    assert payload["report"] == f"{tmp_path}/out/runs/{payload['run_id']}/report.html"
    assert "flow-run" in [resource["prefect.resource.role"] for resource in by_result["failures"]["related"]]
    assert by_result["refused"]["resource"]["prefect.resource.name"] == f"s3://{tmp_path.name}/x.csv"
    assert "hunter3" not in json.dumps(found)


# --- the command line ---


@pytest.mark.usefixtures("flow_api")
def test_the_command_sweeps_once(pictures: Path, tmp_path: Path) -> None:
    (pictures / "good.csv").write_text(GOOD)
    options = ["--backbone", "tiny", "--size", "64", "--steps", "1", "--precision", "mixed", "--plateau", "0.5", "--json"]
    places = {"NST_INBOX": str(pictures), "NST_OUT": str(tmp_path / "out")}
    command = nst("nightly", *options, **places)
    assert command.exit_code == 0, command.stderr
    answer = json.loads(command.stdout)
    assert (answer["state"], answer["unchanged"], answer["manifests"]["good.csv"]["result"]) == ("Completed", 0, "good")
    method = json.loads((tmp_path / "out/good/outcomes/a.json").read_text())["recipe"]["method"]
    assert (method["precision"], method["plateau"]["tolerance"]) == ("mixed", 0.5)
    (pictures / "broken.csv").write_text("content,stile\ncat.png,oil.png\n")
    command = nst("nightly", *options[:-1], **places)
    assert command.exit_code == 1
    assert command.stdout.startswith("broken.csv: refused, manifest ")
    assert command.stdout.splitlines()[-1].startswith("Failed: 2 manifests: 0 good,")
