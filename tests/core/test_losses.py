"""Each loss against its formula, written out in NumPy, and by hand; each gradient against central differences."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from nst_tasks.core import losses
from nst_tasks.core.losses import (
    content_distance,
    content_statistics,
    gram_matrix,
    style_distance,
    style_statistics,
    sums,
    total_variation,
    trace_of_root,
)
from nst_tasks.core.method import TV_KINDS, ContentLoss, StyleLoss, TotalVariation

Array = np.ndarray
LAYERS = (("block1_conv1", 1.0),)
NORMALIZATIONS = ("none", "hw", "chw", "sqrt_chw", "image_hw")
STYLES = [
    *(
        pytest.param(StyleLoss(LAYERS, 1.0, normalization=normalization, error=error), id=f"gram-{normalization}-{error}")
        for normalization, error in product(NORMALIZATIONS, ("mse", "sse"))
    ),
    pytest.param(StyleLoss(LAYERS, 1.0, relative=True), id="gram-relative"),
    pytest.param(StyleLoss(LAYERS, 1.0, "wasserstein"), id="wasserstein"),
    pytest.param(StyleLoss(LAYERS, 1.0, "wasserstein", relative=True), id="wasserstein-relative"),
]
CONTENTS = [
    pytest.param(ContentLoss(LAYERS, 1.0), id="mse"),
    pytest.param(ContentLoss(LAYERS, 1.0, error="sse"), id="sse"),
    pytest.param(ContentLoss(LAYERS, 1.0, relative=True), id="relative"),
]
VARIATIONS = [pytest.param(TotalVariation(1.0, kind), id=kind) for kind in TV_KINDS]
STYLE_PIXELS, IMAGE_PIXELS = 700, 500
"""Pixels H W of the pictures that the features are said to come from, for the normalization by them."""


def activations(seed: int, *shape: int) -> Array:
    """Features as a network gives them, half of them zero after the ReLU, correlated from channel to channel."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((shape[-1], shape[-1]))
    return np.maximum(random.standard_normal(shape) @ mixing + 0.3 * random.standard_normal(shape[-1]), 0.0)


def statistics(loss: StyleLoss, styles: Array, pixels: int = STYLE_PIXELS) -> losses.Statistics:
    """Statistics (B, S, ...) of style features (B, S, h, w, C), each picture measured alone as `transfer` has it."""
    each = [[style_statistics(loss, sums(tf.constant(one[None])), tf.constant(pixels)) for one in pair] for pair in styles]
    return {name: tf.stack([tf.concat([one[name] for one in pair], axis=0) for pair in each]) for name in each[0][0]}


def distance(
    loss: StyleLoss, x: Array | tf.Tensor, style: losses.Statistics, weight: Array | None = None, pixels: int = IMAGE_PIXELS
) -> tf.Tensor:
    """Distances (B, S) of features (B, h, w, C), positions weighted or not, from statistics."""
    image = sums(tf.constant(x), None if weight is None else tf.constant(weight))
    return style_distance(loss, image, style, tf.constant(pixels))


# --- the formulas, one picture (h, w, C) at a time, in float64 ---


def plain_gram(features: Array) -> Array:
    """Sum the products of channels over positions."""
    channels = features.shape[-1]
    return np.array([[np.sum(features[..., i] * features[..., j]) for j in range(channels)] for i in range(channels)])


def plain_gram_distance(loss: StyleLoss, x: Array, style: Array) -> float:
    def over_n(features: Array, pixels: int) -> Array:
        h, w, channels = features.shape
        n = {"none": 1, "hw": h * w, "chw": channels * h * w, "sqrt_chw": np.sqrt(channels * h * w), "image_hw": pixels}
        return plain_gram(features) / n[loss.normalization]

    squares = (over_n(x, IMAGE_PIXELS) - over_n(style, STYLE_PIXELS)) ** 2
    return float(squares.mean() if loss.error == "mse" else squares.sum())


def plain_wasserstein(x: Array, style: Array) -> float:
    """`(|m - m*|^2 + tr(K + K* - 2 (K*^1/2 K K*^1/2)^1/2)) / C`, K = covariance + 1e-4 I."""

    def moments(features: Array) -> tuple[Array, Array]:
        flat = features.reshape(-1, features.shape[-1])
        return flat.mean(axis=0), np.cov(flat, rowvar=False, bias=True) + 1e-4 * np.eye(flat.shape[1])

    (mean, covariance), (style_mean, style_covariance) = moments(x), moments(style)
    root = scipy.linalg.sqrtm(style_covariance)
    cross = scipy.linalg.sqrtm(root @ covariance @ root)
    bures = np.trace(covariance + style_covariance - 2.0 * cross)
    return float((np.sum((mean - style_mean) ** 2) + bures) / x.shape[-1])


def plain_style_distance(loss: StyleLoss, x: Array, style: Array) -> float:
    scale = 1.0 / np.sqrt(np.mean(style**2)) if loss.relative else 1.0
    x, style = x * scale, style * scale
    return plain_wasserstein(x, style) if loss.statistic == "wasserstein" else plain_gram_distance(loss, x, style)


# --- values ---


def test_gram_by_hand() -> None:
    # two positions with features (1, 2) and (3, 4): [[1 + 9, 2 + 12], [2 + 12, 4 + 16]] / 2
    x = tf.constant([[[[1.0, 2.0], [3.0, 4.0]]]], tf.float64)
    np.testing.assert_array_equal(gram_matrix(sums(x)), [[[5.0, 7.0], [7.0, 10.0]]])


@pytest.mark.parametrize(
    ("normalization", "n", "style_n"),
    [("none", 1, 1), ("hw", 2, 2), ("chw", 4, 4), ("sqrt_chw", 2, 2), ("image_hw", IMAGE_PIXELS, STYLE_PIXELS)],
)
def test_gram_distances_of_two_by_two_matrices_by_hand(normalization: str, n: int, style_n: int) -> None:
    # sums of products [[10, 14], [14, 20]] as above, against [[2, 0], [0, 0]] of two positions with features (1, 0)
    x, style = np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.array([[[[[1.0, 0.0], [1.0, 0.0]]]]])
    squares = [(10 / n - 2 / style_n) ** 2, (14 / n) ** 2, (14 / n) ** 2, (20 / n) ** 2]
    for error, expected in (("sse", sum(squares)), ("mse", sum(squares) / 4)):
        loss = StyleLoss(LAYERS, 1.0, normalization=normalization, error=error)
        np.testing.assert_allclose(distance(loss, x, statistics(loss, style)), [[expected]], rtol=1e-12)


def test_a_relative_gram_distance_by_hand() -> None:
    # the style's mean square is 1/2: features doubled in square, Gram matrices [[10, 14], [14, 20]] and [[2, 0], [0, 0]]
    loss = StyleLoss(LAYERS, 1.0, relative=True)
    x, style = np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.array([[[[[1.0, 0.0], [1.0, 0.0]]]]])
    expected = (8**2 + 14**2 + 14**2 + 20**2) / 4
    np.testing.assert_allclose(distance(loss, x, statistics(loss, style)), [[expected]], rtol=1e-9)


def test_gram_is_the_formula_in_each_member_of_a_batch() -> None:
    x = activations(0, 3, 4, 5, 6)
    np.testing.assert_allclose(gram_matrix(sums(tf.constant(x))), [plain_gram(one) / 20 for one in x], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", STYLES)
def test_style_distance_is_the_formula_for_every_pair_and_style(loss: StyleLoss) -> None:
    x = activations(1, 2, 5, 6, 4)
    styles = 2.0 * activations(2, 2, 3, 7, 4, 4)  # of another size than the image, as styles are
    got = distance(loss, x, statistics(loss, styles))
    expected = [[plain_style_distance(loss, x[b], styles[b, s]) for s in range(3)] for b in range(2)]
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_wasserstein_of_one_channel_by_hand() -> None:
    # mean 2, variance 1 against mean 5, variance 4: 3^2 + (sqrt(1.0001) - sqrt(4.0001))^2
    loss = StyleLoss(LAYERS, 1.0, "wasserstein")
    x = np.array([1.0, 3.0]).reshape(1, 1, 2, 1)
    style = np.array([3.0, 7.0]).reshape(1, 1, 1, 2, 1)
    expected = 9.0 + (np.sqrt(1.0001) - np.sqrt(4.0001)) ** 2
    np.testing.assert_allclose(distance(loss, x, statistics(loss, style)), [[expected]], rtol=1e-12)


def test_wasserstein_of_two_diagonal_gaussians_by_hand() -> None:
    # (+-1, +-2) and (3 +- 3, +-0.5): means (0, 0) and (3, 0), variances (1, 4) and (9, 0.25), no covariance
    loss = StyleLoss(LAYERS, 1.0, "wasserstein")
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    x = (signs * [1.0, 2.0]).reshape(1, 2, 2, 2)
    style = (signs * [3.0, 0.5] + [3.0, 0.0]).reshape(1, 1, 2, 2, 2)
    bures = sum((np.sqrt(one + 1e-4) - np.sqrt(other + 1e-4)) ** 2 for one, other in ((1.0, 9.0), (4.0, 0.25)))
    np.testing.assert_allclose(distance(loss, x, statistics(loss, style)), [[(9.0 + bures) / 2]], rtol=1e-12)
    # relative: all divided by the root of the style's mean square, (9 + 9 + 0.25) / 2, but the ridge of 1e-4 stays
    relative = StyleLoss(LAYERS, 1.0, "wasserstein", relative=True)
    square = (9.0 + 9.0 + 0.25) / 2
    bures = sum(
        (np.sqrt(one / square + 1e-4) - np.sqrt(other / square + 1e-4)) ** 2 for one, other in ((1.0, 9.0), (4.0, 0.25))
    )
    np.testing.assert_allclose(distance(relative, x, statistics(relative, style)), [[(9.0 / square + bures) / 2]], rtol=1e-9)


@pytest.mark.parametrize("loss", STYLES)
def test_a_picture_is_no_distance_from_its_own_style(loss: StyleLoss) -> None:
    x = activations(3, 2, 5, 6, 4)
    own = distance(loss, x, statistics(loss, x[:, None], IMAGE_PIXELS))
    np.testing.assert_allclose(own, np.zeros((2, 1)), atol=1e-12)
    other = distance(loss, x, statistics(loss, x[::-1, None], IMAGE_PIXELS))
    assert np.all(other > max(1e-6, 1e6 * float(tf.reduce_max(own))))


@pytest.mark.parametrize("loss", [loss for loss in STYLES if loss.values[0].relative])
def test_relative_style_distance_is_scale_invariant(loss: StyleLoss) -> None:
    x, styles = activations(4, 1, 5, 6, 4), activations(5, 1, 1, 5, 6, 4)
    once = distance(loss, x, statistics(loss, styles))
    np.testing.assert_allclose(distance(loss, 50 * x, statistics(loss, 50 * styles)), once, rtol=1e-8)


# --- weights of positions, as a mask gives them ---


@pytest.mark.parametrize("loss", STYLES)
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_positions_that_weigh_alike_are_as_good_as_unweighted(loss: StyleLoss, share: float) -> None:
    x, style = activations(20, 2, 5, 6, 4), statistics(loss, activations(21, 2, 2, 4, 4, 4))
    weighted = distance(loss, x, style, np.full((2, 5, 6), share))
    np.testing.assert_allclose(weighted, distance(loss, x, style), rtol=1e-9)


@pytest.mark.parametrize("loss", STYLES)
def test_a_mask_of_one_half_is_that_half_over_the_whole_picture(loss: StyleLoss) -> None:
    """Only what the mask shows counts, and it counts as if it filled the frame, whatever the normalization."""
    x, style = activations(22, 2, 4, 6, 4), statistics(loss, activations(23, 2, 2, 4, 4, 4))
    left = np.zeros((2, 4, 6))
    left[:, :, :3] = 1.0
    twice = np.concatenate([x[:, :, :3], x[:, :, :3]], axis=2)
    got = distance(loss, x, style, left)
    np.testing.assert_allclose(got, distance(loss, twice, style), rtol=1e-9)
    assert not np.any(np.isclose(got, distance(loss, x, style), rtol=1e-2))
    # and where statistics are means over positions, the half alone has the same
    if loss.normalization in ("hw", "chw"):
        np.testing.assert_allclose(got, distance(loss, x[:, :, :3], style), rtol=1e-9)


@pytest.mark.parametrize("loss", STYLES)
def test_a_position_of_double_weight_counts_twice(loss: StyleLoss) -> None:
    x, style = activations(24, 1, 1, 3, 4), statistics(loss, activations(25, 1, 1, 4, 4, 4))
    once_more = np.concatenate([x, x[:, :, :1]], axis=2)  # (1, 1, 4, 4): four positions
    got = distance(loss, x, style, np.array([[[1.0, 0.5, 0.5]]]))
    alike = StyleLoss(LAYERS, 1.0, loss.statistic, relative=loss.relative)
    if loss == alike:  # otherwise the number of positions counts too
        np.testing.assert_allclose(got, distance(loss, once_more, style), rtol=1e-9)
    np.testing.assert_allclose(distance(loss, x, style, np.array([[[2.0, 1.0, 1.0]]])), got, rtol=1e-9)


# --- content ---


@pytest.mark.parametrize(("error", "expected"), [("mse", 0.25), ("sse", 0.25 * 3 * 4 * 5)])
def test_content_distance_of_a_constant_difference_by_hand(error: str, expected: float) -> None:
    content = activations(30, 2, 3, 4, 5)
    loss = ContentLoss(LAYERS, 1.0, error=error)
    moved = content + np.array([0.5, -0.5]).reshape(2, 1, 1, 1)
    got = content_distance(loss, tf.constant(moved), content_statistics(loss, tf.constant(content)))
    np.testing.assert_allclose(got, [expected, expected], rtol=1e-12)


def test_a_relative_content_distance_by_hand() -> None:
    # two positions with features 1 and 3: energies 1 and 9, mean 5; contrast 4/4 each, as three of the four neighbours of a
    # position are itself: salience 1 + 0.05 and 1/9 + 0.05, mean 0.60556; a difference of 0.5 at both
    loss = ContentLoss(LAYERS, 1.0, relative=True)
    content = tf.constant([1.0, 3.0], tf.float64, (1, 1, 2, 1))
    mean = (1.05 + 1 / 9 + 0.05) / 2
    expected = 0.25 * (1.05 / mean / (1 + 0.5) + (1 / 9 + 0.05) / mean / (9 + 0.5)) / 2
    got = content_distance(loss, content + 0.5, content_statistics(loss, content))
    np.testing.assert_allclose(got, [expected], rtol=1e-9)


@pytest.mark.parametrize("loss", CONTENTS)
def test_content_distance_is_the_formula(loss: ContentLoss) -> None:
    x, content = activations(6, 3, 4, 5, 6), activations(7, 3, 4, 5, 6)
    expected = []
    for one, of_content in zip(x, content, strict=True):
        weight = np.ones((4, 5))
        if loss.relative:
            energy = np.mean(of_content**2, axis=2) + 1e-12
            salience = np.empty((4, 5))
            for i in range(4):
                for j in range(5):
                    around = [(max(i - 1, 0), j), (min(i + 1, 3), j), (i, max(j - 1, 0)), (i, min(j + 1, 4))]
                    contrasts = [np.mean((of_content[i, j] - of_content[other]) ** 2) for other in around]
                    salience[i, j] = np.mean(contrasts) / energy[i, j] + 0.05
            weight = salience / salience.mean() / (energy + 0.1 * energy.mean())
        squares = (one - of_content) ** 2
        expected.append(squares.sum() if loss.error == "sse" else np.mean(weight * np.mean(squares, axis=2)))
    aim = content_statistics(loss, tf.constant(content))
    np.testing.assert_allclose(content_distance(loss, tf.constant(x), aim), expected, rtol=1e-9)
    np.testing.assert_array_equal(content_distance(loss, tf.constant(content), aim), np.zeros(3))


def test_relative_content_lets_flat_places_go_and_holds_edges() -> None:
    """A flat half beside a striped half, both with the same energy: the same error costs more on the stripes."""
    content = np.ones((1, 8, 16, 2))
    content[0, :, 8::2, :], content[0, :, 9::2, :] = [np.sqrt(2), 0], [0, np.sqrt(2)]
    loss = ContentLoss(LAYERS, 1.0, relative=True)
    aim = content_statistics(loss, tf.constant(content))
    flat, striped = content.copy(), content.copy()
    flat[:, :, 2:6] += 0.1
    striped[:, :, 10:14] += 0.1
    assert content_distance(loss, tf.constant(striped), aim)[0] > 10 * content_distance(loss, tf.constant(flat), aim)[0]
    plain = ContentLoss(LAYERS, 1.0)
    same = content_statistics(plain, tf.constant(content))
    np.testing.assert_allclose(
        content_distance(plain, tf.constant(striped), same), content_distance(plain, tf.constant(flat), same), rtol=1e-9
    )


def test_flat_content_weighs_positions_equally() -> None:
    aim = content_statistics(ContentLoss(LAYERS, 1.0, relative=True), tf.ones((1, 3, 4, 2), tf.float64))
    np.testing.assert_allclose(aim["weight"], np.full((1, 3, 4), 1 / 1.1), rtol=1e-9)


CHECKERBOARD = {
    # 4 x 6 squares of 0 and 1, three channels: 3 * 6 neighbours below and 4 * 5 to the right, each 1 apart
    "l1_sum": (3 * (18 + 20), 1),
    "l2_mean": (2.0, 2),
    # the 3 * 5 squares that have both neighbours, at each dx^2 + dy^2 = 2
    "squared_sum": (0.5 * 3 * 15 * 2.0, 2),
    "power_sum": (3 * 15 * 2.0**1.25, 2.5),
    # with its border repeated, 3 of 4 squares differ from the one below and 5 of 6 from the one to the right; of 5 * 7
    # diagonals those differ that cross the border along one axis only: 2 * 5 at the top and bottom, 2 * 3 at the sides
    "nine_point": (2 * (3 / 4 / 3 + 5 / 6 / 3 + 2 * (16 / 35) / 12), 2),
}
"""Kind -> its total variation, and the power of the contrast with which it grows."""


@pytest.mark.parametrize("kind", TV_KINDS)
def test_total_variation_of_a_checkerboard_by_hand(kind: str) -> None:
    board = np.indices((4, 6)).sum(axis=0) % 2
    image = tf.constant(np.repeat(board[None, ..., None], 3, axis=-1), tf.float64)
    value, power = CHECKERBOARD[kind]
    np.testing.assert_allclose(total_variation(TotalVariation(1.0, kind), image), [value], rtol=1e-12)
    np.testing.assert_allclose(total_variation(TotalVariation(1.0, kind), image / 2), [value / 2**power], rtol=1e-12)


def test_total_variation_of_one_bright_pixel_by_hand() -> None:
    """One pixel of a 5 x 5 gray picture apart by d = 2: each kind tells rows, columns and diagonals apart by it."""
    image = np.zeros((1, 5, 5, 1))
    image[0, 2, 2] = 2.0
    expected = {
        "l1_sum": 4 * 2.0,
        "l2_mean": 2 * 2 * 4.0 / 20,  # of 4 * 5 neighbours along each axis, two differ by 2
        "squared_sum": 0.5 * 4 * 4.0,
        "power_sum": (4.0 + 4.0) ** 1.25 + 2 * 4.0**1.25,  # the pixel itself, the one above it, the one to its left
        "nine_point": 2 * (2 * 2 * 4.0 / 25 / 3 + 2 * 2 * 4.0 / 36 / 12),
    }
    for kind, value in expected.items():
        np.testing.assert_allclose(total_variation(TotalVariation(1.0, kind), tf.constant(image)), [value], rtol=1e-12)


def plain_variation(kind: str, image: Array) -> float:
    """Walk a picture (H, W, 3) pixel by pixel, all channels at once."""
    height, width, _ = image.shape
    if kind == "nine_point":
        at = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        down = [at[i + 1, j] - at[i, j] for i in range(1, height + 1) for j in range(1, width + 1)]
        right = [at[i, j + 1] - at[i, j] for i in range(1, height + 1) for j in range(1, width + 1)]
        falling = [at[i + 1, j + 1] - at[i, j] for i in range(height + 1) for j in range(width + 1)]
        rising = [at[i + 1, j] - at[i, j + 1] for i in range(height + 1) for j in range(width + 1)]
        weighted = ((down, 1 / 3), (right, 1 / 3), (falling, 1 / 12), (rising, 1 / 12))
        return float(2 * sum(weight * np.mean(np.square(each)) for each, weight in weighted))
    if kind in ("l1_sum", "l2_mean"):
        down, right = np.diff(image, axis=0), np.diff(image, axis=1)
        return float(np.abs(down).sum() + np.abs(right).sum() if kind == "l1_sum" else np.mean(down**2) + np.mean(right**2))
    squares = [
        (image[i + 1, j] - image[i, j]) ** 2 + (image[i, j + 1] - image[i, j]) ** 2
        for i in range(height - 1)
        for j in range(width - 1)
    ]
    return float(np.sum(squares) / 2 if kind == "squared_sum" else np.sum(np.power(squares, 1.25)))


@pytest.mark.parametrize("kind", TV_KINDS)
def test_total_variation_equals_the_formula(kind: str) -> None:
    image = np.random.default_rng(31).random((3, 7, 5, 3))
    expected = [plain_variation(kind, one) for one in image]
    np.testing.assert_allclose(total_variation(TotalVariation(1.0, kind), tf.constant(image)), expected, rtol=1e-12)


def test_total_variation_equals_tensorflow() -> None:
    image = tf.constant(np.random.default_rng(8).random((3, 7, 5, 3)))
    expected = tf.image.total_variation(image)
    np.testing.assert_allclose(total_variation(TotalVariation(1.0, "l1_sum"), image), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", VARIATIONS)
def test_a_plain_colour_has_no_variation(kind: TotalVariation) -> None:
    np.testing.assert_array_equal(total_variation(kind, tf.fill((2, 5, 4, 3), 0.7)), [0.0, 0.0])


# --- the trace of a matrix's square root ---


def matrix_with(*eigenvalues: float) -> Array:
    """Make a symmetric matrix with these eigenvalues, in random directions."""
    random = np.random.default_rng(len(eigenvalues)).standard_normal((len(eigenvalues), len(eigenvalues)))
    vectors = np.linalg.qr(random).Q
    return vectors * np.array(eigenvalues) @ vectors.T


def root_trace(matrix: tf.Tensor) -> tf.Tensor:
    """`tr(M^1/2)`: the trace with nothing on either side."""
    return trace_of_root(matrix, tf.eye(matrix.shape[-1], dtype=matrix.dtype))


SPECTRA = [(0.5, 1.0, 2.0, 7.0), (1.0, 1.0, 9.0), (4.0, 4.0, 4.0), (2.0,)]


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_trace_of_root_is_that_of_scipys_root(spectrum: tuple[float, ...]) -> None:
    matrix = matrix_with(*spectrum)
    np.testing.assert_allclose(root_trace(tf.constant(matrix)), np.trace(scipy.linalg.sqrtm(matrix)), rtol=1e-12)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_trace_of_root_gradient_with_repeated_eigenvalues(spectrum: tuple[float, ...]) -> None:
    matrix = matrix_with(*spectrum)
    gradient = check_gradient(root_trace, matrix)
    np.testing.assert_allclose(gradient, 0.5 * np.linalg.inv(scipy.linalg.sqrtm(matrix)), rtol=1e-9, atol=1e-12)


def test_trace_of_root_weighs_each_matrix_of_a_batch_by_itself() -> None:
    matrices = np.stack([matrix_with(1.0, 4.0), matrix_with(9.0, 16.0)])
    check_gradient(lambda m: tf.reduce_sum(root_trace(m) * tf.constant([2.0, -3.0], tf.float64)), matrices)


def test_trace_of_root_has_a_finite_gradient_at_zero() -> None:
    matrix = tf.zeros((3, 3), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        value = root_trace(matrix)
    assert 0.0 <= float(value) < 1e-3
    assert np.all(np.isfinite(tape.gradient(value, matrix)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_is_lost_alone(value: float) -> None:
    """Of a batch, one pair may diverge: the others go on, where TensorFlow's eigenvalues would raise for all of them."""
    good = matrix_with(1.0, 4.0)
    bad = good.copy()
    bad[0, 0] = value
    matrices = tf.constant(np.stack([bad, good]))
    with tf.GradientTape() as tape:
        tape.watch(matrices)
        traces = root_trace(matrices)
    np.testing.assert_allclose(traces, [np.nan, 3.0], rtol=1e-12)
    gradient = tape.gradient(traces, matrices)
    np.testing.assert_allclose(gradient[1], 0.5 * np.linalg.inv(scipy.linalg.sqrtm(good)), rtol=1e-9)
    assert not np.any(np.isfinite(gradient[0]))


# --- gradients ---


def check_gradient(function: Callable[[tf.Tensor], tf.Tensor], x: Array, step: float = 1e-5) -> Array:
    """Return the gradient of a scalar function at x, after comparing it with central differences along random directions."""
    with tf.GradientTape() as tape:
        variable = tf.constant(x)
        tape.watch(variable)
        value = function(variable)
    gradient = tape.gradient(value, variable).numpy()
    assert np.abs(gradient).max() > 0
    for direction in np.random.default_rng(x.size).standard_normal((8, *x.shape)):
        slope = (function(tf.constant(x + step * direction)) - function(tf.constant(x - step * direction))) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-5, atol=1e-6 * np.linalg.norm(gradient))
    return gradient


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("channels", [3, 7], ids=["full-rank", "fewer-positions-than-channels"])
@pytest.mark.parametrize("loss", STYLES)
def test_gradient_of_style_distance(loss: StyleLoss, channels: int, masked: bool) -> None:
    style = statistics(loss, activations(9, 2, 2, 4, 3, channels))
    upstream = tf.constant([[1.0, 0.5], [-2.0, 3.0]], tf.float64)
    x = activations(10, 2, 2, 3, channels)
    weight = np.array([[[1.0, 0.5, 0.2], [0.7, 1.0, 0.0]], [[0.0, 0.9, 1.0], [1.0, 0.3, 0.6]]]) if masked else None
    gradient = check_gradient(lambda x: tf.reduce_sum(upstream * distance(loss, x, style, weight)), x)
    if weight is not None:
        np.testing.assert_array_equal(gradient[weight == 0.0], 0.0)  # where nothing counts, nothing pulls


@pytest.mark.parametrize("loss", CONTENTS)
def test_gradient_of_content_distance(loss: ContentLoss) -> None:
    content = content_statistics(loss, tf.constant(activations(11, 2, 3, 2, 4)))
    upstream = tf.constant([1.0, -2.0], tf.float64)
    x = activations(12, 2, 3, 2, 4)
    check_gradient(lambda x: tf.reduce_sum(upstream * content_distance(loss, x, content)), x)


@pytest.mark.parametrize("kind", VARIATIONS)
def test_gradient_of_total_variation(kind: TotalVariation) -> None:
    upstream = tf.constant([1.0, -2.0], tf.float64)
    image = np.random.default_rng(13).random((2, 3, 4, 3))
    check_gradient(lambda x: tf.reduce_sum(upstream * total_variation(kind, x)), image)
