"""The optimization as a whole: its gradient against differences, and the behaviour that its callers rely on."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import losses, optimizers, transfer, vgg
from nst_tasks.core.method import (
    LARGE_IMAGE_HISTORY,
    LBFGS,
    SGD,
    Adam,
    ContentLoss,
    Method,
    Optimizer,
    Pyramid,
    StyleLoss,
    TotalVariation,
    limit_history,
)
from nst_tasks.core.objective import Nothing, Targets
from nst_tasks.core.pyramid import Level
from nst_tasks.core.transfer import Average, Best, TransferState
from nst_tasks.core.vgg import Backbone
from nst_tasks.inputs.presets import PAINTERLY, PRESETS
from tests.support.pictures import SIZE, Array, picture
from tests.support.transfers import leaves, loss_terms, one_pair, run_eagerly, targets, targets64

PIXELS = tf.constant(SIZE[0] * SIZE[1])
METHODS = [pytest.param(recipe.method, id=name) for name, recipe in PRESETS.items()]

LIGHT = Method(
    content=ContentLoss((("block2_conv1", 1.0),), 100.0),
    style=StyleLoss((("block1_conv1", 1.0), ("block2_conv1", 1.0)), 1000.0),
    total_variation=TotalVariation(100.0, "l2_mean"),
    optimizer=Adam(0.05, beta_1=0.9, beta_2=0.99, epsilon=1e-3, decay_to=0.2),
    steps=10,
    average_decay=0.8,
)
"""Shallow, and so compiled quickly: for behaviour that does not depend on the losses.

The tests vary what its graphs take as inputs, such as weights and rates, and share the few graphs of its other variants.
"""


def sum_terms(rows: Array) -> Array:
    """Sum terms (n, B, 3) to losses (n, B)."""
    return rows.sum(axis=2)


def step_through(
    backbone: Backbone, method: Method, aims: Targets, state: TransferState, steps: int
) -> tuple[list[TransferState], Array]:
    """Return the states before the first step and after each, and the losses (steps + 1, B) of their images."""
    states, rows = [state], []
    for _ in range(steps):
        state, row = transfer.advance(backbone, method, aims, state, 1, steps)
        states.append(state)
        rows.append(row)
    rows.append(transfer.compute_terms(backbone, method, aims, state.image)[None])
    return states, sum_terms(np.concatenate(rows))


# --- gradients ---


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_loss_in_float64(tiny64: Backbone, method: Method) -> None:
    aims = targets64(tiny64, method, picture(7), picture(8, 36, 33))
    image = 0.8 * picture(9).astype(np.float64)[None] + 0.1  # off the ends of the range
    random = np.random.default_rng(10)
    directions = [random.standard_normal(image.shape) for _ in range(2)]
    for place in ((0, 0, 0, 0), (0, 15, 20, 1), (0, 31, 39, 2)):  # and single pixels: corners and the middle
        directions.append(np.zeros(image.shape))
        directions[-1][place] = 1.0
    with tf.GradientTape(persistent=True) as tape:
        variable = tf.constant(image)
        tape.watch(variable)
        terms = tf.unstack(loss_terms(tiny64, method, variable, aims)[0])
    gradients = [tape.gradient(term, variable).numpy() for term in terms]
    weighted = (method.content.weight, method.style.weight, method.total_variation.weight)
    assert [np.abs(gradient).max() > 0 for gradient in gradients] == [weight > 0 for weight in weighted]
    step = 1e-6
    for direction in directions:
        there, back = (loss_terms(tiny64, method, tf.constant(image + sign * step * direction), aims)[0] for sign in (1, -1))
        for gradient, slope in zip(gradients, (there - back).numpy() / (2 * step), strict=True):
            assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-4, abs=1e-5 * np.abs(gradient).max())


def make_textured(seed: int, side: int) -> Array:
    """Make a picture (side, side, 3) with detail of every size, as photographs have."""
    random = np.random.default_rng(seed)
    sizes = (4, 8, 16, 32, side)
    layers = [tf.image.resize(random.random((size, size, 3), np.float32), (side, side), "bicubic") for size in sizes]
    return np.clip(tf.reduce_mean(layers, axis=0).numpy(), 0.0, 1.0)


@pytest.mark.parametrize("layer", ["block2_conv1", "block3_conv1", "block4_conv1"])
def test_float32_wasserstein_gradient_matches_float64(hed: Backbone, layer: str) -> None:
    """Covariances of real features are near singular: the square root's gradient must survive single precision."""
    loss = PAINTERLY.method.style
    found = vgg.extract_activations(
        hed, tf.constant(np.stack([make_textured(11, 64), make_textured(12, 64)[::-1] ** 2])), [layer]
    )[layer]
    gradients = []
    for kind in (tf.float32, tf.float64):
        x, style = tf.cast(found[:1], kind), losses.style_statistics(loss, losses.sums(tf.cast(found[1:], kind)), PIXELS)
        with tf.GradientTape() as tape:
            tape.watch(x)
            statistics = {name: value[:, None] for name, value in style.items()}
            distance = losses.style_distance(loss, losses.sums(x), statistics, PIXELS)
        gradients.append(tape.gradient(distance, x).numpy().astype(np.float64).ravel())
    single, double = gradients
    assert single @ double / (np.linalg.norm(single) * np.linalg.norm(double)) > 0.99


# --- steps ---


def test_steps_are_adam_steps_on_the_sum_of_terms(tiny: Backbone) -> None:
    """Three steps of `advance` written out in NumPy, but for the gradient, which the tests above check."""
    aims, state = one_pair(tiny, LIGHT)
    mean, square = np.zeros(state.image.shape), np.zeros(state.image.shape)
    for k in range(3):
        with tf.GradientTape() as tape:
            tape.watch(state.image)
            terms = loss_terms(tiny, LIGHT, state.image, aims)
            total = tf.reduce_sum(terms)
        gradient = tape.gradient(total, state.image).numpy().astype(np.float64)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        rate = 0.05 * (0.2 + 0.8 * (1 + np.cos(np.pi * k / 3)) / 2) * np.sqrt(1 - 0.99 ** (k + 1)) / (1 - 0.9 ** (k + 1))
        expected = np.clip(state.image.numpy() - rate * mean / (np.sqrt(square) + 1e-3), 0.0, 1.0)
        assert np.abs(expected - state.image.numpy()).max() > 1e-2
        state, rows = transfer.advance(tiny, LIGHT, aims, state, 1, 3)
        np.testing.assert_allclose(state.image, expected, atol=1e-4)
        np.testing.assert_allclose(rows, terms[None], rtol=1e-4, atol=1e-5)
        assert (state.level, state.step, int(state.optimizer.count[0])) == (0, k + 1, k + 1)


FALLING_SGD = SGD(learning_rate=0.01, decay=0.5, decay_steps=2)


def test_steps_are_gradient_descents_at_a_falling_rate(tiny: Backbone) -> None:
    method = replace(LIGHT, optimizer=FALLING_SGD, clip=False)
    aims, state = one_pair(tiny, method)
    for k in range(3):
        with tf.GradientTape() as tape:
            tape.watch(state.image)
            total = tf.reduce_sum(loss_terms(tiny, method, state.image, aims))
        expected = state.image - 0.01 * 0.5 ** (k / 2) * tape.gradient(total, state.image)
        assert np.abs(expected - state.image).max() > 1e-2
        state, _ = transfer.advance(tiny, method, aims, state, 1, 3)
        np.testing.assert_allclose(state.image, expected, atol=1e-4)
        assert (state.step, int(state.optimizer.count[0])) == (k + 1, k + 1)


def test_a_history_row_is_of_the_image_before_its_update(tiny: Backbone) -> None:
    aims, first = one_pair(tiny, LIGHT)
    _, rows = transfer.advance(tiny, LIGHT, aims, first, 4, 4)
    np.testing.assert_allclose(transfer.compute_terms(tiny, LIGHT, aims, first.image), rows[0], rtol=1e-5, atol=1e-6)
    for n in (1, 3):
        state, _ = transfer.advance(tiny, LIGHT, aims, first, n, 4)
        np.testing.assert_allclose(transfer.compute_terms(tiny, LIGHT, aims, state.image), rows[n], rtol=1e-5)
        assert not np.allclose(rows[n], rows[n - 1], rtol=1e-3)


LARGE_STEPS: dict[str, Optimizer] = {
    "adam": replace(LIGHT.optimizer, learning_rate=0.4),
    "sgd": replace(FALLING_SGD, learning_rate=0.0005),
    "lbfgs": LBFGS(history=5),
}


@pytest.mark.parametrize("optimizer", LARGE_STEPS.values(), ids=LARGE_STEPS)
def test_only_with_clip_the_image_stays_in_range(tiny: Backbone, optimizer: Optimizer) -> None:
    method = replace(LIGHT, optimizer=optimizer)
    aims, _ = one_pair(tiny, method)
    results = {}
    for clip in (True, False):
        clipping = replace(method, clip=clip)
        first = transfer.start(clipping, np.round(picture(1))[None], [0])  # of black and white, the ends of the range
        state, rows = transfer.advance(tiny, clipping, aims, first, 5, 5)
        assert np.all(np.isfinite(rows))
        results[clip], _ = transfer.compute_result(tiny, clipping, aims, state)
    assert 0.0 <= float(tf.reduce_min(results[True])) < float(tf.reduce_max(results[True])) <= 1.0
    assert float(tf.reduce_min(results[False])) < -0.01
    assert float(tf.reduce_max(results[False])) > 1.01


# --- the result of a level ---


RESTLESS = replace(LIGHT, optimizer=replace(LIGHT.optimizer, learning_rate=0.1))
"""Its loss falls and rises again and again."""


def test_last_image_is_the_result_by_default(tiny: Backbone) -> None:
    aims, first = one_pair(tiny, RESTLESS)
    state, _ = transfer.advance(tiny, RESTLESS, aims, first, 5, 10)
    image, terms = transfer.compute_result(tiny, RESTLESS, aims, state)
    np.testing.assert_array_equal(image, state.image)
    np.testing.assert_array_equal(terms, transfer.compute_terms(tiny, RESTLESS, aims, state.image))


def test_best_image_is_chosen_per_pair(tiny: Backbone) -> None:
    method = replace(RESTLESS, output="best")
    contents = [picture(1), picture(5)]
    aims = targets(tiny, method, contents, [[picture(2, 36, 33)], [picture(4)]])
    states, losses_of = step_through(tiny, method, aims, transfer.start(method, np.stack(contents), [0, 0]), 14)
    last_was_best = []
    for n, state in enumerate(states):
        least = losses_of[: n + 1].argmin(axis=0)  # (B,)
        image, terms = transfer.compute_result(tiny, method, aims, state)
        for k in range(2):
            np.testing.assert_array_equal(image[k], states[least[k]].image[k])
        np.testing.assert_allclose(terms.sum(axis=1), losses_of[least, [0, 1]], rtol=1e-5)
        last_was_best.append(tuple(least == n))
    assert (True, True) in last_was_best
    assert any(not all(pair) for pair in last_was_best)
    assert len(set(last_was_best)) > 2  # one pair's last is its best while the other's is not


def test_an_image_that_is_not_finite_is_never_the_best(tiny: Backbone) -> None:
    method = replace(RESTLESS, output="best")
    aims, first = one_pair(tiny, method)
    state, rows = transfer.advance(tiny, method, aims, first, 3, 10)
    lost = state._replace(image=state.image * np.nan)
    image, terms = transfer.compute_result(tiny, method, aims, lost)
    np.testing.assert_array_equal(image, state.output_state.image)
    assert terms.sum() == pytest.approx(sum_terms(rows).min(), rel=1e-5)
    further, _ = transfer.advance(tiny, method, aims, lost, 2, 10)
    np.testing.assert_array_equal(further.output_state.image, state.output_state.image)


def test_average_is_exponential_and_corrected_for_its_start(tiny: Backbone) -> None:
    method = replace(RESTLESS, output="average")
    aims, first = one_pair(tiny, method)
    states, _ = step_through(tiny, method, aims, first, 6)
    value, accumulated = np.zeros(first.image.shape), 1.0
    for n, state in enumerate(states):
        value = 0.8 * value + 0.2 * state.image.numpy().astype(np.float64)
        accumulated *= 0.8
        image, terms = transfer.compute_result(tiny, method, aims, state)
        np.testing.assert_allclose(image, value / (1.0 - accumulated), atol=1e-6)
        np.testing.assert_allclose(terms, transfer.compute_terms(tiny, method, aims, image), rtol=1e-6)
        assert n == 0 or np.abs(image - state.image).max() > 1e-2


def test_lbfgs_result_is_its_best_image(tiny: Backbone) -> None:
    steep = StyleLoss(LIGHT.style.layers, 1e9)
    method = replace(LIGHT, style=steep, optimizer=LBFGS(history=5), clip=False)
    contents = [picture(1), picture(3)]
    aims = targets(tiny, method, contents, [[picture(2, 36, 33)], [picture(4)]])
    states, losses_of = step_through(tiny, method, aims, transfer.start(method, np.stack(contents), [0, 1]), 20)
    assert np.any(np.diff(losses_of, axis=0) > 0)  # some steps go up
    for n, state in enumerate(states):
        image, terms = transfer.compute_result(tiny, method, aims, state)
        np.testing.assert_allclose(terms.sum(axis=1), losses_of[: n + 1].min(axis=0), rtol=1e-5)
        np.testing.assert_allclose(terms, transfer.compute_terms(tiny, method, aims, image), rtol=1e-6)


# --- the start, the next level, several styles ---


def test_without_noise_the_picture_starts_as_the_content() -> None:
    contents = np.stack([picture(30), picture(31)])
    state = transfer.start(replace(LIGHT, init_noise=0.0), contents, [0, 1])
    np.testing.assert_array_equal(state.image, contents)
    assert (state.level, state.step) == (0, 0)
    np.testing.assert_array_equal(state.optimizer.count, [0, 0])
    for moment in (state.optimizer.mean, state.optimizer.square):
        np.testing.assert_array_equal(moment, np.zeros_like(contents))


def test_initial_noise_depends_on_each_pairs_own_seed_only() -> None:
    method = replace(LIGHT, init_noise=0.1)
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


def test_a_pair_without_a_seed_starts_from_its_image_as_it_is() -> None:
    method = replace(LIGHT, init_noise=0.1)
    images = np.stack([picture(30), picture(31)])
    state = transfer.start(method, images, [None, 5])
    np.testing.assert_array_equal(state.image[0], images[0])
    np.testing.assert_array_equal(state.image[1], transfer.start(method, images[1:], [5]).image[0])
    assert np.abs(state.image[1] - images[1]).mean() > 0.05


@pytest.mark.parametrize("optimizer", [Adam(0.05), LBFGS()], ids=["adam", "l_bfgs"])
def test_zero_steps_return_the_first_image(tiny: Backbone, optimizer: Optimizer) -> None:
    method = replace(LIGHT, optimizer=optimizer)
    aims, first = one_pair(tiny, method)
    state = transfer.start(method, first.image.numpy(), [0], steps=0)
    assert state.optimizer == Nothing()  # of L-BFGS, 40 images of zeros
    image, terms = transfer.compute_result(tiny, method, aims, state)
    np.testing.assert_array_equal(image, first.image)
    np.testing.assert_array_equal(terms, transfer.compute_terms(tiny, method, aims, first.image))
    assert transfer.start_next_level(method, state, image, Level(*SIZE, 0)).optimizer == Nothing()
    assert transfer.start_next_level(method, state, image, Level(*SIZE, 1)).optimizer.count is not None  # type: ignore[union-attr]


def test_start_has_the_state_of_its_output() -> None:
    image = picture(30)[None]
    best = transfer.start(replace(LIGHT, output="best"), image, [0]).output_state
    assert isinstance(best, Best)
    np.testing.assert_array_equal(best.image, image)
    np.testing.assert_array_equal(best.loss, [np.inf])
    average = transfer.start(replace(LIGHT, output="average", average_decay=0.75), image, [0]).output_state
    assert isinstance(average, Average)
    np.testing.assert_array_equal(average.image, 0.25 * image)
    np.testing.assert_array_equal(average.weight, [0.25])
    for method in (LIGHT, replace(LIGHT, output="best", optimizer=LBFGS())):  # L-BFGS knows its best itself
        assert transfer.start(method, image, [0]).output_state == Nothing()


def test_next_level_resets_adam_unless_carried(tiny: Backbone) -> None:
    fresh = replace(LIGHT, output="average", pyramid=Pyramid(32, 1.5, 4))
    carrying = replace(fresh, pyramid=Pyramid(32, 1.5, 4, carry=True))
    aims, first = one_pair(tiny, fresh)
    state, _ = transfer.advance(tiny, fresh, aims, first, 4, 4)
    level = Level(50, 63, 10)
    for method in (fresh, replace(fresh, pyramid=None), carrying):
        above = transfer.start_next_level(method, state, picture(3)[None], level)
        assert (above.level, above.step) == (1, 0)
        expected = np.clip(tf.image.resize(picture(3)[None], (50, 63), "bicubic"), 0.0, 1.0)
        np.testing.assert_array_equal(above.image, expected)
        # the average is of this level's images alone
        np.testing.assert_array_equal(above.output_state.image, np.float32(0.2) * expected)
        if method is carrying:
            np.testing.assert_array_equal(above.optimizer.mean, optimizers.resize_moments(state.optimizer, 50, 63).mean)
            np.testing.assert_array_equal(above.optimizer.square, optimizers.resize_moments(state.optimizer, 50, 63).square)
            np.testing.assert_array_equal(above.optimizer.count, [4])
            assert float(tf.reduce_max(tf.abs(above.optimizer.mean))) > 0.0
        else:
            np.testing.assert_array_equal(above.optimizer.mean, np.zeros((1, 50, 63, 3)))
            np.testing.assert_array_equal(above.optimizer.square, np.zeros((1, 50, 63, 3)))
            np.testing.assert_array_equal(above.optimizer.count, [0])
    # with carried moments the first step continues the last one; with fresh ones it follows its own gradient alone
    finer = targets(tiny, fresh, [picture(1, 50, 63)], [[picture(2, 36, 33)]])
    steps = []
    for method in (fresh, carrying):
        above = transfer.start_next_level(method, state, state.image, level)
        following, _ = transfer.advance(tiny, method, finer, above, 1, 10)
        steps.append(tf.reshape(following.image - above.image, [-1]))
    last_step = -tf.reshape(optimizers.resize_moments(state.optimizer, 50, 63).mean, [-1])
    cosines = [np.corrcoef(step, last_step)[0, 1] for step in steps]
    assert cosines[1] > cosines[0] + 0.1
    assert not np.allclose(*steps, atol=1e-3)


def test_resizing_overshoots_no_edge() -> None:
    image = tf.constant(np.repeat(np.indices((8, 8)).sum(axis=0)[None, ..., None] % 2, 3, axis=-1), tf.float32)
    above = transfer.start_next_level(LIGHT, transfer.start(LIGHT, image.numpy(), [0]), image, Level(13, 13, 1)).image
    assert float(tf.reduce_min(above)) == 0.0  # a bicubic filter alone would go below 0 and above 1
    assert float(tf.reduce_max(above)) == 1.0


def test_weights_multiply_their_own_terms(tiny: Backbone) -> None:
    method = replace(
        LIGHT,
        content=ContentLoss((("block1_conv1", 1.0), ("block2_conv1", 3.0)), 2.0),
        style=StyleLoss((("block1_conv2", 1.0), ("block2_conv2", 3.0)), 5.0),
        total_variation=TotalVariation(7.0),
    )

    def terms(content: ContentLoss, style: StyleLoss, variation: TotalVariation) -> Array:
        one = replace(method, content=content, style=style, total_variation=variation)
        with run_eagerly():  # test_graphs.py changes the weights in a graph
            aims = targets(tiny, one, [picture(47)], [[picture(48)]])
            return transfer.compute_terms(tiny, one, aims, tf.constant(picture(49)[None]))[0]

    first = terms(ContentLoss((("block1_conv1", 1.0),), 1.0), StyleLoss((("block1_conv2", 1.0),), 1.0), TotalVariation(1.0))
    second = terms(ContentLoss((("block2_conv1", 1.0),), 1.0), StyleLoss((("block2_conv2", 1.0),), 1.0), TotalVariation(0.0))
    expected = [2 * (first[0] + 3 * second[0]), 5 * (first[1] + 3 * second[1]), 7 * first[2]]
    assert second[2] == 0.0
    np.testing.assert_allclose(terms(method.content, method.style, method.total_variation), expected, rtol=1e-5)


# --- masks ---


def make_half_mask() -> Array:
    """Make a mask (1, H, W) of the left half, with a soft edge."""
    across = np.clip((SIZE[1] / 2 + 2 - np.arange(SIZE[1])) / 4, 0.0, 1.0)
    return np.repeat(across[None, None], SIZE[0], axis=1).astype(np.float32)


OUTPUTS = {
    "last": replace(LIGHT, init_noise=0.1),
    "best": replace(LIGHT, init_noise=0.1, output="best"),
    "average": replace(LIGHT, init_noise=0.1, output="average"),
    "lbfgs": replace(LIGHT, init_noise=0.1, optimizer=LBFGS(history=5)),
}


@pytest.mark.parametrize("method", OUTPUTS.values(), ids=OUTPUTS)
def test_content_and_state_stay_outside_a_mask(tiny: Backbone, method: Method) -> None:
    """In a graph for the first method; eagerly for the others, whose graphs run without a mask in other tests."""
    content, mask = picture(1), make_half_mask()
    with nullcontext() if method.output == "last" and isinstance(method.optimizer, Adam) else run_eagerly():
        aims = targets(tiny, method, [content], [[picture(2, 36, 33)]], mask=mask)
        first = transfer.start(method, content[None], [3])
        state, rows = transfer.advance(tiny, method, aims, first, 10, 10)
        image, terms = transfer.compute_result(tiny, method, aims, state)
    outside, inside = mask[0] == 0.0, mask[0] == 1.0
    np.testing.assert_array_equal(image.numpy()[0][outside], content[outside])  # not even the noise is seen there
    np.testing.assert_array_equal(state.image.numpy()[0][outside], first.image.numpy()[0][outside])
    assert np.abs(image.numpy()[0] - content)[inside].mean() > 0.05
    assert terms.sum() < 0.8 * rows[0].sum()
    # between, the two are mixed by the mask
    soft = ~outside & ~inside
    with run_eagerly():
        shown = transfer.compute_result(tiny, method, aims, first)[0].numpy()[0]
    weight = mask[0][soft][:, None]
    np.testing.assert_allclose(shown[soft], (1 - weight) * content[soft] + weight * first.image.numpy()[0][soft], atol=1e-6)


@pytest.mark.parametrize("method", OUTPUTS.values(), ids=OUTPUTS)
def test_held_pair_continues_from_its_state(tiny: Backbone, method: Method) -> None:
    contents = [picture(1), picture(3)]
    aims = targets(tiny, method, contents, [[picture(2, 36, 33)], [picture(4)]])
    before, _ = transfer.advance(tiny, method, aims, transfer.start(method, np.stack(contents), [0, 1]), 2, 10)
    advanced, _ = transfer.advance(tiny, method, aims, before, 3, 10)
    held = transfer.hold_pairs(before, advanced, [True, False])
    assert (held.level, held.step) == (0, 5)
    unheld, _ = transfer.advance(tiny, method, aims, before, 1, 10)
    later, _ = transfer.advance(tiny, method, aims, held._replace(step=2), 1, 10)
    parts = [list(leaves(tuple(state[:3]))) for state in (before, advanced, held, unheld, later)]
    for old, new, mixed, next_old, next_mixed in zip(*parts, strict=True):
        np.testing.assert_array_equal(mixed[0], new[0])
        np.testing.assert_array_equal(mixed[1], old[1])
        np.testing.assert_array_equal(next_mixed[1], next_old[1])


def test_outside_a_mask_the_gradient_is_zero(tiny: Backbone) -> None:
    mask = make_half_mask()
    aims = targets(tiny, LIGHT, [picture(1)], [[picture(2, 36, 33)]], mask=mask)
    image = tf.constant(picture(3)[None])
    with tf.GradientTape() as tape:
        tape.watch(image)
        total = tf.reduce_sum(loss_terms(tiny, LIGHT, image, aims))
    gradient = np.abs(tape.gradient(total, image).numpy()).max(axis=-1)
    np.testing.assert_array_equal(gradient[mask == 0.0], 0.0)
    assert np.mean(gradient[mask == 1.0] > 0.0) > 0.99


def test_a_mask_of_ones_is_no_mask(tiny: Backbone) -> None:
    plain, first = one_pair(tiny, LIGHT)
    ones = targets(tiny, LIGHT, [picture(1)], [[picture(2, 36, 33)]], mask=np.ones((1, *SIZE), np.float32))
    state, rows = transfer.advance(tiny, LIGHT, plain, first, 5, 5)
    masked, masked_rows = transfer.advance(tiny, LIGHT, ones, first, 5, 5)
    np.testing.assert_allclose(masked_rows, rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(masked.image, state.image, atol=1e-4)


def test_only_what_a_mask_shows_is_compared_with_the_style(tiny: Backbone) -> None:
    content, mask = picture(1), make_half_mask()
    content[:, SIZE[1] // 2 :] *= 0.2  # elsewhere, the picture has other statistics
    aims = targets(tiny, LIGHT, [content], [[picture(2, 36, 33)]], mask=mask)
    image = tf.constant(picture(3)[None])
    shown = content[None] + mask[..., None] * (image - content[None])
    found = vgg.extract_activations(tiny, tf.constant(shown), LIGHT.layers)
    layer_masks = {
        "block1_conv1": tf.constant(mask),
        "block2_conv1": tf.constant(mask.reshape(1, 16, 2, 20, 2).mean(axis=(2, 4))),
    }

    def style_term(weighted: bool) -> float:
        return 1000.0 * sum(
            float(losses.style_distance(LIGHT.style, losses.sums(found[layer], weight), aims.style[layer], PIXELS)[0, 0])
            for layer, weight in (layer_masks if weighted else dict.fromkeys(layer_masks)).items()
        )

    assert transfer.compute_terms(tiny, LIGHT, aims, image)[0, 1] == pytest.approx(style_term(True), rel=1e-4)
    assert style_term(False) > 1.2 * style_term(True)


@pytest.mark.parametrize(("height", "width"), [(32, 40), (37, 51)])
def test_a_mask_follows_the_poolings_to_every_layer(tiny: Backbone, height: int, width: int) -> None:
    layers = tuple((f"block{block}_conv1", 1.0) for block in range(1, 6))
    method = replace(LIGHT, style=StyleLoss((*layers, ("block3_conv2", 1.0)), 1.0))
    mask = np.random.default_rng(0).random((2, height, width), np.float32)
    contents, styles = [picture(1, height, width)] * 2, [[picture(2, 36, 33)]] * 2
    by_layer = targets(tiny, method, contents, styles, mask=mask).mask.by_layer
    found = vgg.extract_activations(tiny, tf.constant(np.stack(contents)), by_layer)
    assert sorted(by_layer) == sorted(layer for layer, _ in method.style.layers)
    for layer, weight in by_layer.items():
        assert weight.shape == found[layer].shape[:3]
        side = 2 ** (int(layer[5]) - 1)  # of the square of pixels under a position
        h, w = height // side, width // side
        expected = mask[:, : h * side, : w * side].reshape(2, h, side, w, side).mean(axis=(2, 4))
        np.testing.assert_allclose(weight, expected, rtol=1e-5)


def test_a_masked_pair_in_a_batch_is_as_it_is_alone(tiny: Backbone) -> None:
    contents, styles = [picture(1), picture(3)], [[picture(2, 36, 33)], [picture(4)]]
    masks = np.concatenate([make_half_mask(), make_half_mask()[:, ::-1, ::-1]])
    first = transfer.start(LIGHT, np.stack(contents), [0, 0])
    together, rows = transfer.advance(tiny, LIGHT, targets(tiny, LIGHT, contents, styles, mask=masks), first, 5, 5)
    for k in range(2):
        aims = targets(tiny, LIGHT, contents[k : k + 1], styles[k : k + 1], mask=masks[k : k + 1])
        alone, row = transfer.advance(tiny, LIGHT, aims, transfer.start(LIGHT, contents[k][None], [0]), 5, 5)
        np.testing.assert_allclose(together.image[k], alone.image[0], atol=1e-3)
        np.testing.assert_allclose(rows[:, k], row[:, 0], rtol=1e-4, atol=1e-6)


def test_lbfgs_history_is_shorter_for_a_large_image(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the most memory; the image's size alone decides, so that a resumed pair has the same."""
    method = replace(LIGHT, optimizer=LBFGS(history=9))
    assert limit_history(method, 1024, 4096) == method
    assert limit_history(method, 1024, 4097).optimizer == LBFGS(history=LARGE_IMAGE_HISTORY)
    assert limit_history(replace(method, optimizer=LBFGS(history=1)), 1024, 4097).optimizer == LBFGS(history=1)
    monkeypatch.setattr("nst_tasks.core.method.LARGE_IMAGE_PIXELS", 32 * 40)
    largest, larger = Level(32, 40, 1), Level(32, 41, 1)
    for level, history in ((largest, 9), (larger, LARGE_IMAGE_HISTORY)):
        image = np.zeros((1, level.height, level.width, 3), np.float32)
        state = transfer.start(method, image, [0])
        assert state.optimizer.s.shape[1] == history
        assert transfer.is_compatible(method, state, level)
        assert transfer.restart_level(method, state, state.image).optimizer.s.shape[1] == history
    aims = targets(tiny, method, list(image), [[picture(2)]])
    state = transfer.advance(tiny, method, aims, state, 1, 1)[0]
    assert transfer.is_compatible(method, state, larger)
    graphs = transfer._compile_graphs.cache_info().misses
    transfer.compute_terms(tiny, method, aims, state.image)
    assert transfer._compile_graphs.cache_info().misses == graphs  # those of the shorter history
