"""Quality against textbook formulas: SciPy's matrix root, scikit-image's similarity, and cases known by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.linalg
import skimage.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_tasks.core import metrics, vgg
from nst_tasks.core.metrics import (
    CONTENT_LAYER,
    HELD_OUT_LAYERS,
    FactoredGaussian,
    Gaussian,
    Quality,
    factor_gaussian,
    gaussian,
)
from nst_tasks.core.vgg import Backbone

Array = np.ndarray
USED = ("block1_conv1", "block3_conv1")


def smooth(seed: int, height: int = 32, width: int = 48) -> Array:
    """Make a soft random picture (height, width, 3) in [0, 1]."""
    coarse = np.random.default_rng(seed).random((height // 4, width // 4, 3), np.float32)
    return np.kron(coarse, np.ones((4, 4, 1), np.float32))


def textured(seed: int, height: int = 32, width: int = 48) -> Array:
    """Make a picture of fine grain in one color."""
    random = np.random.default_rng(seed)
    return np.clip(random.random(3) + 0.3 * random.standard_normal((height, width, 3)), 0.0, 1.0).astype(np.float32)


def of(mean: list[float] | Array, covariance: list[list[float]] | Array) -> Gaussian:
    return Gaussian(np.asarray(mean, float), np.asarray(covariance, float))


def root(covariance: Array) -> Array:
    """Compute the symmetric root, also of singular matrices (`scipy.linalg.sqrtm` refuses those)."""
    values, vectors = scipy.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def textbook_distance(a: Gaussian, b: Gaussian) -> float:
    cross = root(root(b.covariance) @ a.covariance @ root(b.covariance))
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * cross))


def squared_frechet_distance(a: Gaussian, b: FactoredGaussian) -> float:
    return float(metrics.squared_frechet_distance(a, b))


def style_gap_closed(
    out: Gaussian, content: Gaussian, styles: list[FactoredGaussian], style_weights: list[float]
) -> float | None:
    distances = [np.array([squared_frechet_distance(x, style) for x in (out, content)]) for style in styles]
    return metrics.gap_closed(distances, styles, style_weights)


# --- moments ---


def test_the_moments_of_features_known_by_hand() -> None:
    x = np.array([[[1.0, 0.0], [3.0, 4.0]]], np.float32)  # (1, 2, 2)
    found = gaussian(x)
    np.testing.assert_allclose(found.mean, [2.0, 2.0])
    np.testing.assert_allclose(found.covariance, [[1.0, 2.0], [2.0, 4.0]])
    assert found.covariance.dtype == np.float64


def test_positions_count_by_their_weight() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 3, 4))
    often = np.array([[1, 0, 3], [2, 1, 0]])
    found, repeated = gaussian(x, often / 3), np.repeat(x.reshape(6, 4), often.ravel(), axis=0)
    np.testing.assert_allclose(found.mean, repeated.mean(axis=0))
    np.testing.assert_allclose(found.covariance, np.cov(repeated.T, bias=True))


@pytest.mark.parametrize(("positions", "rank"), [(3, 2), (5, 4), (200, 6)])
def test_factored_gaussian_keeps_rank_and_distance(positions: int, rank: int) -> None:
    found = gaussian(np.random.default_rng(positions).standard_normal((1, positions, 6)) * [1, 1, 1, 1, 1, 1e-3])
    factored = factor_gaussian(found)
    assert factored.root.shape == (rank, 6)
    np.testing.assert_allclose(np.transpose(factored.root) @ factored.root, found.covariance, atol=1e-14)
    assert factored.energy == pytest.approx(np.sum(found.mean**2) + np.trace(found.covariance))


def test_a_target_without_any_variation_has_no_rows() -> None:
    flat = factor_gaussian(gaussian(np.ones((2, 2, 4))))
    assert flat.root.shape == (0, 4)
    assert squared_frechet_distance(of([1.0] * 4, np.eye(4)), flat) == pytest.approx(4.0)


# --- the Fréchet distance ---


def test_the_distance_of_gaussians_on_a_line() -> None:
    """(m - m*)^2 + (s - s*)^2."""
    assert squared_frechet_distance(of([1.0], [[9.0]]), factor_gaussian(of([3.0], [[25.0]]))) == pytest.approx(4.0 + 4.0)


def test_the_distance_of_independent_coordinates_adds_up() -> None:
    a, b = of([0.0, 1.0], np.diag([4.0, 1.0])), of([1.0, 1.0], np.diag([1.0, 9.0]))
    assert squared_frechet_distance(a, factor_gaussian(b)) == pytest.approx(1.0 + 1.0 + 4.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=40)
def test_the_distance_is_the_textbooks_at_any_rank(seed: int, channels: int, positions: int, of_target: int) -> None:
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((channels, channels))
    a = gaussian(np.maximum(random.standard_normal((1, positions, channels)) @ mixing, 0.0))
    b = gaussian(random.standard_normal((of_target, 1, channels)))
    scale = np.trace(a.covariance + b.covariance) + np.sum(a.mean**2 + b.mean**2)
    found = squared_frechet_distance(a, factor_gaussian(b))
    assert found == pytest.approx(textbook_distance(a, b), abs=1e-6 * scale)
    assert found == pytest.approx(squared_frechet_distance(b, factor_gaussian(a)), abs=1e-6 * scale)  # symmetric
    assert 0.0 <= squared_frechet_distance(a, factor_gaussian(a)) <= 1e-6 * scale


def test_few_positions_in_many_channels_need_no_ridge() -> None:
    """Two positions span one line: along the same direction, the distance is that of the standard deviations."""
    direction = np.random.default_rng(1).standard_normal(64)
    direction /= np.linalg.norm(direction)
    a, b = (gaussian(np.stack([-s * direction, s * direction])[None]) for s in (2.0, 5.0))
    assert squared_frechet_distance(a, factor_gaussian(b)) == pytest.approx(9.0, rel=1e-9)
    assert squared_frechet_distance(a, factor_gaussian(a)) == pytest.approx(0.0, abs=1e-6)


# --- the style gap ---


def line(mean: float, deviation: float = 1.0) -> Gaussian:
    return of([mean], [[deviation**2]])


def test_the_gap_closed_is_the_share_of_the_contents_distance() -> None:
    style = [factor_gaussian(line(10.0))]
    for position, closed in ((0.0, 0.0), (10.0, 1.0), (5.0, 0.5), (-10.0, -1.0), (20.0, 0.0)):
        assert style_gap_closed(line(position), line(0.0), style, [1.0]) == pytest.approx(closed)


def test_distances_are_averaged_by_style_weights() -> None:
    styles = [
        factor_gaussian(line(10.0)),
        factor_gaussian(line(0.0, 3.0)),
    ]  # from the content: 10 and 2; from the result: 8 and sqrt 8
    for weights in ([1.0, 3.0], [0.25, 0.75], [20.0, 60.0]):
        closed = style_gap_closed(line(2.0), line(0.0), styles, weights)
        assert closed == pytest.approx(1 - (0.25 * 8 + 0.75 * math.sqrt(8)) / (0.25 * 10 + 0.75 * 2))


def test_no_gap_if_the_content_has_the_style() -> None:
    style = factor_gaussian(line(10.0))
    assert style_gap_closed(line(3.0), line(10.0), [style], [1.0]) is None
    assert style_gap_closed(line(10.0), line(10.0), [style], [1.0]) is None
    assert style_gap_closed(line(10.0), line(10.02), [style], [1.0]) is None  # 4e-4 of an energy of 101
    assert style_gap_closed(line(10.0), line(10.04), [style], [1.0]) == pytest.approx(1.0)
    dead = of([0.0], [[0.0]])
    assert style_gap_closed(dead, dead, [factor_gaussian(dead)], [1.0]) is None


# --- what is kept of the content ---


def test_the_cosine_of_features() -> None:
    a, b = np.array([[[3.0, 0.0]], [[0.0, 4.0]]]), np.array([[[3.0, 0.0]], [[0.0, -4.0]]])  # (2, 1, 2)
    assert metrics.cosine(a, 7 * a) == pytest.approx(1.0)
    assert metrics.cosine(a, b) == pytest.approx((9 - 16) / 25)
    assert metrics.cosine(a, b, np.array([[1.0], [0.0]])) == pytest.approx(1.0)
    assert metrics.cosine(a, b, np.array([[0.0], [0.5]])) == pytest.approx(-1.0)
    assert metrics.cosine(a, np.zeros_like(a)) is None


def gray(luma: Array) -> Array:
    return np.repeat(luma[..., None], 3, axis=2)


def ssim(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> float:
    return metrics.luminance_ssim(metrics.luminance(a), metrics.luminance(b), weight)


def textbook_ssim(a: Array, b: Array) -> Array:
    _, every = skimage.metrics.structural_similarity(
        a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return np.asarray(every)


@pytest.mark.parametrize("shape", [(32, 48), (11, 11), (40, 13)])
def test_the_similarity_is_the_textbooks(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(shape[0])
    a = random.random(shape)
    b = np.clip(0.7 * a + 0.3 * random.random(shape), 0.0, 1.0)
    every = textbook_ssim(a, b)
    assert ssim(gray(a), gray(b)) == pytest.approx(every.mean(), abs=1e-9)
    weight = random.random(shape)
    weighted = np.sum(weight * every) / np.sum(weight)
    assert ssim(gray(a), gray(b), weight) == pytest.approx(weighted, abs=1e-9)


def test_the_similarity_sees_luminance_only() -> None:
    picture = 0.2 + 0.5 * smooth(3)
    recolored = picture + np.array([0.114, 0.0, -0.299], np.float32)  # 0.299 * 0.114 - 0.114 * 0.299 = 0
    assert ssim(picture, recolored) == pytest.approx(1.0, abs=1e-5)
    assert ssim(picture, 1 - picture) < 0


def test_a_picture_smaller_than_the_window_has_a_similarity() -> None:
    picture = smooth(4, 4, 8)
    assert ssim(picture, picture) == pytest.approx(1.0)
    assert ssim(picture, 1 - picture) < 1


# --- a whole result ---


def measure_result(
    tiny19: Backbone, out: Array, content: Array, *styles: Array, mask: Array | None = None, losses: Sequence[Array] = ()
) -> Quality:
    found = [metrics.style_moments(tiny19, style, USED) for style in styles]
    return metrics.measure(
        tiny19, USED, out, metrics.content_moments(tiny19, content, USED, mask), found, [1.0] * len(found), losses
    )


def test_the_content_closes_no_gap_and_keeps_all(tiny19: Backbone) -> None:
    found = measure_result(tiny19, smooth(0), smooth(0), textured(1))
    assert list(found.style_gap) == [*USED, *HELD_OUT_LAYERS]
    assert list(found.style_gap.values()) == pytest.approx([0.0] * 5, abs=1e-5)
    assert (found.content_cosine, found.luminance_ssim) == pytest.approx((1.0, 1.0), abs=1e-5)
    assert found.flags == ()


def test_the_style_closes_the_gap_and_keeps_little(tiny19: Backbone) -> None:
    found = measure_result(tiny19, textured(1), smooth(0), textured(1))
    assert list(found.style_gap.values()) == pytest.approx([1.0] * 5, abs=5e-3)
    assert found.content_cosine is not None and found.content_cosine < 0.99
    assert found.luminance_ssim < 0.3


def test_a_result_halfway_lies_between(tiny19: Backbone) -> None:
    found = measure_result(tiny19, (smooth(0) + textured(1)) / 2, smooth(0), textured(1))
    assert 0.1 < found.style_gap["block1_conv1"] < 0.99
    assert 0.1 < found.luminance_ssim < 0.99


def test_metrics_use_max_pooling_and_zero_padding(tiny19: Backbone) -> None:
    out, content, style = smooth(5), smooth(0), textured(1)
    found = measure_result(tiny19, out, content, style)
    layers = (*USED, *HELD_OUT_LAYERS, CONTENT_LAYER)
    of_out, of_content, of_style = (
        {layer: x.numpy()[0].astype(float) for layer, x in features.items()}
        for features in (vgg.extract_activations(tiny19, p[None], layers, "max", "zero") for p in (out, content, style))
    )
    for layer in (*USED, *HELD_OUT_LAYERS):
        a, b, c = (gaussian(x[layer]) for x in (of_out, of_content, of_style))
        assert found.style_gap[layer] == pytest.approx(
            1 - math.sqrt(textbook_distance(a, c) / textbook_distance(b, c)), abs=1e-3
        )
    x, y = of_out[CONTENT_LAYER].ravel(), of_content[CONTENT_LAYER].ravel()
    assert found.content_cosine == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)), abs=1e-6)


def test_means_are_over_the_layers_of_each_group(tiny19: Backbone) -> None:
    layers = ("block1_conv1", "block2_conv2")  # the second is held out from most recipes, not from this one
    style = metrics.style_moments(tiny19, textured(1), layers)
    found = metrics.measure(tiny19, layers, smooth(5), metrics.content_moments(tiny19, smooth(0), layers), [style], [1.0])
    gap = found.style_gap
    assert list(gap) == ["block1_conv1", "block2_conv2", "block3_conv2", "block4_conv3"]
    assert found.used == pytest.approx((gap["block1_conv1"] + gap["block2_conv2"]) / 2)
    assert found.held_out == pytest.approx(sum(gap[layer] for layer in HELD_OUT_LAYERS) / 3)


def test_several_styles_count_by_their_weights(tiny19: Backbone) -> None:
    styles = [metrics.style_moments(tiny19, textured(seed), USED) for seed in (1, 2)]
    content = metrics.content_moments(tiny19, smooth(0), USED)
    alone = [metrics.measure(tiny19, USED, smooth(5), content, [style], [2.0]) for style in styles]
    for weights, same in (([3.0, 0.0], alone[0]), ([0.0, 0.5], alone[1])):
        found = metrics.measure(tiny19, USED, smooth(5), content, styles, weights)
        assert found.style_gap == pytest.approx(same.style_gap)


def test_what_is_masked_out_counts_for_nothing(tiny19: Backbone) -> None:
    """With a mask, a change far outside it changes no number; without it, every number changes."""
    content, out, style = smooth(0, 64, 128), smooth(5, 64, 128), textured(1)
    mask = np.zeros((64, 128), np.float32)
    mask[:, :32] = 1.0
    changed = out.copy()
    changed[:, 104:] = 1.0
    masked, masked_changed = (measure_result(tiny19, one, content, style, mask=mask) for one in (out, changed))
    whole, whole_changed = (measure_result(tiny19, one, content, style) for one in (out, changed))
    for name in ("used", "held_out", "content_cosine", "luminance_ssim"):
        assert getattr(masked_changed, name) == pytest.approx(getattr(masked, name), abs=1e-6), name
        assert getattr(whole_changed, name) != pytest.approx(getattr(whole, name), abs=1e-3), name
    assert masked.used != pytest.approx(whole.used, abs=1e-3)


def test_a_mask_counts_for_the_flags(tiny19: Backbone) -> None:
    out = smooth(5)
    out[:, :16] = 1.0
    mask = np.zeros(out.shape[:2], np.float32)
    mask[:, :16] = 1.0
    assert measure_result(tiny19, out, smooth(0), textured(1), mask=mask).flags == ("blank", "saturated")
    assert measure_result(tiny19, out, smooth(0), textured(1), mask=1 - mask).flags == ()


def test_a_mask_of_any_size_is_averaged_over_areas(tiny19: Backbone) -> None:
    """A single pixel of a mask is not lost at the deep layers, and a mask of ones is none at all."""
    fine = np.zeros((64, 96), np.float32)
    fine[17, 31] = 1.0
    found = measure_result(tiny19, smooth(5), smooth(0), textured(1), mask=fine)
    assert found.used is not None and math.isfinite(found.used)
    ones = measure_result(tiny19, smooth(5), smooth(0), textured(1), mask=np.ones((7, 5), np.float32))
    without = measure_result(tiny19, smooth(5), smooth(0), textured(1))
    assert ones.style_gap == pytest.approx(without.style_gap)
    assert (ones.content_cosine, ones.luminance_ssim) == pytest.approx((without.content_cosine, without.luminance_ssim))


def test_a_style_has_moments_by_mask_too(tiny19: Backbone) -> None:
    half = textured(1)
    half[:, 24:] = 0.0
    mask = np.zeros((32, 48), np.float32)
    mask[:, :24] = 1.0
    found = metrics.style_moments(tiny19, half, USED, mask)
    assert metrics.style_moments(tiny19, half, USED).clipped_share > 0.5 > found.clipped_share
    of_left = metrics.style_moments(tiny19, textured(1)[:, :24], USED)
    np.testing.assert_allclose(found.layers["block1_conv1"].mean, of_left.layers["block1_conv1"].mean, rtol=0.1)


def test_a_mask_of_nothing_is_refused(tiny19: Backbone) -> None:
    with pytest.raises(ValueError, match="mask: it is 0 everywhere"):
        measure_result(tiny19, smooth(5), smooth(0), textured(1), mask=np.zeros((4, 4)))


def test_pictures_of_two_sizes_are_refused(tiny19: Backbone) -> None:
    with pytest.raises(ValueError, match="shape"):
        measure_result(tiny19, smooth(5, 32, 40), smooth(0), textured(1))


def test_layers_that_a_picture_is_too_narrow_for_are_left_out(tiny19: Backbone) -> None:
    narrow = measure_result(tiny19, smooth(5, 12, 64), smooth(0, 12, 64), textured(1))
    assert list(narrow.style_gap) == [*USED, "block2_conv2", "block3_conv2"]
    assert narrow.held_out == pytest.approx((narrow.style_gap["block2_conv2"] + narrow.style_gap["block3_conv2"]) / 2)
    assert narrow.content_cosine is None
    of_narrow_style = measure_result(tiny19, smooth(5), smooth(0), textured(1), textured(2, 64, 8))
    assert list(of_narrow_style.style_gap) == [*USED, "block2_conv2", "block3_conv2"]
    assert of_narrow_style.content_cosine is not None


def test_a_picture_one_pixel_high_is_measured_by_its_pixels(tiny19: Backbone) -> None:
    found = measure_result(tiny19, smooth(5, 4, 64)[:1], smooth(0, 4, 64)[:1], textured(1))
    assert (found.style_gap, found.used, found.held_out, found.content_cosine) == ({}, None, None, None)
    assert found.as_plain() == {"style_gap": {}, "luminance_ssim": round(found.luminance_ssim, 6)}


def test_a_content_that_is_the_style_has_no_gap_to_close(tiny19: Backbone) -> None:
    found = measure_result(tiny19, smooth(5), textured(1), textured(1))
    assert (found.style_gap, found.used, found.held_out) == ({}, None, None)
    assert found.content_cosine is not None


def test_flags_are_found_from_pictures_styles_and_losses(tiny19: Backbone) -> None:
    white = np.ones((32, 48, 3), np.float32)
    stuck = [np.array([5.0, 5.0])]
    assert measure_result(tiny19, white, smooth(0), textured(1), losses=stuck).flags == ("blank", "saturated", "no_progress")
    assert measure_result(tiny19, white, smooth(0), white).flags == ("blank",)  # a style as white as that


def test_plain_quality_is_rounded_finite_json(tiny19: Backbone) -> None:
    plain = measure_result(tiny19, smooth(5), smooth(0), textured(1)).as_plain()
    assert list(plain) == ["style_gap", "style_gap_used", "style_gap_held_out", "content_cosine", "luminance_ssim"]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert all(type(number) is float for number in [*plain.pop("style_gap").values(), *plain.values()])
    third = 1 / 3
    found = Quality({"block1_conv1": third}, third, None, None, third, ("blank",))
    assert found.as_plain() == {"style_gap": {"block1_conv1": 0.333333}, "style_gap_used": 0.333333, "luminance_ssim": 0.333333}


def test_moments_can_be_kept(tiny19: Backbone) -> None:
    """They hold the recipe's layers and those held out, of no more rows than channels."""
    found = metrics.style_moments(tiny19, textured(1), USED)
    assert set(found.layers) == {*USED, *HELD_OUT_LAYERS}
    for of_layer in found.layers.values():
        assert isinstance(of_layer, FactoredGaussian)
        assert of_layer.root.shape[0] <= of_layer.root.shape[1] == len(of_layer.mean)


def test_pictures_of_all_sizes_share_a_graph(tiny19: Backbone) -> None:
    own = Backbone("own", tiny19.convolutions)
    for height, width in ((32, 48), (48, 32), (40, 40), (64, 36)):
        measure_result(own, smooth(5, height, width), smooth(0, height, width), textured(1, width, height))
    graph = metrics._build_feature_graph(own, (*USED, *HELD_OUT_LAYERS), (CONTENT_LAYER,), False)
    assert graph.experimental_get_tracing_count() == 1
