"""Behaviour that all recipes share, for any losses and optimizer: one suite over all of them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import objective, transfer, vgg
from nst_tasks.core.method import LBFGS, Method
from nst_tasks.core.objective import Targets
from nst_tasks.core.pyramid import Level
from nst_tasks.core.transfer import TransferState
from nst_tasks.core.vgg import Backbone
from nst_tasks.inputs import weights
from nst_tasks.inputs.presets import PRESETS
from tests.support.pictures import Array, picture
from tests.support.transfers import assert_same, one_pair, targets

STEPS = 6

LOUD = {"keras-io", "tf-eager-2018"}
"""Recipes whose rates are for the large activations of VGG: their network's are multiplied, or images would hardly move."""


Case = tuple[Backbone, Method]


@pytest.fixture(scope="module", params=PRESETS)
def case(request: pytest.FixtureRequest) -> Case:
    """Return one recipe after the other, each with a small network of the layers that it reads and the first of each block.

    Its graph is traced once for the whole suite, and fewer convolutions are traced faster.
    """
    method, arrays = PRESETS[request.param].method, weights.load("tiny", None)
    used = {layer: arrays[layer] for layer in arrays if layer in method.layers or layer.endswith("conv1")}
    return vgg.with_scaled_features(vgg.build("tiny", used), 200.0 if request.param in LOUD else 1.0), method


def advance(case: Case, aims: Targets, state: TransferState, n: int, steps: int = STEPS) -> tuple[TransferState, Array]:
    backbone, method = case
    return transfer.advance(backbone, method, aims, state, n, steps)


def test_it_stays_finite_and_in_range_and_its_loss_falls(case: Case) -> None:
    backbone, method = case
    aims, first = one_pair(backbone, method)
    state, rows = advance(case, aims, first, 40, 40)
    image, terms = transfer.compute_result(backbone, method, aims, state)
    assert rows.shape == (40, 1, len(objective.TERMS))
    assert np.all(np.isfinite(rows))
    assert np.all(rows >= 0.0)
    for found in (state.image, image):
        assert np.all(np.isfinite(found))
        if method.clip:
            assert float(tf.reduce_min(found)) >= 0.0
            assert float(tf.reduce_max(found)) <= 1.0
    assert terms.sum() < 0.9 * rows[0].sum()
    np.testing.assert_allclose(terms, transfer.compute_terms(backbone, method, aims, image), rtol=1e-6)


def test_steps_repeat_bit_for_bit_in_any_chunks(case: Case) -> None:
    backbone, method = case
    aims, first = one_pair(backbone, method)
    whole, rows = advance(case, aims, first, STEPS)
    for chunks in ((STEPS,), (1, 2, 3), (5, 1), (1,) * STEPS):
        aims, state = one_pair(backbone, method)
        parts = []
        for n in chunks:
            state, part = advance(case, aims, state, n)
            parts.append(part)
        assert_same(state, whole)
        np.testing.assert_array_equal(np.concatenate(parts), rows)


def test_a_pair_in_a_batch_of_three_is_as_it_is_alone(case: Case) -> None:
    """Equal but for rounding: the backend may sum a batch's products in another order than one picture's.

    Adam with a small epsilon turns the rounding of a gradient near zero into a full step: so do a few values of a picture move
    apart, and no more than a few. L-BFGS, which over several steps makes of a rounding whatever the processor's
    sums let it, takes each step from where the batch stands; all others go their own way.
    """
    backbone, method = case
    contents = [picture(seed) for seed in (20, 21, 22)]
    styles = [[picture(23, 36, 33)], [picture(24, 40, 40)], [picture(25)]]
    seeds = [5, 6, 7]
    first = together = transfer.start(method, np.stack(contents), seeds)
    aims = [targets(backbone, method, contents[k : k + 1], styles[k : k + 1]) for k in range(3)]
    aims_together = targets(backbone, method, contents, styles)
    alone = [transfer.start(method, contents[k][None], seeds[k : k + 1]) for k in range(3)]
    for _ in range(STEPS):
        before = together
        together, rows = advance(case, aims_together, before, 1)
        assert rows.shape == (1, 3, len(objective.TERMS))
        for k in range(3):
            start = select_pair(before, k) if isinstance(method.optimizer, LBFGS) else alone[k]
            alone[k], row = advance(case, aims[k], start, 1)
            np.testing.assert_allclose(rows[:, k], row[:, 0], rtol=1e-3, atol=1e-6 * row.sum())
            change = np.abs(alone[k].image[0] - first.image[k])
            difference = np.abs(together.image[k] - alone[k].image[0])
            assert np.mean(difference > 0.01 * change.max()) < 0.01
            assert difference.mean() < 1e-3 * change.mean()


def select_pair(state: TransferState, k: int) -> TransferState:
    """Take one pair's state out of a batch's; numbers without an axis belong to the whole batch."""
    return tf.nest.map_structure(lambda leaf: leaf[k : k + 1] if tf.is_tensor(leaf) and leaf.shape.rank else leaf, state)


def write_state(state: TransferState) -> bytes:
    """Write a state to a file of plain arrays."""
    file = io.BytesIO()
    np.savez(file, *(np.asarray(leaf) for leaf in tf.nest.flatten(state)))
    return file.getvalue()


def read_state(data: bytes, like: TransferState) -> TransferState:
    """Read a state from such a file, with the structure of another state."""
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    leaves: Iterator[Array] = (arrays[name] for name in arrays.files)
    packed = tf.nest.pack_sequence_as(like, [leaf.item() if leaf.ndim == 0 else leaf for leaf in leaves])
    return tf.nest.map_structure(lambda one, its: tf.constant(its, one.dtype) if tf.is_tensor(one) else its, like, packed)


def test_state_of_plain_arrays_continues_bit_for_bit(case: Case) -> None:
    """In the middle of a level, and in the middle of the next one."""
    backbone, method = case
    aims, first = one_pair(backbone, method)
    half, _ = advance(case, aims, first, 4)
    whole, rows = advance(case, aims, half, 2)
    resumed_half = read_state(write_state(half), first)
    again, rows_again = advance(case, aims, resumed_half, 2)
    assert_same(again, whole)
    np.testing.assert_array_equal(rows_again, rows)

    image, _ = transfer.compute_result(backbone, method, aims, whole)
    level = Level(40, 50, STEPS)
    above = targets(backbone, method, [picture(1, level.height, level.width)], [[picture(2, 45, 41)]])
    second = transfer.start_next_level(method, whole, image, level)
    half, _ = advance(case, above, second, 3)
    whole, rows = advance(case, above, half, 3)
    again, rows_again = advance(case, above, read_state(write_state(half), first), 3)
    assert_same(again, whole)
    np.testing.assert_array_equal(rows_again, rows)
    assert (again.level, again.step) == (1, STEPS)
    for found, expected in zip(
        transfer.compute_result(backbone, method, above, again),
        transfer.compute_result(backbone, method, above, whole),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_the_next_level_begins_where_the_last_one_ended(case: Case) -> None:
    backbone, method = case
    aims, first = one_pair(backbone, method)
    state, _ = advance(case, aims, first, STEPS)
    image, _ = transfer.compute_result(backbone, method, aims, state)
    above = transfer.start_next_level(method, state, image, Level(50, 63, 10))
    assert above.image.shape == (1, 50, 63, 3)
    assert (above.level, above.step) == (1, 0)
    assert float(tf.reduce_min(above.image)) >= 0.0
    assert float(tf.reduce_max(above.image)) <= 1.0
    # the same picture, only finer: its 2 x 2 means over a doubled size are the pixels
    double = transfer.start_next_level(method, state, image, Level(64, 80, 10)).image.numpy()
    means = double.reshape(32, 2, 40, 2, 3).mean(axis=(1, 3))
    assert np.abs(means - np.clip(image[0], 0.0, 1.0)).mean() < 0.05
    if isinstance(method.optimizer, LBFGS):
        assert not np.any(above.optimizer.begun)


def test_styles_are_blended_by_their_weights(case: Case) -> None:
    backbone, method = case
    content, styles = picture(43), [picture(44, 36, 33), picture(45, 33, 48)]
    image = tf.constant(picture(46)[None])

    def terms(pair: list[Array], shares: list[float]) -> Array:
        return transfer.compute_terms(backbone, method, targets(backbone, method, [content], [pair], [shares]), image)[0]

    first, second = (terms([style], [1.0]) for style in styles)
    assert not np.isclose(first[1], second[1], rtol=1e-2)
    expected = [first[0], 0.3 * first[1] + 0.7 * second[1], first[2]]
    np.testing.assert_allclose(terms(styles, [0.3, 0.7]), expected, rtol=1e-5)
    np.testing.assert_allclose(terms(styles, [1.0, 0.0]), first, rtol=1e-5)
