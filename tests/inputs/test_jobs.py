"""Job keys, which change exactly with the pixels of the result, and batches computed by hand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from typing import Any

import pytest

from nst_tasks.core import method
from nst_tasks.core.bands import CPU_FLOAT32, CPU_MIXED, GPU
from nst_tasks.core.memory import (
    BAND_BYTES_PER_VALUE,
    LBFGS_BYTES_PER_PIXEL,
    LBFGS_UPDATE_BYTES_PER_PIXEL,
    WHOLE_BYTES_PER_PIXEL,
    fitting_size,
    peak_bytes,
)
from nst_tasks.core.method import LBFGS, MIN_SIZE, SGD, Pyramid
from nst_tasks.images.picture import Source
from nst_tasks.inputs import presets
from nst_tasks.inputs.jobs import Batch, Job, group_into_batches
from nst_tasks.inputs.manifest import Pair
from nst_tasks.inputs.presets import PAINTERLY, TF_TUTORIAL
from nst_tasks.inputs.recipe import Overrides, Recipe, override
from tests.support.changes import change_job

CAT = Source("/in/cat.png", "c" * 64, "1", 60, 80)
OIL = Source("/in/oil.v2.png", "0" * 64, "1", 60, 80)
INK = Source("/in/ink.png", "1" * 64, "1", 60, 80)
SKY = Source("/in/sky.png", "5" * 64, "1", 60, 80)


def make_job(**fields: Any) -> Job:
    pair = Pair(2, "cat_oil", CAT.uri, (OIL.uri,), (1.0,))
    plain = Job(
        pair, TF_TUTORIAL, CAT, (OIL,), init=None, mask=None, upscale=False, height=60, width=80, weights_sha256="w" * 64
    )
    return change_job(plain, **fields)


def make_recipe(**changes: Any) -> Recipe:
    return replace(TF_TUTORIAL, method=replace(TF_TUTORIAL.method, **changes))


METHOD = TF_TUTORIAL.method
DECISIVE_CHANGES = {
    "content bytes": make_job(content=replace(CAT, sha256="d" * 64)),
    "style bytes": make_job(styles=(replace(OIL, sha256="2" * 64),)),
    "another style": make_job(styles=(OIL, INK), style_weights=(0.5, 0.5)),
    "style weights": make_job(styles=(OIL, INK), style_weights=(0.25, 0.75)),
    "style order": make_job(styles=(INK, OIL), style_weights=(0.25, 0.75)),
    "content weight": make_job(recipe=override(TF_TUTORIAL, Overrides(content_weight=1.0))),
    "style weight": make_job(recipe=override(TF_TUTORIAL, Overrides(style_weight=1.0))),
    "tv weight": make_job(recipe=override(TF_TUTORIAL, Overrides(tv_weight=1.0))),
    "steps": make_job(recipe=override(TF_TUTORIAL, Overrides(steps=7))),
    "size": make_job(recipe=override(TF_TUTORIAL, Overrides(size=256))),
    "another method": make_job(recipe=PAINTERLY),
    "learning rate": make_job(recipe=make_recipe(optimizer=replace(METHOD.optimizer, learning_rate=0.021))),
    "epsilon": make_job(recipe=make_recipe(optimizer=replace(METHOD.optimizer, epsilon=1e-7))),
    "content layer": make_job(recipe=make_recipe(content=replace(METHOD.content, layers=(("block4_conv2", 1.0),)))),
    "statistic": make_job(recipe=make_recipe(style=replace(METHOD.style, statistic="wasserstein"))),
    "tv kind": make_job(recipe=make_recipe(total_variation=replace(METHOD.total_variation, kind="l2_mean"))),
    "pyramid": make_job(recipe=make_recipe(pyramid=Pyramid(64, 2.0, 10))),
    "initial image": make_job(recipe=make_recipe(init="noise")),
    "initial noise": make_job(recipe=make_recipe(init_noise=0.1)),
    "pooling": make_job(recipe=make_recipe(pooling="average")),
    "padding": make_job(recipe=make_recipe(padding="replicate")),
    "activation": make_job(recipe=make_recipe(activation="linear")),
    "feature scale": make_job(recipe=make_recipe(feature_scale=0.5)),
    "style shape": make_job(recipe=make_recipe(style_shape="content")),
    "clip": make_job(recipe=make_recipe(clip=False)),
    "output": make_job(recipe=make_recipe(output="average")),
    "plateau": make_job(recipe=override(TF_TUTORIAL, Overrides(plateau=0.01))),
    "plateau's tolerance": make_job(recipe=override(TF_TUTORIAL, Overrides(plateau=0.02))),
    "precision": make_job(recipe=override(TF_TUTORIAL, Overrides(precision="mixed"))),
    "average decay": make_job(recipe=make_recipe(output="average", average_decay=0.5)),
    "optimizer": make_job(recipe=make_recipe(optimizer=SGD(learning_rate=0.02))),
    "seed": make_job(seed=1),
    "initial picture": make_job(init=SKY),
    "initial picture's bytes": make_job(init=replace(SKY, sha256="6" * 64)),
    "luminance": make_job(keep_color="luminance"),
    "matched colors": make_job(keep_color="match"),
    "mask": make_job(mask=SKY),
    "mask's bytes": make_job(mask=replace(SKY, sha256="6" * 64)),
    "upscale": make_job(upscale=True),
    "format": make_job(format="jpg"),
    "weights": make_job(weights_sha256="x" * 64),
}
NEUTRAL_CHANGES = {
    "id": make_job(id="another"),
    "row": make_job(row=99),
    "content's place": make_job(content=replace(CAT, uri="s3://b/moved.png", version="2")),
    "style's place": make_job(styles=(replace(OIL, uri="s3://b/moved.png", version="2"),)),
    "recipe's name in the row": replace(make_job(), pair=replace(make_job().pair, recipe="tf-tutorial")),
    "overrides, which are in the recipe": make_job(overrides=Overrides(size=512)),
    "recipe's texts": make_job(recipe=replace(TF_TUTORIAL, name="mine", summary="x", source="y", differs="z")),
}


@pytest.mark.parametrize("case", DECISIVE_CHANGES)
def test_the_key_changes_with_all_that_decides_the_result(case: str) -> None:
    other_keys = {name: job.key for name, job in DECISIVE_CHANGES.items() if name != case}
    assert DECISIVE_CHANGES[case].key not in {make_job().key, *other_keys.values()}


@pytest.mark.parametrize("case", NEUTRAL_CHANGES)
def test_the_key_does_not_change_with_names_and_places(case: str) -> None:
    assert NEUTRAL_CHANGES[case].key == make_job().key


@pytest.mark.parametrize("column", ["init", "mask"])
def test_key_ignores_the_place_of_mask_and_init_image(column: str) -> None:
    assert make_job(**{column: replace(SKY, uri="s3://b/moved.png", version="2")}).key == make_job(**{column: SKY}).key


def test_the_key_changes_with_the_numerics_version(monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_job().key
    monkeypatch.setattr("nst_tasks.inputs.jobs.NUMERICS_VERSION", method.NUMERICS_VERSION + 1)
    assert make_job().key != key


def test_the_key_is_the_sha256_of_these_values() -> None:
    """Fixed values: existing outputs must keep their keys."""
    job = make_job(
        styles=(OIL, INK), style_weights=(0.25, 0.75), seed=7, keep_color="match", mask=SKY, format="jpg", upscale=True
    )
    values = {
        "numerics": method.NUMERICS_VERSION, "content": CAT.sha256, "styles": [[OIL.sha256, 0.25], [INK.sha256, 0.75]],
        "method": METHOD.plain, "size": 512, "upscale": True, "init": None, "keep_color": "match", "mask": SKY.sha256,
        "seed": 7, "format": "jpg", "weights": "w" * 64,
    }  # fmt: skip
    assert job.key == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def test_new_job_or_method_field_needs_a_decision() -> None:
    """Each field decides the key, and is in DECISIVE_CHANGES above, or does not; `height` and `width` follow from others."""
    assert [field.name for field in fields(Job)] == [
        "pair", "recipe", "content", "styles", "init", "mask", "upscale", "height", "width", "weights_sha256",
    ]  # fmt: skip
    assert [field.name for field in fields(method.Method)] == [
        "content", "style", "total_variation", "optimizer", "steps", "pyramid", "init", "init_noise", "pooling", "padding",
        "activation", "feature_scale", "style_shape", "clip", "output", "average_decay", "plateau", "precision",
    ]  # fmt: skip


def test_names_are_made_of_the_file_names() -> None:
    assert make_job().name == "cat x oil"
    two_styles = make_job(styles=(OIL, INK), style_weights=(0.5, 0.5))
    assert two_styles.name == "cat x oil + ink"
    assert Batch((make_job(),)).name == "cat x oil"
    assert Batch((make_job(), two_styles, two_styles)).name == "cat x oil and 2 more"


def test_steps_and_work_are_summed_over_levels() -> None:
    plain = make_job(recipe=override(TF_TUTORIAL, Overrides(steps=7)))
    assert (plain.steps, plain.pixel_steps) == (7, 7 * 60 * 80)
    two_levels = make_job(recipe=make_recipe(steps=7, pyramid=Pyramid(smallest=40, ratio=1.6, coarse_steps=3)))
    assert (two_levels.steps, two_levels.pixel_steps) == (3 + 7, 3 * 38 * 50 + 7 * 60 * 80)


def list_rows(batches: list[Batch]) -> list[list[int]]:
    return [[job.row for job in batch.jobs] for batch in batches]


PLENTY = 1e15


def test_batches_group_by_method_shape_and_styles() -> None:
    two_styles = {"styles": (OIL, INK), "style_weights": (0.5, 0.5)}
    jobs = [
        make_job(row=2),
        make_job(row=3, height=80, width=60),
        make_job(row=4, content=replace(CAT, sha256="d" * 64)),
        make_job(row=5, **two_styles),
        make_job(row=6, recipe=PAINTERLY),
        make_job(row=7, styles=(INK,)),
        make_job(row=8, height=80, width=60),
        make_job(row=9, recipe=override(TF_TUTORIAL, Overrides(tv_weight=0.5))),
        make_job(row=10, **two_styles),
        make_job(row=11, recipe=replace(TF_TUTORIAL, name="the same method under another name")),
    ]
    batches = group_into_batches(jobs, 8, PLENTY)
    assert list_rows(batches) == [[2, 4, 7, 11], [3, 8], [5, 10], [6], [9]]
    assert sorted(job.row for batch in batches for job in batch.jobs) == [job.row for job in jobs]


def test_masked_jobs_have_their_own_batches() -> None:
    changes: list[dict[str, Any]] = [{}, {"mask": SKY}, {"init": SKY}, {"mask": CAT}, {"keep_color": "match"}, {"mask": SKY}]
    jobs = [make_job(row=2 + k, **change) for k, change in enumerate(changes)]
    assert list_rows(group_into_batches(jobs, 8, PLENTY)) == [[2, 4, 6], [3, 5, 7]]


def test_batch_size_is_limited() -> None:
    jobs = [make_job(row=row) for row in range(2, 9)]
    assert list_rows(group_into_batches(jobs, 3, PLENTY)) == [[2, 3, 4], [5, 6, 7], [8]]
    assert list_rows(group_into_batches(jobs, 1, PLENTY)) == [[row] for row in range(2, 9)]


def test_batches_run_in_the_order_of_their_first_rows() -> None:
    jobs = [make_job(row=2), make_job(row=3, seed=1, height=50), make_job(row=4), make_job(row=5), make_job(row=6, height=50)]
    assert list_rows(group_into_batches(jobs, 2, PLENTY)) == [[2, 4], [3, 6], [5]]


@pytest.mark.parametrize(("pairs", "at_once"), [(0.5, 1), (1.0, 1), (2.0, 2), (2.99, 2), (3.0, 3), (100, 5)])
def test_memory_bounds_a_batch_but_one_pair_is_always_tried(pairs: float, at_once: int) -> None:
    room = pairs * peak_bytes(make_job().recipe.method, 60, 80)
    batches = group_into_batches([make_job(row=row) for row in range(2, 7)], 8, room)
    assert len(batches[0].jobs) == at_once
    assert sum(len(batch.jobs) for batch in batches) == 5


def test_lbfgs_history_is_counted_as_memory() -> None:
    method = presets.find_preset("gatys-2016").method
    assert isinstance(method.optimizer, LBFGS)
    pixels = 60 * 80
    # a hundred pairs of float32 images of three channels
    assert peak_bytes(method, 60, 80) == (WHOLE_BYTES_PER_PIXEL + 100 * 2 * 12 + LBFGS_BYTES_PER_PIXEL) * pixels
    assert (
        peak_bytes(replace(method, optimizer=LBFGS(history=1)), 60, 80)
        == (WHOLE_BYTES_PER_PIXEL + 24 + LBFGS_BYTES_PER_PIXEL) * pixels
    )
    # where the features take less, an update has two of them
    assert peak_bytes(method, 2048, 2048) == (LBFGS_UPDATE_BYTES_PER_PIXEL + 2 * 100 * 2 * 12) * 2048**2
    assert peak_bytes(presets.find_preset("tf-tutorial").method, 60, 80) == WHOLE_BYTES_PER_PIXEL * pixels


def test_features_in_bfloat16_take_less() -> None:
    method = presets.find_preset("tf-tutorial").method
    mixed = replace(method, precision="mixed")
    assert peak_bytes(mixed, 60, 80) == peak_bytes(method, 60, 80) * 2 // 3
    float32_bytes, mixed_bytes = BAND_BYTES_PER_VALUE * CPU_FLOAT32.max_values, BAND_BYTES_PER_VALUE * CPU_MIXED.max_values
    assert peak_bytes(mixed, 3072, 4096) - mixed_bytes == (peak_bytes(method, 3072, 4096) - float32_bytes) * 2 // 3


def test_only_a_band_of_a_large_picture_is_in_memory() -> None:
    method = presets.find_preset("tf-tutorial").method
    side = 4096
    assert peak_bytes(method, side, side) < WHOLE_BYTES_PER_PIXEL * side**2 / 5
    band = BAND_BYTES_PER_VALUE * CPU_FLOAT32.max_values
    assert peak_bytes(method, side, 2 * side) - band == 2 * (peak_bytes(method, side, side) - band)
    assert peak_bytes(PAINTERLY.method, 3072, 4096) < 8 * 2**30  # the default device memory


def test_on_a_gpu_pictures_up_to_a_megapixel_are_computed_whole() -> None:
    method = presets.find_preset("tf-tutorial").method
    assert peak_bytes(method, 1024, 1024, on_gpu=True) == WHOLE_BYTES_PER_PIXEL * 1024**2 > peak_bytes(method, 1024, 1024)
    assert peak_bytes(method, 60, 80, on_gpu=True) == peak_bytes(method, 60, 80)
    large = peak_bytes(method, 4096, 4096, on_gpu=True) - peak_bytes(method, 4096, 4096)
    assert large == BAND_BYTES_PER_VALUE * (GPU.max_values - CPU_FLOAT32.max_values)
    room = 2 * peak_bytes(method, 1024, 1024)
    jobs = [make_job(row=row, height=1024, width=1024) for row in range(2, 6)]
    assert list_rows(group_into_batches(jobs, 8, room)) == [[2, 3], [4, 5]]
    assert list_rows(group_into_batches(jobs, 8, room, on_gpus=True)) == [[2], [3], [4], [5]]
    assert fitting_size(method, 4096, 4096, room, on_gpu=True) < fitting_size(method, 4096, 4096, room)


def test_fitting_size_is_the_largest_that_fits() -> None:
    for preset_method in (PAINTERLY.method, TF_TUTORIAL.method):
        for room in (2**28, 2**30, 2**33):
            side = fitting_size(preset_method, 6000, 8000, room)
            shape, larger_shape = (side * 3 // 4, side), ((side + 16) * 3 // 4, side + 16)
            assert peak_bytes(preset_method, *shape) <= room < peak_bytes(preset_method, *larger_shape)
    assert fitting_size(TF_TUTORIAL.method, 300, 400, 1) == MIN_SIZE


def test_fitting_size_ignores_larger_sizes_with_less_history() -> None:
    method = presets.find_preset("gatys-2016").method  # a hundred differences, and two of more than 4 megapixels
    room = peak_bytes(method, 2800, 2800)
    assert peak_bytes(method, 2000, 2000) > room
    side = fitting_size(method, 2000, 2000, room)
    assert side < 2000
    assert peak_bytes(method, side, side) <= room < peak_bytes(method, side + 16, side + 16)
    assert 2784 <= fitting_size(method, 4000, 4000, room) <= 2800


def test_memory_is_counted_by_the_pictures_own_size() -> None:
    room = 4 * peak_bytes(make_job().recipe.method, 60, 80)
    jobs = [make_job(row=2 + k, height=60 * (1 + k % 2), width=80) for k in range(8)]
    assert list_rows(group_into_batches(jobs, 8, room)) == [[2, 4, 6, 8], [3, 5], [7, 9]]


def test_no_jobs_make_no_batch() -> None:
    assert group_into_batches([], 8, PLENTY) == []
