"""Commit markers: round trips, and refusal of anything else."""

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
SUCCEEDED = Outcome(
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


@pytest.mark.parametrize("outcome", [SUCCEEDED, FAILED])
def test_marker_round_trip(outcome: Outcome) -> None:
    back = from_json(to_json(outcome))
    assert back == outcome
    assert isinstance(back.status, Status)
    assert isinstance(back.styles, tuple)
    assert isinstance(back.style_weights, tuple)
    assert isinstance(back.flags, tuple)


def test_the_same_outcome_gives_the_same_bytes() -> None:
    other_order = replace(
        SUCCEEDED, losses=dict(reversed(SUCCEEDED.losses.items())), recipe=dict(reversed(SUCCEEDED.recipe.items()))
    )
    assert to_json(other_order) == to_json(SUCCEEDED)
    data = to_json(SUCCEEDED)
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
def test_marker_with_a_non_finite_number_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(replace(SUCCEEDED, **fields))


def encode_with(**fields: Any) -> bytes:
    return json.dumps(json.loads(to_json(SUCCEEDED)) | fields).encode()


def encode_without(*names: str) -> bytes:
    return json.dumps({name: value for name, value in json.loads(to_json(SUCCEEDED)).items() if name not in names}).encode()


def test_marker_ignores_newer_fields_and_defaults_missing() -> None:
    assert from_json(encode_with(mood="blue")) == SUCCEEDED
    assert from_json(encode_without("thumbnail", "losses")) == replace(SUCCEEDED, thumbnail="", losses={})
    assert from_json(encode_without("quality", "flags")) == replace(SUCCEEDED, quality={}, flags=())  # as in older markers
    newer = encode_with(
        quality={"mood": "blue", "luminance_ssim": 1}, losses={**SUCCEEDED.losses, "mood": "blue"}, flags=["unheard_of"]
    )
    assert from_json(newer).quality["luminance_ssim"] == 1
    assert from_json(newer).flags == ("unheard_of",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        to_json(SUCCEEDED)[:-20],
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"succeeded"',
        b"[" * 100_000,
        b'{"marker_version": 1, "recipe": ' + b'{"a":' * 100_000,
        b"{}",
        b'{"id": "a", "row": 1, "status": "succeeded"}',
        encode_with(marker_version=2),
        encode_with(marker_version="1"),
        encode_without("marker_version"),
        encode_without("id"),
        encode_without("row"),
        encode_without("status"),
        encode_with(status="sleeping"),
        encode_with(id=5),
        encode_with(row="2"),
        encode_with(row=True),
        encode_with(row=-1),
        encode_with(height=10**400),
        encode_with(seconds=10**400),
        encode_with(seconds=math.nan),
        encode_with(versions={"numpy": 2}),
        encode_with(image=None),
        encode_with(image_bytes="11"),
        encode_with(seconds="fast"),
        encode_with(losses=[1]),
        encode_with(losses={"total": 6.0}),
        encode_with(losses={**SUCCEEDED.losses, "tv": "3"}),
        encode_with(losses={**SUCCEEDED.losses, "tv": math.nan}),
        encode_with(quality=None),
        encode_with(quality=[0.5]),
        encode_with(quality={"style_gap": 0.5}),
        encode_with(quality={"style_gap": {"block1_conv1": "0.5"}}),
        encode_with(quality={"style_gap": {"block1_conv1": math.nan}}),
        encode_with(quality={"style_gap_held_out": "0.5"}),
        encode_with(quality={"style_gap_used": None}),
        encode_with(quality={"content_cosine": True}),
        encode_with(quality={"luminance_ssim": math.inf}),
        encode_with(quality={"luminance_ssim": 10**400}),
        encode_with(flags=None),
        encode_with(flags="blank"),
        encode_with(flags={"blank": 1}),
        encode_with(flags=[1]),
        encode_with(recipe="painterly"),
        encode_with(content="s3://b/cat.png"),
        encode_with(content=""),
        encode_with(content={"uri": "s3://b/cat.png"}),
        encode_with(content={**json.loads(to_json(SUCCEEDED))["content"], "mood": "blue"}),
        encode_with(styles=None),
        encode_with(styles=["/data/oil.jpg"]),
        encode_with(style_weights=1),
        encode_with(style_weights=["1"]),
        encode_with(style_weights=[math.inf]),
    ],
)
def test_invalid_marker_is_a_value_error(data: bytes) -> None:
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
        from_json(encode_with(**{field: path}))


def test_an_older_markers_strip_is_a_webp() -> None:
    assert from_json(encode_with(thumbnail="thumbnails/cat_oil.webp")).thumbnail == "thumbnails/cat_oil.webp"


def test_summary_has_a_row_per_outcome_in_order() -> None:
    rejection = Outcome(id="", row=3, status=Status.REJECTED, error="row 3, column size: 9 is below")
    table = build_summary([SUCCEEDED, rejection, FAILED])
    assert tuple(table.columns) == SUMMARY_COLUMNS
    assert list(table["row"]) == [2, 3, 7]
    assert list(table["status"]) == ["failed", "rejected", "succeeded"]
    success = table.iloc[2]
    assert (success["content"], success["style"]) == ("s3://b/cat.png", "/data/oil.jpg|/data/tusche schön.jpg")
    assert (success["recipe"], success["backbone"], success["height"], success["width"]) == ("painterly", "tiny", 30, 40)
    assert (success["precision"], success["steps"], success["steps_done"]) == ("mixed", 9, 4)
    assert [success[name] for name in ("total", "content_loss", "style_loss", "tv_loss")] == [6.0, 1.0, 2.0, 3.0]
    quality = ("style_gap", "style_gap_used", "content_cosine", "luminance_ssim")
    assert [success[name] for name in quality] == [-0.25, 0.9, 0.5, 0.75]
    assert success["flags"] == "blank|no_progress"
    assert (success["image"], success["history"]) == ("images/cat_oil.png", "history/cat_oil.parquet")
    failure = table.iloc[0]
    assert (failure["id"], failure["error"], failure["content"], failure["precision"]) == ("dog", "cannot be read", "", "")
    assert math.isnan(failure["total"])
    assert all(math.isnan(failure[name]) for name in quality)
    assert failure["flags"] == ""


def test_empty_summary_has_its_columns() -> None:
    table = build_summary([])
    assert (tuple(table.columns), len(table)) == (SUMMARY_COLUMNS, 0)
