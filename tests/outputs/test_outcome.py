"""The commit marker: what is written comes back, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from nst_tasks.images.picture import Source
from nst_tasks.outputs.outcome import Outcome, Status, from_json, to_json
from nst_tasks.outputs.report import SUMMARY_COLUMNS, build_summary

CAT = Source("s3://b/cat.png", "c" * 64, "v1", 30, 40)
OIL = Source("/data/oil.jpg", "0" * 64, "", 5, 6)
INK = Source("/data/tusche schön.jpg", "1" * 64, "7", 5, 6)
DONE = Outcome(
    id="cat_oil",
    row=7,
    status=Status.SUCCEEDED,
    run_id="run-1",
    key="k" * 64,
    content=CAT,
    styles=(OIL, INK),
    style_weights=(0.25, 0.75),
    recipe={
        "name": "painterly",
        "size": 512,
        "method": {"pyramid": None, "precision": "mixed", "layers": [["block1_conv1", 1.0]]},
    },
    seed=3,
    init=INK,
    keep_color="luminance",
    mask=CAT,
    backbone="tiny",
    weights_sha256="w" * 64,
    versions={"numpy": "2"},
    height=30,
    width=40,
    steps=9,
    steps_done=4,
    seconds=1.5,
    losses={"total": 6.0, "content": 1.0, "style": 2.0, "tv": 3.0},
    quality={
        "style_gap": {"block1_conv1": 0.9, "block2_conv2": -0.25},
        "style_gap_used": 0.9,
        "style_gap_held_out": -0.25,
        "content_cosine": 0.5,
        "luminance_ssim": 0.75,
    },
    flags=("blank", "no_progress"),
    image="images/cat_oil.png",
    image_bytes=11,
    image_sha256="i" * 64,
    history="history/cat_oil.parquet",
    history_bytes=12,
    thumbnail="thumbnails/cat_oil.jpg",
)
FAILED = Outcome(id="dog", row=2, status=Status.FAILED, error="cannot be read")


@pytest.mark.parametrize("what", [DONE, FAILED])
def test_a_marker_comes_back_as_it_was(what: Outcome) -> None:
    back = from_json(to_json(what))
    assert back == what
    assert isinstance(back.status, Status)
    assert isinstance(back.styles, tuple)
    assert isinstance(back.style_weights, tuple)
    assert isinstance(back.flags, tuple)


def test_the_same_outcome_gives_the_same_bytes() -> None:
    other_order = replace(DONE, losses=dict(reversed(DONE.losses.items())), recipe=dict(reversed(DONE.recipe.items())))
    assert to_json(other_order) == to_json(DONE)
    data = to_json(DONE)
    record = json.loads(data)
    assert list(record) == sorted(record)
    assert list(record["losses"]) == ["content", "style", "total", "tv"]
    assert data.endswith(b"}\n")
    assert "schön" in data.decode()


def test_marker_of_version_0_5_is_read_and_written_unchanged() -> None:
    data = b"""{
 "backbone": "",
 "content": null,
 "error": "cannot be read",
 "flags": [],
 "height": 0,
 "history": "",
 "history_bytes": 0,
 "id": "dog",
 "image": "",
 "image_bytes": 0,
 "image_sha256": "",
 "init": null,
 "keep_color": "",
 "key": "",
 "losses": {},
 "marker_version": 1,
 "mask": null,
 "quality": {},
 "recipe": {},
 "row": 2,
 "run_id": "",
 "seconds": 0.0,
 "seed": 0,
 "status": "failed",
 "steps": 0,
 "steps_done": 0,
 "style_weights": [],
 "styles": [],
 "thumbnail": "",
 "versions": {},
 "weights_sha256": "",
 "width": 0
}
"""
    assert from_json(data) == FAILED
    assert to_json(FAILED) == data


@pytest.mark.parametrize("fields", [{"losses": {"total": math.nan}}, {"quality": {"content_cosine": math.inf}}])
def test_a_marker_holds_no_number_that_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(replace(DONE, **fields))


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(to_json(DONE)) | fields).encode()


def without(*names: str) -> bytes:
    return json.dumps({name: value for name, value in json.loads(to_json(DONE)).items() if name not in names}).encode()


def test_marker_ignores_newer_fields_and_defaults_missing() -> None:
    assert from_json(changed(mood="blue")) == DONE
    assert from_json(without("thumbnail", "losses")) == replace(DONE, thumbnail="", losses={})
    assert from_json(without("quality", "flags")) == replace(DONE, quality={}, flags=())  # as before there were any
    newer = changed(quality={"mood": "blue", "luminance_ssim": 1}, losses={**DONE.losses, "mood": "blue"}, flags=["unheard_of"])
    assert from_json(newer).quality["luminance_ssim"] == 1
    assert from_json(newer).flags == ("unheard_of",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        to_json(DONE)[:-20],
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"succeeded"',
        b"[" * 100_000,
        b'{"marker_version": 1, "recipe": ' + b'{"a":' * 100_000,
        b"{}",
        b'{"id": "a", "row": 1, "status": "succeeded"}',
        changed(marker_version=2),
        changed(marker_version="1"),
        without("marker_version"),
        without("id"),
        without("row"),
        without("status"),
        changed(status="sleeping"),
        changed(id=5),
        changed(row="2"),
        changed(row=True),
        changed(row=-1),
        changed(height=10**400),
        changed(seconds=10**400),
        changed(seconds=math.nan),
        changed(versions={"numpy": 2}),
        changed(image=None),
        changed(image_bytes="11"),
        changed(seconds="fast"),
        changed(losses=[1]),
        changed(losses={"total": 6.0}),
        changed(losses={**DONE.losses, "tv": "3"}),
        changed(losses={**DONE.losses, "tv": math.nan}),
        changed(quality=None),
        changed(quality=[0.5]),
        changed(quality={"style_gap": 0.5}),
        changed(quality={"style_gap": {"block1_conv1": "0.5"}}),
        changed(quality={"style_gap": {"block1_conv1": math.nan}}),
        changed(quality={"style_gap_held_out": "0.5"}),
        changed(quality={"style_gap_used": None}),
        changed(quality={"content_cosine": True}),
        changed(quality={"luminance_ssim": math.inf}),
        changed(quality={"luminance_ssim": 10**400}),
        changed(flags=None),
        changed(flags="blank"),
        changed(flags={"blank": 1}),
        changed(flags=[1]),
        changed(recipe="painterly"),
        changed(content="s3://b/cat.png"),
        changed(content=""),
        changed(content={"uri": "s3://b/cat.png"}),
        changed(content={**json.loads(to_json(DONE))["content"], "mood": "blue"}),
        changed(styles=None),
        changed(styles=["/data/oil.jpg"]),
        changed(style_weights=1),
        changed(style_weights=["1"]),
        changed(style_weights=[math.inf]),
    ],
)
def test_what_is_no_marker_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(not )?an outcome marker (of this version|with missing or wrong fields)$"):
        from_json(data)


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("image", "images/other.png"),
        ("image", "javascript:alert(1)"),
        ("image", "images/../../secret.png"),
        ("history", "history/other.parquet"),
        ("thumbnail", "/etc/passwd"),
    ],
)
def test_marker_naming_foreign_files_is_refused(field: str, path: str) -> None:
    with pytest.raises(ValueError, match="files other than its own"):
        from_json(changed(**{field: path}))


def test_an_older_markers_strip_is_a_webp() -> None:
    assert from_json(changed(thumbnail="thumbnails/cat_oil.webp")).thumbnail == "thumbnails/cat_oil.webp"


def test_summary_has_a_row_per_outcome_in_order() -> None:
    rejected = Outcome(id="", row=3, status=Status.REJECTED, error="row 3, column size: 9 is below")
    table = build_summary([DONE, rejected, FAILED])
    assert tuple(table.columns) == SUMMARY_COLUMNS
    assert list(table["row"]) == [2, 3, 7]
    assert list(table["status"]) == ["failed", "rejected", "succeeded"]
    done = table.iloc[2]
    assert (done["content"], done["style"]) == ("s3://b/cat.png", "/data/oil.jpg|/data/tusche schön.jpg")
    assert (done["recipe"], done["backbone"], done["height"], done["width"]) == ("painterly", "tiny", 30, 40)
    assert (done["precision"], done["steps"], done["steps_done"]) == ("mixed", 9, 4)
    assert [done[name] for name in ("total", "content_loss", "style_loss", "tv_loss")] == [6.0, 1.0, 2.0, 3.0]
    quality = ("style_gap", "style_gap_used", "content_cosine", "luminance_ssim")
    assert [done[name] for name in quality] == [-0.25, 0.9, 0.5, 0.75]
    assert done["flags"] == "blank|no_progress"
    assert (done["image"], done["history"]) == ("images/cat_oil.png", "history/cat_oil.parquet")
    failed = table.iloc[0]
    assert (failed["id"], failed["error"], failed["content"], failed["precision"]) == ("dog", "cannot be read", "", "")
    assert math.isnan(failed["total"])
    assert all(math.isnan(failed[name]) for name in quality)
    assert failed["flags"] == ""


def test_the_summary_of_nothing_has_its_columns() -> None:
    table = build_summary([])
    assert (tuple(table.columns), len(table)) == (SUMMARY_COLUMNS, 0)
