"""Report files of a run, read back."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest

from nst_tasks.core.flags import FLAGS
from nst_tasks.errors import StorageError, StorageUnavailable, redact
from nst_tasks.images import codec
from nst_tasks.images.picture import Source
from nst_tasks.images.thumbnail import encode_strip
from nst_tasks.inputs import manifest
from nst_tasks.inputs.options import RunOptions
from nst_tasks.inputs.readers import read_manifest
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import loss_history, outcome
from nst_tasks.outputs.layout import marker_path
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.outcome_store import read_outcomes
from nst_tasks.outputs.report import Report, read_curves, read_thumbnails, rebuild_report, write_report
from nst_tasks.outputs.report_page import MAX_IMAGES
from nst_tasks.planning.prepare import prepare
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri
from tests.support.outcomes import make_outcome

SETTINGS = Settings(readers=4)
STRIP = encode_strip([np.full((20, 30, 3), 0.5, np.float32)] * 3, 20, 4)
EMBEDDED = "data:image/jpeg;base64," + base64.b64encode(STRIP).decode()
LOSSES = {"total": 6.0, "content": 1.0, "style": 2.0, "tv": 3.0}


def make_success(id: str = "cat_oil", row: int = 2, **fields: Any) -> Outcome:
    content, style = Source("/in/cat.png", "c", "1", 60, 80), Source("/in/oil.jpg", "o", "1", 5, 5)
    return make_outcome(id, row, **{"losses": LOSSES, "content": content, "styles": (style,)} | fields)


# After a run


def write_run_report(tmp_path: Path, out: str, outcomes: list[Outcome], rows: str = "cat.png,oil.jpg,\n") -> tuple[Report, str]:
    (tmp_path / "m.csv").write_text("content,style,size\n" + rows)
    manifest, options = str(tmp_path / "m.csv"), RunOptions(backbone="tiny")
    inputs = prepare(manifest, redact(out), options, SETTINGS)  # refuses secrets, so they are redacted
    run = Run("run-1", out, "tiny", None, inputs.weights_sha256, 1, SETTINGS)
    folder = join_uri(out, "runs", run.id)
    began = datetime.now(UTC) - timedelta(seconds=100)
    return write_report(manifest, options, inputs, run, outcomes, ["a warning"], began), folder


def test_report_files_of_a_run_are_written(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    rows = "cat.png,oil.jpg,\ncat.png,oil.jpg,9\ndog.png,oil.jpg,\nelk.png,oil.jpg,\n"
    rejection = Outcome(id="", row=3, status=Status.REJECTED, error="row 3, column size: 9 is below the smallest size, 64")
    failure = Outcome(id="dog_oil", row=4, status=Status.FAILED, error="/in/dog.png: does not exist")
    skip = make_success("elk_oil", 5, status=Status.SKIPPED)
    files.write(join_uri(out, "thumbnails/cat_oil.jpg"), STRIP)
    report, folder = write_run_report(tmp_path, out, [skip, failure, make_success(), rejection], rows)

    assert sorted(files.list_files(folder)) == ["rejected.csv", "report.html", "run.json", "summary.parquet"]
    assert report.rows == 4
    assert report.counts == {"succeeded": 1, "failed": 1, "rejected": 1, "skipped": 1}
    assert report.message == "1 succeeded, 1 failed, 1 rejected, 1 skipped of 4 rows"
    assert report.failures == (rejection.error, "row 4, dog_oil: /in/dog.png: does not exist")
    assert report.warnings == ("a warning",)
    assert 100 <= report.seconds < 200
    assert report.files == {
        kind: f"{folder}/{name}"
        for kind, name in (
            ("summary", "summary.parquet"),
            ("report", "report.html"),
            ("run", "run.json"),
            ("rejected", "rejected.csv"),
        )
    }
    table = pd.read_parquet(io.BytesIO(files.read(report.files["summary"])))
    assert list(table["id"]) == ["cat_oil", "", "dog_oil", "elk_oil"]
    lines = files.read(report.files["rejected"]).decode().splitlines()
    assert lines[0] == "problem,content,style,size"
    assert lines[1].endswith(f",{tmp_path}/cat.png,{tmp_path}/oil.jpg,9")
    assert len(lines) == 2
    page = files.read(report.files["report"]).decode()
    assert '"../../images/cat_oil.png"' in page
    assert EMBEDDED in page
    record = json.loads(files.read(report.files["run"]))
    assert json.loads(json.dumps(asdict(report))).items() <= record.items()
    assert record["request"]["backbone"] == "tiny"
    assert (len(record["manifest_sha256"]), len(record["weights_sha256"])) == (64, 64)


def test_flagged_image_is_reported_but_no_failure(tmp_path: Path) -> None:
    quality = {"style_gap": {}, "style_gap_held_out": 0.652, "content_cosine": 0.591, "luminance_ssim": 0.26}
    success = make_success(flags=("blank", "no_progress"), quality=quality)
    skip = make_success("dog_oil", 1, status=Status.SKIPPED, flags=("unheard_of",))
    failure = Outcome(id="elk", row=4, status=Status.FAILED, error="not a finite number", flags=("not_finite",))
    report, folder = write_run_report(tmp_path, str(tmp_path / "out"), [success, skip, failure])
    assert report.failures == ("row 4, elk: not a finite number",)
    assert report.flagged == (
        "row 1, dog_oil: unheard_of",
        f"row 2, cat_oil: blank: {FLAGS['blank'].meaning}; {FLAGS['blank'].remedy}",
        f"row 2, cat_oil: no_progress: {FLAGS['no_progress'].meaning}; {FLAGS['no_progress'].remedy}",
    )
    assert report.counts == {"succeeded": 1, "failed": 1, "rejected": 0, "skipped": 1}
    assert json.loads(files.read(f"{folder}/run.json"))["flagged"] == list(report.flagged)
    table = pd.read_parquet(io.BytesIO(files.read(report.files["summary"])))
    assert list(table["flags"]) == ["unheard_of", "blank|no_progress", "not_finite"]
    assert list(table["style_gap"].fillna(-9)) == [-9, 0.652, -9]
    assert "2 pictures with a flag" in files.read(report.files["report"]).decode()


def test_a_run_without_rejected_rows_writes_no_rejected_csv(tmp_path: Path) -> None:
    report, folder = write_run_report(tmp_path, str(tmp_path / "out"), [make_success()])
    assert sorted(files.list_files(folder)) == ["report.html", "run.json", "summary.parquet"]
    assert "rejected" not in report.files


def test_no_file_of_a_run_names_a_credential(tmp_path: Path, memory: str) -> None:
    out = memory.replace("memory://", "memory://user:hunter2@") + "/out?token=hunter2"
    store = fsspec.filesystem("memory")
    try:
        report, folder = write_run_report(tmp_path, out, [make_success()])
        for name in files.list_files(folder):
            assert b"hunter2" not in files.read(join_uri(folder, name)), name
    finally:
        store.rm(out.removeprefix("memory://").partition("/")[0], recursive=True)
    assert "hunter2" not in str(report)
    assert report.out == f"{memory}/out"


def test_reasons_of_a_row_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("content,style,size,seed\na.png,b.png,9,-1\na.png,b.png,8,\nc.png,d.png,,\n")
    _, invalid_manifest = read_manifest(str(tmp_path / "m.csv"))
    reasons = manifest.group_problems_by_row(invalid_manifest)
    size, seed = "; ".join(reasons[2]).split("; row 2, ")
    assert size.startswith("row 2, column size: 9 is below")
    assert seed.startswith("column seed: -1 is below")
    assert 4 not in reasons


# Rebuilding


def publish(out: str, *outcomes: Outcome) -> None:
    for record in outcomes:
        files.write(join_uri(out, marker_path(record.id)), outcome.to_json(record))
        if record.history:
            terms = np.array([[3, 30, 0.5], [2, 20, 0.5], [1, 10, 0.5]], np.float32)
            level = loss_history.LevelHistory(0, 20, 30, terms, np.ones(3), np.arange(3.0))
            files.write(
                join_uri(out, record.history), loss_history.to_parquet(loss_history.build_table(record.id, "run-1", [level], 1))
            )
        if record.thumbnail:
            files.write(join_uri(out, record.thumbnail), STRIP)


def test_rebuild_shows_the_pairs_of_all_runs(tmp_path: Path) -> None:
    out = str(tmp_path)
    failure = Outcome(id="elk", row=9, status=Status.FAILED, error="/in/elk.png: does not exist")
    publish(out, make_success(), make_success("dog_oil", 3, run_id="run-2"), failure)
    uri, pairs, warnings = rebuild_report(out, SETTINGS)
    assert (uri, pairs, warnings) == (f"{tmp_path}/report.html", 3, [])
    page = (tmp_path / "report.html").read_text()
    assert 'href="images/cat_oil.png"' in page
    assert 'href="images/dog_oil.png"' in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "/in/elk.png: does not exist" in page
    assert '"cat_oil":[{"height":20,"width":30,"step":[0,1,2],"content":[3.0,2.0,1.0]' in page
    assert '"dog_oil":[{' in page


def test_rebuild_ignores_a_damaged_marker_with_a_warning(tmp_path: Path) -> None:
    publish(str(tmp_path), make_success(), make_success("dog_oil"))
    (tmp_path / "outcomes" / "cat_oil.json").write_bytes(b'{"id": "cat')
    (tmp_path / "outcomes" / "foreign.json").write_bytes(b"[1]")
    (tmp_path / "outcomes" / "notes.txt").write_bytes(b"none of ours")
    _, pairs, warnings = rebuild_report(str(tmp_path), SETTINGS)
    assert pairs == 1
    assert [warning.split(", ")[0] for warning in warnings] == [
        "outcomes/cat_oil.json: ignored",
        "outcomes/foreign.json: ignored",
    ]
    page = (tmp_path / "report.html").read_text()
    assert "dog_oil" in page
    assert "cat_oil" not in page


def test_unreadable_outcomes_are_ignored_with_a_warning(memory: str) -> None:
    publish(memory, make_success())
    outcomes, warnings = read_outcomes(memory, ["gone", "cat_oil"], 4)
    assert outcomes == [make_success()]
    assert warnings == [f"{memory}/outcomes/gone.json: does not exist; check the name"]


def test_a_marker_under_anothers_name_is_ignored(memory: str) -> None:
    files.write(join_uri(memory, "outcomes/dog_oil.json"), outcome.to_json(make_success()))
    outcomes, warnings = read_outcomes(memory, ["dog_oil"], 4)
    assert outcomes == []
    assert warnings == ["outcomes/dog_oil.json: ignored, it is the marker of cat_oil"]


def test_rebuild_of_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        rebuild_report(str(tmp_path), SETTINGS)
    assert str(caught.value) == f"{tmp_path}: holds no outcomes; give the folder that was given to --out"
    assert not list(tmp_path.iterdir())


def test_report_embeds_thumbnails_of_shown_images(tmp_path: Path) -> None:
    outcomes = [make_success(f"pair-{k}", k + 2, thumbnail="thumbnails/one.jpg", history="") for k in range(MAX_IMAGES + 1)]
    outcomes[-1] = replace(outcomes[-1], flags=("blank",))
    files.write(f"{tmp_path}/out/thumbnails/one.jpg", STRIP)
    _, folder = write_run_report(tmp_path, f"{tmp_path}/out", outcomes)
    page = files.read(f"{folder}/report.html").decode()
    assert page.count(EMBEDDED) == MAX_IMAGES
    assert ">pair-1000</a>" in page
    assert ">pair-999</a>" not in page


def test_missing_thumbnail_is_omitted(memory: str) -> None:
    publish(memory, make_success(), make_success("dog_oil"))
    outcomes = [make_success(), make_success("gone"), make_success("dog_oil")]
    assert list(read_thumbnails(memory, outcomes, SETTINGS)) == ["cat_oil", "dog_oil"]


def test_invalid_thumbnail_is_not_embedded(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "out" / "thumbnails").mkdir(parents=True)
    (tmp_path / "out" / "thumbnails" / "cat_oil.jpg").symlink_to(tmp_path / "secret")
    files.write(f"{tmp_path}/out/thumbnails/dog_oil.jpg", STRIP)
    thumbnails = read_thumbnails(str(tmp_path / "out"), [make_success(), make_success("dog_oil", 3)], SETTINGS)
    assert list(thumbnails) == ["dog_oil"]


def test_a_report_holds_strips_of_a_bounded_height(memory: str) -> None:
    files.write(f"{memory}/thumbnails/cat_oil.jpg", encode_strip([np.full((400, 600, 3), 0.5, np.float32)] * 3, 320, 4))
    (url,) = read_thumbnails(memory, [make_success()], SETTINGS).values()
    assert codec.read_size(base64.b64decode(url.partition(",")[2]), 10**6) == (128, 579)


def test_unreadable_history_is_omitted_from_the_report(memory: str) -> None:
    publish(memory, make_success(), make_success("dog_oil"), make_success("elk_oil"))
    data = files.read(f"{memory}/history/dog_oil.parquet")
    files.write(f"{memory}/history/dog_oil.parquet", data[: len(data) // 2])
    files.write(f"{memory}/history/elk_oil.parquet", b"hunter2")
    outcomes = [
        make_success(),
        make_success("dog_oil"),
        make_success("elk_oil"),
        make_success("gone"),
        make_success("none", history=""),
    ]
    assert list(read_curves(memory, outcomes, SETTINGS)) == ["cat_oil"]
    _, pairs, _ = rebuild_report(memory, SETTINGS)
    assert pairs == 3


@pytest.mark.parametrize("folder", ["thumbnails", "history"])
def test_transient_store_failure_writes_no_partial_report(tmp_path: Path, folder: str) -> None:
    publish(str(tmp_path), make_success(), make_success("dog_oil"))
    (name,) = (path for path in (tmp_path / folder).iterdir() if path.stem == "dog_oil")
    name.unlink()
    name.symlink_to(name)  # a loop: this error does not prove that the file is damaged
    with pytest.raises(StorageUnavailable):
        rebuild_report(str(tmp_path), SETTINGS)
