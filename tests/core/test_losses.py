"""Each loss against its published formula, written out in NumPy; each gradient against central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from nst_tasks.core import losses
from nst_tasks.core.losses import (
    content_distance,
    content_statistics,
    gram,
    style_distance,
    style_statistics,
    total_variation,
    trace_of_root,
)
from nst_tasks.core.method import ContentLoss, StyleLoss, TotalVariation

Array = np.ndarray
LAYERS = (("block1_conv1", 1.0),)
STYLES = [
    pytest.param(StyleLoss(LAYERS, 1.0, statistic, relative), id=f"{statistic}-{'relative' if relative else 'plain'}")
    for statistic in ("gram", "wasserstein")
    for relative in (False, True)
]
CONTENTS = [
    pytest.param(ContentLoss(LAYERS, 1.0, relative), id="relative" if relative else "plain") for relative in (False, True)
]
VARIATIONS = [pytest.param(TotalVariation(1.0, kind), id=kind) for kind in ("l1_sum", "l2_mean")]


def activations(seed: int, *shape: int) -> Array:
    """Features as a network gives them, half of them zero after the ReLU, correlated from channel to channel."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((shape[-1], shape[-1]))
    return np.maximum(random.standard_normal(shape) @ mixing + 0.3 * random.standard_normal(shape[-1]), 0.0)


def statistics(loss: StyleLoss, styles: Array) -> losses.Statistics:
    """Statistics (B, S, ...) of style features (B, S, h, w, C), each picture measured alone as `transfer` has it."""
    each = [[style_statistics(loss, tf.constant(one[None])) for one in pair] for pair in styles]
    return {name: tf.stack([tf.concat([one[name] for one in pair], axis=0) for pair in each]) for name in each[0][0]}


# --- the formulas, one picture (h, w, C) at a time, in float64 ---


def plain_gram(features: Array) -> Array:
    channels = features.shape[-1]
    return np.array([[np.mean(features[..., i] * features[..., j]) for j in range(channels)] for i in range(channels)])


def plain_gram_distance(x: Array, style: Array) -> float:
    return float(np.mean((plain_gram(x) - plain_gram(style)) ** 2))


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
    distance = plain_gram_distance if loss.statistic == "gram" else plain_wasserstein
    return distance(x * scale, style * scale)


# --- values ---


def test_gram_by_hand() -> None:
    # two positions with features (1, 2) and (3, 4): [[1 + 9, 2 + 12], [2 + 12, 4 + 16]] / 2
    x = tf.constant([[[[1.0, 2.0], [3.0, 4.0]]]], tf.float64)
    np.testing.assert_array_equal(gram(x), [[[5.0, 7.0], [7.0, 10.0]]])


def test_gram_is_the_formula_in_each_member_of_a_batch() -> None:
    x = activations(0, 3, 4, 5, 6)
    np.testing.assert_allclose(gram(tf.constant(x)), [plain_gram(one) for one in x], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", STYLES)
def test_style_distance_is_the_formula_for_every_pair_and_style(loss: StyleLoss) -> None:
    x = activations(1, 2, 5, 6, 4)
    styles = 2.0 * activations(2, 2, 3, 7, 4, 4)  # of another size than the image, as styles are
    got = style_distance(loss, tf.constant(x), statistics(loss, styles))
    expected = [[plain_style_distance(loss, x[b], styles[b, s]) for s in range(3)] for b in range(2)]
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_wasserstein_of_one_channel_by_hand() -> None:
    # mean 2, variance 1 against mean 5, variance 4: 3^2 + (sqrt(1.0001) - sqrt(4.0001))^2
    loss = StyleLoss(LAYERS, 1.0, "wasserstein")
    x = tf.constant([1.0, 3.0], tf.float64, (1, 1, 2, 1))
    style = np.array([3.0, 7.0]).reshape(1, 1, 1, 2, 1)
    expected = 9.0 + (np.sqrt(1.0001) - np.sqrt(4.0001)) ** 2
    np.testing.assert_allclose(style_distance(loss, x, statistics(loss, style)), [[expected]], rtol=1e-12)


@pytest.mark.parametrize("loss", STYLES)
def test_a_picture_is_no_distance_from_its_own_style(loss: StyleLoss) -> None:
    x = activations(3, 2, 5, 6, 4)
    distance = style_distance(loss, tf.constant(x), statistics(loss, x[:, None]))
    np.testing.assert_allclose(distance, np.zeros((2, 1)), atol=1e-12)
    assert np.all(style_distance(loss, tf.constant(x), statistics(loss, x[::-1, None])) > 1e-3)


@pytest.mark.parametrize("loss", [loss for loss in STYLES if loss.values[0].relative])
def test_a_relative_style_distance_does_not_depend_on_the_features_scale(loss: StyleLoss) -> None:
    x, styles = activations(4, 1, 5, 6, 4), activations(5, 1, 1, 5, 6, 4)
    once = style_distance(loss, tf.constant(x), statistics(loss, styles))
    np.testing.assert_allclose(style_distance(loss, tf.constant(50 * x), statistics(loss, 50 * styles)), once, rtol=1e-8)


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
                    squares = [np.mean((of_content[i, j] - of_content[other]) ** 2) for other in around]
                    salience[i, j] = np.mean(squares) / energy[i, j] + 0.05
            weight = salience / salience.mean() / (energy + 0.1 * energy.mean())
        expected.append(np.mean(weight * np.mean((one - of_content) ** 2, axis=2)))
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


def test_a_content_without_any_contrast_weighs_every_place_alike() -> None:
    aim = content_statistics(ContentLoss(LAYERS, 1.0, relative=True), tf.ones((1, 3, 4, 2), tf.float64))
    np.testing.assert_allclose(aim["weight"], np.full((1, 3, 4), 1 / 1.1), rtol=1e-9)


def test_total_variation_of_a_checkerboard_by_hand() -> None:
    # 4 x 6 squares of 0 and 1, three channels: 3 * 6 neighbours below and 4 * 5 to the right, each 1 apart
    board = np.indices((4, 6)).sum(axis=0) % 2
    image = tf.constant(np.repeat(board[None, ..., None], 3, axis=-1), tf.float64)
    np.testing.assert_array_equal(total_variation(TotalVariation(1.0, "l1_sum"), image), [3 * (18 + 20)])
    np.testing.assert_array_equal(total_variation(TotalVariation(1.0, "l2_mean"), image), [2.0])
    # at half the contrast absolute differences halve and squares quarter
    np.testing.assert_array_equal(total_variation(TotalVariation(1.0, "l1_sum"), image / 2), [3 * (18 + 20) / 2])
    np.testing.assert_array_equal(total_variation(TotalVariation(1.0, "l2_mean"), image / 2), [0.5])


def test_total_variation_is_tensorflows_in_each_member_of_a_batch() -> None:
    image = tf.constant(np.random.default_rng(8).random((3, 7, 5, 3)))
    expected = tf.image.total_variation(image)
    np.testing.assert_allclose(total_variation(TotalVariation(1.0, "l1_sum"), image), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", VARIATIONS)
def test_a_plain_colour_has_no_variation(kind: TotalVariation) -> None:
    np.testing.assert_array_equal(total_variation(kind, tf.fill((2, 5, 4, 3), 0.7)), [0.0, 0.0])


# --- the trace of a matrix's square root ---


def matrix_with(*eigenvalues: float) -> Array:
    """A symmetric matrix with these eigenvalues in no special directions."""
    random = np.random.default_rng(len(eigenvalues)).standard_normal((len(eigenvalues), len(eigenvalues)))
    vectors = np.linalg.qr(random).Q
    return vectors * np.array(eigenvalues) @ vectors.T


SPECTRA = [(0.5, 1.0, 2.0, 7.0), (1.0, 1.0, 9.0), (4.0, 4.0, 4.0), (2.0,)]


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_trace_of_root_is_that_of_scipys_root(spectrum: tuple[float, ...]) -> None:
    matrix = matrix_with(*spectrum)
    np.testing.assert_allclose(trace_of_root(tf.constant(matrix)), np.trace(scipy.linalg.sqrtm(matrix)), rtol=1e-12)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_trace_of_root_has_the_right_gradient_also_with_repeated_eigenvalues(spectrum: tuple[float, ...]) -> None:
    matrix = matrix_with(*spectrum)
    gradient = check_gradient(trace_of_root, matrix)
    np.testing.assert_allclose(gradient, 0.5 * np.linalg.inv(scipy.linalg.sqrtm(matrix)), rtol=1e-9, atol=1e-12)


def test_trace_of_root_weighs_each_matrix_of_a_batch_by_itself() -> None:
    matrices = np.stack([matrix_with(1.0, 4.0), matrix_with(9.0, 16.0)])
    check_gradient(lambda m: tf.reduce_sum(trace_of_root(m) * tf.constant([2.0, -3.0], tf.float64)), matrices)


def test_trace_of_root_has_a_finite_gradient_at_zero() -> None:
    matrix = tf.zeros((3, 3), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        value = trace_of_root(matrix)
    assert 0.0 <= float(value) < 1e-3
    assert np.all(np.isfinite(tape.gradient(value, matrix)))


# --- gradients ---


def check_gradient(function: Callable[[tf.Tensor], tf.Tensor], x: Array, step: float = 1e-5) -> Array:
    """The gradient of a scalar function at x, once it is found equal to central differences in every coordinate."""
    with tf.GradientTape() as tape:
        variable = tf.constant(x)
        tape.watch(variable)
        value = function(variable)
    gradient = tape.gradient(value, variable).numpy()
    differences = np.empty_like(x)
    for place in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[place] = step
        differences[place] = (function(tf.constant(x + nudge)) - function(tf.constant(x - nudge))) / (2 * step)
    assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-6 * np.abs(gradient).max())
    return gradient


@pytest.mark.parametrize("loss", STYLES)
@pytest.mark.parametrize("channels", [3, 7], ids=["full-rank", "fewer-positions-than-channels"])
def test_gradient_of_style_distance(loss: StyleLoss, channels: int) -> None:
    style = statistics(loss, activations(9, 2, 2, 4, 3, channels))
    upstream = tf.constant([[1.0, 0.5], [-2.0, 3.0]], tf.float64)
    x = activations(10, 2, 2, 3, channels)
    check_gradient(lambda x: tf.reduce_sum(upstream * style_distance(loss, x, style)), x)


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
