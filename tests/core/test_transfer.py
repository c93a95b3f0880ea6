"""The optimization as a whole: its gradient against differences, and what its callers rely on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from transfers import SIZE, Array, one_pair, picture, targets, targets64

from nst_tasks.core import backbones, losses, optimizers, transfer
from nst_tasks.core.backbones import Backbone
from nst_tasks.core.method import LBFGS, SGD, Adam, ContentLoss, Method, Optimizer, Pyramid, StyleLoss, TotalVariation
from nst_tasks.core.pyramid import Level
from nst_tasks.core.transfer import Average, Best, Targets, TransferState
from nst_tasks.presets import PAINTERLY, PRESETS, TF_TUTORIAL

METHODS = [pytest.param(recipe.method, id=name) for name, recipe in PRESETS.items()]

LIGHT = Method(
    content=ContentLoss((("block2_conv1", 1.0),), 1e-2),
    style=StyleLoss((("block1_conv1", 1.0), ("block2_conv1", 1.0)), 1e-2),
    total_variation=TotalVariation(0.1, "l2_mean"),
    optimizer=Adam(0.05, epsilon=1e-3),
    steps=10,
)
"""Shallow, and so compiled quickly: for what does not depend on the losses."""


def totals(rows: Array) -> Array:
    """The losses (n, B) of terms (n, B, 3)."""
    return rows.sum(axis=2)


def images_of(
    backbone: Backbone, method: Method, aims: Targets, state: TransferState, steps: int
) -> tuple[list[TransferState], Array]:
    """The states before the first step and after each, and the losses (steps + 1, B) of their images."""
    states, rows = [state], []
    for _ in range(steps):
        state, row = transfer.advance(backbone, method, aims, state, 1, steps)
        states.append(state)
        rows.append(row)
    rows.append(transfer.measure(backbone, method, aims, state.image)[None])
    return states, totals(np.concatenate(rows))


# --- gradients ---


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_loss_in_float64(tiny64: Backbone, method: Method) -> None:
    aims = targets64(tiny64, method, picture(7), picture(8, 36, 33))
    image = 0.8 * picture(9).astype(np.float64)[None] + 0.1  # off the ends of the range
    random = np.random.default_rng(10)
    directions = [random.standard_normal(image.shape) for _ in range(4)]
    for place in ((0, 0, 0, 0), (0, 15, 20, 1), (0, 31, 39, 2)):  # and single pixels: corners and the middle
        directions.append(np.zeros(image.shape))
        directions[-1][place] = 1.0
    with tf.GradientTape(persistent=True) as tape:
        variable = tf.constant(image)
        tape.watch(variable)
        terms = tf.unstack(transfer.loss_terms(tiny64, method, variable, aims)[0])
    gradients = [tape.gradient(term, variable).numpy() for term in terms]
    weighted = (method.content.weight, method.style.weight, method.total_variation.weight)
    assert [np.abs(gradient).max() > 0 for gradient in gradients] == [weight > 0 for weight in weighted]
    step = 1e-6
    for direction in directions:
        there, back = (
            transfer.loss_terms(tiny64, method, tf.constant(image + sign * step * direction), aims)[0] for sign in (1, -1)
        )
        for gradient, slope in zip(gradients, (there - back) / (2 * step), strict=True):
            assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-4, abs=1e-5 * np.abs(gradient).max())


def textured(seed: int, side: int) -> Array:
    """A picture (side, side, 3) with detail of every size, as photographs have."""
    random = np.random.default_rng(seed)
    sizes = (4, 8, 16, 32, side)
    layers = [tf.image.resize(random.random((size, size, 3), np.float32), (side, side), "bicubic") for size in sizes]
    return np.clip(tf.reduce_mean(layers, axis=0).numpy(), 0.0, 1.0)


@pytest.mark.parametrize("layer", ["block2_conv1", "block3_conv1", "block4_conv1"])
def test_the_wasserstein_gradient_in_float32_points_as_in_float64(hed: Backbone, layer: str) -> None:
    """Covariances of real features are near singular: the square root's gradient must survive single precision."""
    loss = PAINTERLY.method.style
    found = backbones.features(hed, tf.constant(np.stack([textured(11, 64), textured(12, 64)[::-1] ** 2])), [layer])[layer]
    gradients = []
    for kind in (tf.float32, tf.float64):
        x, style = tf.cast(found[:1], kind), losses.style_statistics(loss, tf.cast(found[1:], kind))
        with tf.GradientTape() as tape:
            tape.watch(x)
            distance = losses.style_distance(loss, x, {name: value[:, None] for name, value in style.items()})
        gradients.append(tape.gradient(distance, x).numpy().astype(np.float64).ravel())
    single, double = gradients
    assert single @ double / (np.linalg.norm(single) * np.linalg.norm(double)) > 0.95


# --- steps ---


def test_steps_are_adams_on_the_gradient_of_the_summed_terms(tiny: Backbone) -> None:
    """Three steps of `advance` written out in NumPy, but for the gradient, which the tests above check."""
    adam = Adam(learning_rate=0.05, beta_1=0.9, beta_2=0.99, epsilon=1e-3, decay_to=0.2)
    method = replace(TF_TUTORIAL.method, optimizer=adam)
    aims, state = one_pair(tiny, method)
    mean, square = np.zeros(state.image.shape), np.zeros(state.image.shape)
    for k in range(3):
        with tf.GradientTape() as tape:
            tape.watch(state.image)
            terms = transfer.loss_terms(tiny, method, state.image, aims)
            total = tf.reduce_sum(terms)
        gradient = tape.gradient(total, state.image).numpy().astype(np.float64)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        rate = 0.05 * (0.2 + 0.8 * (1 + np.cos(np.pi * k / 3)) / 2) * np.sqrt(1 - 0.99 ** (k + 1)) / (1 - 0.9 ** (k + 1))
        expected = np.clip(state.image.numpy() - rate * mean / (np.sqrt(square) + 1e-3), 0.0, 1.0)
        assert np.abs(expected - state.image.numpy()).max() > 1e-2
        state, rows = transfer.advance(tiny, method, aims, state, 1, 3)
        np.testing.assert_allclose(state.image, expected, atol=1e-4)
        np.testing.assert_allclose(rows, terms[None], rtol=1e-4, atol=1e-5)
        assert (state.level, state.step, int(state.optimizer.count)) == (0, k + 1, k + 1)


def test_a_history_row_is_of_the_image_before_its_update(tiny: Backbone) -> None:
    method = TF_TUTORIAL.method
    aims, first = one_pair(tiny, method)
    _, rows = transfer.advance(tiny, method, aims, first, 4, 4)
    np.testing.assert_allclose(transfer.measure(tiny, method, aims, first.image), rows[0], rtol=1e-5, atol=1e-6)
    for n in (1, 3):
        state, _ = transfer.advance(tiny, method, aims, first, n, 4)
        np.testing.assert_allclose(transfer.measure(tiny, method, aims, state.image), rows[n], rtol=1e-5)
        assert not np.allclose(rows[n], rows[n - 1], rtol=1e-3)


def test_every_pixel_stays_in_range_under_a_huge_rate(tiny: Backbone) -> None:
    method = replace(TF_TUTORIAL.method, optimizer=Adam(learning_rate=10.0))
    aims, state = one_pair(tiny, method)
    state, rows = transfer.advance(tiny, method, aims, state, 5, 5)
    assert np.all(np.isfinite(rows))
    assert float(tf.reduce_min(state.image)) == 0.0
    assert float(tf.reduce_max(state.image)) == 1.0


# --- the start, the next level, several styles ---


def test_without_noise_the_picture_starts_as_the_content() -> None:
    contents = np.stack([picture(30), picture(31)])
    state = transfer.start(replace(TF_TUTORIAL.method, init_noise=0.0), contents, [0, 1])
    np.testing.assert_array_equal(state.image, contents)
    assert (state.level, state.step, int(state.optimizer.count)) == (0, 0, 0)
    for moment in (state.optimizer.mean, state.optimizer.square):
        np.testing.assert_array_equal(moment, np.zeros_like(contents))


def test_initial_noise_depends_on_each_pairs_own_seed_only() -> None:
    method = replace(TF_TUTORIAL.method, init_noise=0.1)
    gray = np.full((1, 64, 64, 3), 0.5, np.float32)
    alone = transfer.start(method, gray, [7]).image.numpy()
    together = transfer.start(method, np.repeat(gray, 3, axis=0), [7, 8, 7]).image.numpy()
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_array_equal(together[2], alone[0])
    assert not np.any(np.all(together[1] == alone[0], axis=-1))
    assert np.std(alone) == pytest.approx(0.1, rel=0.05)
    assert np.mean(alone) == pytest.approx(0.5, abs=0.01)
    bright = transfer.start(method, np.ones_like(gray), [7]).image.numpy()
    assert bright.max() == 1.0
    assert bright.min() < 0.9


@@ASCEND@@


@pytest.mark.parametrize("method", METHODS)
def test_a_second_style_of_no_weight_changes_nothing(tiny: Backbone, method: Method) -> None:
    method = settled(method)
    content, first_style, second_style = picture(40), picture(41, 36, 33), picture(42, 33, 48)
    start = transfer.start(method, content[None], [0])
    alone = transfer.advance(tiny, method, targets(tiny, method, [content], [[first_style]]), start, 4, 4)
    aims = targets(tiny, method, [content], [[first_style, second_style]], [[1.0, 0.0]])
    both = transfer.advance(tiny, method, aims, start, 4, 4)
    np.testing.assert_allclose(both[1], alone[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both[0].image, alone[0].image, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_styles_are_blended_by_their_weights(tiny: Backbone, method: Method) -> None:
    content, styles = picture(43), [picture(44, 36, 33), picture(45, 33, 48)]
    image = tf.constant(picture(46)[None])

    def terms(pair: list[Array], shares: list[float]) -> Array:
        return transfer.measure(tiny, method, targets(tiny, method, [content], [pair], [shares]), image)[0]

    first, second = (terms([style], [1.0]) for style in styles)
    assert not np.isclose(first[1], second[1], rtol=1e-2)
    expected = [first[0], 0.3 * first[1] + 0.7 * second[1], first[2]]
    np.testing.assert_allclose(terms(styles, [0.3, 0.7]), expected, rtol=1e-5)


def test_weights_multiply_their_own_terms(tiny: Backbone) -> None:
    method = replace(
        TF_TUTORIAL.method,
        content=ContentLoss((("block1_conv1", 1.0), ("block2_conv1", 3.0)), 2.0),
        style=StyleLoss((("block1_conv2", 1.0), ("block2_conv2", 3.0)), 5.0),
        total_variation=TotalVariation(7.0),
    )

    def terms(content: ContentLoss, style: StyleLoss, variation: TotalVariation) -> Array:
        one = replace(method, content=content, style=style, total_variation=variation)
        aims = targets(tiny, one, [picture(47)], [[picture(48)]])
        return transfer.measure(tiny, one, aims, tf.constant(picture(49)[None]))[0]

    first = terms(ContentLoss((("block1_conv1", 1.0),), 1.0), StyleLoss((("block1_conv2", 1.0),), 1.0), TotalVariation(1.0))
    second = terms(ContentLoss((("block2_conv1", 1.0),), 1.0), StyleLoss((("block2_conv2", 1.0),), 1.0), TotalVariation(0.0))
    expected = [2 * (first[0] + 3 * second[0]), 5 * (first[1] + 3 * second[1]), 7 * first[2]]
    assert second[2] == 0.0
    np.testing.assert_allclose(terms(method.content, method.style, method.total_variation), expected, rtol=1e-5)
