"""A job's pictures on their way to the network and back: read, sized, recoloured, cropped, masked."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nst_tasks.core.method import Method
from nst_tasks.engine.preprocessing import (
    LoadedJob,
    _read_verified,
    compute_style_size,
    load_job,
    postprocess,
    prepare_content,
    prepare_initial_image,
    prepare_style,
)
from nst_tasks.errors import PictureError, StorageError
from nst_tasks.images import codec
from nst_tasks.images.color import luminance, replace_luminance
from nst_tasks.images.picture import Picture, Source
from nst_tasks.images.resize import resize
from nst_tasks.inputs.jobs import Job
from tests.support.changes import change_job
from tests.support.jobs import LIGHT, job, run_into
from tests.support.pictures import Array, picture, write_source

EIGHT_BITS = 0.5 / 255 + 1e-6


def ready(content: Array, *styles: Picture, **fields: object) -> LoadedJob:
    """Make a job at the content's size of these pictures."""
    sources = [Source("/x.png", "x", "1", *one.shape[:2]) for one in (content, *(style.rgb for style in styles))]
    own = {name: fields.pop(name) for name in ("mask", "initial") if name in fields}
    height, width = content.shape[:2]
    return LoadedJob(job(*sources, height=height, width=width, **fields), Picture(content), styles, **own)


def gray_deviation(rgb: Array) -> float:
    return float(np.ptp(rgb, axis=2).max())


# --- reading ---


def test_a_job_is_loaded_with_all_its_pictures(tmp_path: Path) -> None:
    content, style, other, first = (picture(k, 60 + k, 80 + k) for k in range(4))
    white_left = np.repeat((np.arange(80) < 40)[None, :, None], 60, axis=0) * np.ones(3, np.float32)
    found = load_job(
        job(
            write_source(tmp_path, "content", content),
            write_source(tmp_path, "style", style),
            write_source(tmp_path, "other", other, np.full(other.shape[:2], 0.5, np.float32)),
            init=write_source(tmp_path, "init", first),
            mask=write_source(tmp_path, "mask", white_left.astype(np.float32)),
        ),
        run_into(tmp_path),
    )
    # the content and the mask at the result's size, the styles and the initial picture as they are
    np.testing.assert_allclose(found.content.rgb, resize(Picture(content), 48, 64).rgb, atol=2 * EIGHT_BITS)
    assert [one.rgb.shape for one in found.styles] == [style.shape, other.shape]
    np.testing.assert_allclose(found.styles[0].rgb, style, atol=EIGHT_BITS)
    assert found.styles[0].alpha is None
    np.testing.assert_allclose(found.styles[1].alpha, 0.5, atol=EIGHT_BITS)
    assert found.initial is not None
    np.testing.assert_allclose(found.initial.rgb, first, atol=EIGHT_BITS)
    assert found.mask is not None
    assert found.mask.shape == (48, 64)
    np.testing.assert_array_equal(found.mask[:, :31], 1.0)
    np.testing.assert_array_equal(found.mask[:, 33:], 0.0)


def test_a_job_without_mask_and_initial_picture_has_none(tmp_path: Path) -> None:
    found = load_job(job(write_source(tmp_path, "a", picture(1)), write_source(tmp_path, "b", picture(2))), run_into(tmp_path))
    assert found.mask is None
    assert found.initial is None


PARTS = ("content", "style", "init", "mask")


def whole(folder: Path) -> Job:
    sources = {name: write_source(folder, name, picture(k)) for k, name in enumerate(PARTS)}
    return job(sources["content"], sources["style"], init=sources["init"], mask=sources["mask"])


@pytest.mark.parametrize("name", PARTS)
def test_image_changed_since_inspection_is_refused(tmp_path: Path, name: str) -> None:
    pair_job = whole(tmp_path)
    (tmp_path / f"{name}.png").write_bytes(codec.encode(picture(9), None, "png", {}))
    with pytest.raises(PictureError, match=rf"{name}\.png: changed while the run was going on; run the same command again"):
        load_job(pair_job, run_into(tmp_path))


def test_pairs_that_share_a_picture_decode_it_once(tmp_path: Path) -> None:
    pair_job, run = whole(tmp_path), run_into(tmp_path)
    first = load_job(pair_job, run)
    for name in ("content", "style"):
        (tmp_path / f"{name}.png").unlink()
    second = load_job(change_job(pair_job, id="b", seed=7), run)
    assert second.content is first.content
    assert second.styles[0] is first.styles[0]
    with pytest.raises(ValueError, match="read-only"):
        second.content.rgb[0] = 0.0
    with pytest.raises(StorageError, match=r"content\.png"):
        load_job(replace(pair_job, height=30, width=40), run)  # at another size it is another


@pytest.mark.parametrize("name", PARTS)
def test_a_picture_that_is_gone_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    pair_job = whole(tmp_path)
    (tmp_path / f"{name}.png").unlink()
    with pytest.raises(StorageError, match=rf"{name}\.png"):
        load_job(pair_job, run_into(tmp_path))


def test_what_is_no_picture_is_told_by_its_name(tmp_path: Path) -> None:
    source = write_source(tmp_path, "content", picture(1))
    data = b"no picture"
    (tmp_path / "content.png").write_bytes(data)
    pair_job = job(replace(source, sha256=hashlib.sha256(data).hexdigest()), write_source(tmp_path, "style", picture(2)))
    with pytest.raises(PictureError, match=r"content\.png: not a picture"):
        load_job(pair_job, run_into(tmp_path))


def test_a_black_mask_is_refused_by_its_name(tmp_path: Path) -> None:
    pair_job = whole(tmp_path)
    pair_job = replace(pair_job, mask=write_source(tmp_path, "mask", np.zeros((32, 40, 3), np.float32)))
    with pytest.raises(PictureError, match=r"mask\.png: the mask is black"):
        load_job(pair_job, run_into(tmp_path))


# --- what the network is shown ---


def test_the_network_sees_the_content_at_the_levels_size() -> None:
    content = picture(1, 48, 64)
    shown = ready(content, Picture(picture(2)))
    np.testing.assert_array_equal(prepare_content(shown, 48, 64), content)
    smaller = prepare_content(shown, 32, 43)
    np.testing.assert_array_equal(smaller, resize(Picture(content), 32, 43).rgb)


def with_shape(shape: str) -> object:
    return replace(LIGHT, method=replace(LIGHT.method, style_shape=shape))


@pytest.mark.parametrize(
    ("shape", "upscale", "expected"),
    [
        ("own", False, (40, 20)),  # 80 x 40 fitted to the level's longest side
        ("own", True, (40, 20)),
        ("content", False, (30, 40)),
    ],
)
def test_a_style_keeps_its_proportions_or_takes_the_levels(shape: str, upscale: bool, expected: tuple[int, int]) -> None:
    style = Picture(picture(2, 80, 40))
    shown = ready(picture(1, 60, 80), style, recipe=with_shape(shape), upscale=upscale)
    assert compute_style_size(shown.job, 80, 40, (30, 40)) == expected
    np.testing.assert_array_equal(prepare_style(shown, style, (30, 40)), resize(style, *expected).rgb)


@pytest.mark.parametrize(("shape", "upscale", "expected"), [("own", False, (20, 10)), ("own", True, (40, 20))])
def test_a_small_style_is_enlarged_only_if_asked(shape: str, upscale: bool, expected: tuple[int, int]) -> None:
    shown = ready(picture(1, 60, 80), Picture(picture(2, 20, 10)), recipe=with_shape(shape), upscale=upscale)
    assert compute_style_size(shown.job, 20, 10, (30, 40)) == expected


def test_narrow_style_keeps_a_usable_size() -> None:
    """Of the light recipe's layers the deepest needs 4 pixels; what is large enough at the recipe's size stays that."""
    shown = ready(picture(1, 60, 80), Picture(picture(2, 300, 15)))
    sizes = {longest: compute_style_size(shown.job, 300, 15, (30, longest)) for longest in (60, 80, 100)}
    assert sizes == {60: (80, 4), 80: (80, 4), 100: (100, 5)}
    shown = ready(picture(1, 60, 80), Picture(picture(2, 60, 3)), upscale=True)
    assert compute_style_size(shown.job, 60, 3, (30, 40)) == (80, 4)


def test_a_style_is_seen_on_white() -> None:
    clear = Picture(picture(2), np.zeros((32, 40), np.float32))
    np.testing.assert_array_equal(prepare_style(ready(picture(1), clear), clear, (32, 40)), np.ones((32, 40, 3)))


# --- the initial image ---


def starting(init: str) -> Method:
    return replace(LIGHT.method, init=init)


def test_initial_image_is_content_mean_color_or_file() -> None:
    content, initial = picture(1, 48, 64), picture(3, 24, 32)
    shown = ready(content, Picture(picture(2)))
    np.testing.assert_array_equal(prepare_initial_image(shown, starting("content"), 48, 64), content)
    half = prepare_initial_image(shown, starting("content"), 24, 32)
    np.testing.assert_array_equal(half, resize(Picture(content), 24, 32).rgb)
    gray = prepare_initial_image(shown, starting("noise"), 24, 32)
    assert gray.shape == (24, 32, 3)
    # ImageNet's mean colour
    np.testing.assert_allclose(gray, np.broadcast_to(np.array([123.68, 116.779, 103.939]) / 255, gray.shape), rtol=1e-6)
    for init in ("content", "style", "noise"):  # a picture comes before any word
        shown = ready(content, Picture(picture(2)), initial=Picture(initial))
        found = prepare_initial_image(shown, starting(init), 48, 64)
        np.testing.assert_array_equal(found, resize(Picture(initial), 48, 64).rgb)


def test_style_as_init_covers_the_frame_centered() -> None:
    wide = picture(2, 20, 40)
    shown = ready(picture(1, 20, 20), Picture(wide), Picture(picture(3)))
    np.testing.assert_array_equal(prepare_initial_image(shown, starting("style"), 20, 20), wide[:, 10:30])
    tall = ready(picture(1, 20, 40), Picture(wide.transpose(1, 0, 2)))
    np.testing.assert_array_equal(prepare_initial_image(tall, starting("style"), 20, 20), wide.transpose(1, 0, 2)[10:30])
    # enlarged by as little as covers: 20 x 40 twice for a frame of 40 x 20
    enlarged = resize(Picture(wide), 40, 80).rgb
    np.testing.assert_array_equal(prepare_initial_image(shown, starting("style"), 40, 20), enlarged[:, 30:50])
    # and made smaller in the same way
    reduced = resize(Picture(wide), 10, 20).rgb
    np.testing.assert_array_equal(prepare_initial_image(shown, starting("style"), 10, 10), reduced[:, 5:15])


def test_a_clear_style_to_start_from_is_seen_on_white() -> None:
    clear = Picture(picture(2), np.zeros((32, 40), np.float32))
    found = prepare_initial_image(ready(picture(1), clear), starting("style"), 32, 40)
    np.testing.assert_array_equal(found, np.ones((32, 40, 3)))


@pytest.mark.parametrize(("side", "style_side"), [(1, 49), (6, 47), (49, 1), (5, 5), (40, 39)])
def test_a_style_covers_the_frame_to_the_last_row(side: int, style_side: int) -> None:
    """47 times 6/47 is less than 6 in floating point: rounded down, the style would end a row too early."""
    style = picture(2, style_side, 2 * style_side)
    for height, width in ((side, side), (side, 2 * side), (2 * side, side)):
        shown = ready(np.zeros((height, width, 3), np.float32), Picture(style))
        assert prepare_initial_image(shown, starting("style"), height, width).shape == (height, width, 3)


# --- colours that stay ---


def test_luminances_alone_are_matched_and_transferred(tmp_path: Path) -> None:
    content, style = picture(1, 48, 64), picture(2, 36, 33)
    gray_job = job(write_source(tmp_path, "a", content), write_source(tmp_path, "b", style), keep_color="luminance")
    gray_job = replace(gray_job, init=write_source(tmp_path, "init", picture(3, 48, 64)))
    shown = load_job(gray_job, run_into(tmp_path))
    luma = luminance(shown.content.rgb)
    for image in (
        prepare_content(shown, 48, 64),
        shown.styles[0].rgb,
        prepare_initial_image(shown, LIGHT.method, 48, 64),
        prepare_initial_image(replace(shown, initial=None), starting("content"), 48, 64),
        prepare_initial_image(replace(shown, initial=None), starting("style"), 48, 64),
    ):
        assert gray_deviation(image) < 1e-6
    np.testing.assert_allclose(prepare_content(shown, 48, 64)[..., 0], luma, atol=1e-6)
    # the style has the content's mean and spread of luminance, but for what left the range
    matched = shown.styles[0].rgb[..., 0]
    assert matched.mean() == pytest.approx(luma.mean(), abs=0.01)
    assert matched.std() == pytest.approx(luma.std(), abs=0.01)
    before = luminance(style)
    assert abs(before.mean() - luma.mean()) > 0.02 or abs(before.std() - luma.std()) > 0.02
    # and back: the image's luminance under the content's colours
    image = picture(5, 48, 64)
    result = postprocess(shown, image)
    np.testing.assert_allclose(result, replace_luminance(shown.content.rgb, luminance(image)), atol=1e-6)
    assert np.abs(luminance(result) - luminance(image)).max() < 0.01


def test_color_matched_style_has_content_statistics(tmp_path: Path) -> None:
    content, style = 0.3 + 0.3 * picture(1, 48, 64), picture(2, 36, 33)
    matched_job = job(write_source(tmp_path, "a", content), write_source(tmp_path, "b", style), keep_color="match")
    shown = load_job(matched_job, run_into(tmp_path))

    def colours(rgb: Array) -> tuple[Array, Array]:
        flat = rgb.reshape(-1, 3).astype(np.float64)
        return flat.mean(axis=0), np.cov(flat, rowvar=False)

    for found, expected, before in zip(colours(shown.styles[0].rgb), colours(shown.content.rgb), colours(style), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert np.abs(before - expected).max() > 5e-3
    # the content is seen, and the result shown, as they are
    np.testing.assert_array_equal(prepare_content(shown, 48, 64), shown.content.rgb)
    np.testing.assert_array_equal(postprocess(shown, picture(5, 48, 64)), picture(5, 48, 64))


@pytest.mark.parametrize("keep_color", ["luminance", "match"])
def test_what_is_invisible_of_a_style_has_no_say_in_its_colours(tmp_path: Path, keep_color: str) -> None:
    content, style = write_source(tmp_path, "a", picture(1, 48, 64)), picture(2, 36, 32)
    alpha = np.ones((36, 32), np.float32)
    alpha[:, 16:] = 0.0
    hidden = style.copy()
    hidden[:, 16:] = 0.0
    found = []
    for k, rgb in enumerate((style, hidden)):
        matched_job = job(content, write_source(tmp_path, f"b{k}", rgb, alpha), keep_color=keep_color)
        found.append(load_job(matched_job, run_into(tmp_path)).styles[0])
    assert found[0].alpha is None
    np.testing.assert_array_equal(found[0].rgb, found[1].rgb)


# --- the picture to show ---


def test_what_leaves_the_range_is_clipped() -> None:
    image = 3.0 * picture(5) - 1.0
    np.testing.assert_array_equal(postprocess(ready(picture(1), Picture(picture(2))), image), np.clip(image, 0.0, 1.0))


@pytest.mark.parametrize("keep_color", ["", "luminance", "match"])
@pytest.mark.parametrize("size", [(48, 64), (32, 43)])
def test_outside_a_mask_the_content_is_shown_bit_for_bit(keep_color: str, size: tuple[int, int]) -> None:
    content, image = picture(1, 48, 64), picture(5, *size)
    mask = np.zeros((48, 64), np.float32)
    mask[:, :32] = 1.0
    shown = ready(content, Picture(picture(2)), mask=mask, keep_color=keep_color)
    result = postprocess(shown, image)
    unmasked = postprocess(replace(shown, mask=None), image)
    at_size = resize(Picture(content), *size).rgb
    middle = size[1] // 2
    np.testing.assert_array_equal(result[:, middle + 2 :], at_size[:, middle + 2 :])
    np.testing.assert_array_equal(result[:, : middle - 2], unmasked[:, : middle - 2])
    assert np.abs(unmasked - at_size).mean() > 0.02


def test_a_half_transparent_mask_mixes() -> None:
    content, image = picture(1), picture(5)
    shown = ready(content, Picture(picture(2)), mask=np.full((32, 40), 0.25, np.float32))
    np.testing.assert_allclose(postprocess(shown, image), 0.25 * image + 0.75 * content, atol=1e-6)


def test_image_beyond_memory_fails_its_pair(tmp_path: Path) -> None:
    def exhausted(data: bytes, most: int) -> None:
        raise MemoryError

    source = write_source(tmp_path, "large", picture(1, 48, 64))
    with pytest.raises(PictureError, match=r"large\.png: 64 x 48 pixels do not fit into this machine's memory; scale it down$"):
        _read_verified(source, run_into(tmp_path), exhausted)
