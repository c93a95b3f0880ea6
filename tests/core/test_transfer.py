"""The optimization as a whole: first losses against NumPy, gradients against differences, what callers rely on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

from nst_tasks import weights
from nst_tasks.core import backbones, losses, transfer
from nst_tasks.core.backbones import Backbone
from nst_tasks.core.method import Adam, ContentLoss, Method, StyleLoss, TotalVariation
from nst_tasks.core.optimizers import AdamState
from nst_tasks.core.pyramid import Level
from nst_tasks.core.transfer import Targets, TransferState
from nst_tasks.presets import PAINTERLY, PRESETS, TF_TUTORIAL

Array = np.ndarray
METHODS = [pytest.param(recipe.method, id=name) for name, recipe in PRESETS.items()]
SIZE = (32, 40)


def picture(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> Array:
    """A picture (height, width, 3) of soft blobs with some grain."""
    random = np.random.default_rng(seed)
    coarse = tf.image.resize(random.random((4, 5, 3), np.float32), (height, width), "bicubic").numpy()
    return np.clip(0.1 + 0.8 * coarse + 0.02 * random.standard_normal((height, width, 3), np.float32), 0.0, 1.0)


def targets(
    backbone: Backbone,
    method: Method,
    contents: Sequence[Array],
    styles: Sequence[Sequence[Array]],
    style_weights: Sequence[Sequence[float]] | None = None,
) -> Targets:
    measured = [[transfer.style_statistics(backbone, method, style) for style in pair] for pair in styles]
    shares = style_weights or [[1.0 / len(pair)] * len(pair) for pair in styles]
    return transfer.targets(backbone, method, np.stack(contents), measured, shares)


def settled(method: Method) -> Method:
    """The method with an epsilon that leaves rounding as small as it is: see the batch of three."""
    return replace(method, optimizer=replace(method.optimizer, epsilon=max(method.optimizer.epsilon, 1e-3)))


def one_pair(backbone: Backbone, method: Method) -> tuple[Targets, TransferState]:
    content = picture(1)
    aims = targets(backbone, method, [content], [[picture(2, 36, 33)]])
    return aims, transfer.start(method, content[None], [0])


def assert_same(state: TransferState, other: TransferState) -> None:
    """Bit for bit."""
    assert (state.level, state.step) == (other.level, other.step)
    np.testing.assert_array_equal(state.image, other.image)
    for ours, theirs in zip(state.optimizer, other.optimizer, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- tf-tutorial's first losses on real features, by the published formula in NumPy and SciPy alone ---


def plain_vgg16(arrays: weights.Weights, image: Array) -> dict[str, Array]:
    """Activations of VGG16 for one picture (H, W, 3) RGB in [0, 1], in float64: no TensorFlow, and none of our core."""
    x = image.astype(np.float64)[..., ::-1] * 255.0 - np.array([103.939, 116.779, 123.68])
    found = {}
    for layer, (kernel, bias) in arrays.items():
        if layer.endswith("conv1") and layer != "block1_conv1":
            height, width, channels = x.shape
            x = x[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))  # (H, W, C_in, 3, 3)
        x = np.maximum(np.einsum("hwcij,ijco->hwo", windows, kernel.astype(np.float64), optimize=True) + bias, 0.0)
        found[layer] = x
    return found


def plain_tutorial_losses(arrays: weights.Weights, image: Array, content: Array, style: Array) -> list[float]:
    """1e4 MSE of block5_conv2, 1e-2 / 5 sum of MSE of Gram / (HW) of block1..5_conv1, 30 tf.image.total_variation."""
    of_image, of_content, of_style = (plain_vgg16(arrays, one) for one in (image, content, style))

    def gram(x: Array) -> Array:
        return np.einsum("hwc,hwd->cd", x, x) / (x.shape[0] * x.shape[1])

    content_loss = 1e4 * np.mean((of_image["block5_conv2"] - of_content["block5_conv2"]) ** 2)
    style_layers = [f"block{block}_conv1" for block in range(1, 6)]
    style_loss = 1e-2 / 5 * sum(np.mean((gram(of_image[name]) - gram(of_style[name])) ** 2) for name in style_layers)
    pixels = image.astype(np.float64)
    variation = np.abs(np.diff(pixels, axis=0)).sum() + np.abs(np.diff(pixels, axis=1)).sum()
    return [float(content_loss), float(style_loss), float(30 * variation)]


def test_the_plain_convolution_is_scipys() -> None:
    """The NumPy network above is itself checked once, on its first layer, against a library's convolution."""
    arrays = weights.load("tiny", None)
    kernel, bias = arrays["block1_conv1"]
    image = picture(3, 9, 8)
    x = image[..., ::-1] * 255.0 - np.array([103.939, 116.779, 123.68])
    expected = [
        sum(scipy.signal.correlate2d(x[..., i], kernel[..., i, o], "same") for i in range(3)) + bias[o]
        for o in range(kernel.shape[-1])
    ]
    found = plain_vgg16({"block1_conv1": arrays["block1_conv1"]}, image)["block1_conv1"]
    np.testing.assert_allclose(found, np.maximum(np.stack(expected, axis=-1), 0.0), rtol=1e-6, atol=1e-6)


def test_tf_tutorials_first_losses_are_the_published_formula(hed: Backbone) -> None:
    arrays, method = weights.load("vgg16-hed", None), TF_TUTORIAL.method
    content, style = picture(4), picture(5, 36, 33)
    aims = targets(hed, method, [content], [[style]])
    state = transfer.start(method, content[None], [0])
    _, rows = transfer.advance(hed, method, aims, state, 1, method.steps)
    first = plain_tutorial_losses(arrays, content, content, style)
    assert first[0] == 0.0
    assert rows[0, 0, 0] <= 1e-6 * first[1]  # the picture starts as the content
    np.testing.assert_allclose(rows[0, 0, 1:], first[1:], rtol=1e-4)

    moved = np.clip(content + 0.1 * np.random.default_rng(6).standard_normal(content.shape, np.float32), 0.0, 1.0)
    second = plain_tutorial_losses(arrays, moved, content, style)
    assert min(second) > 0
    np.testing.assert_allclose(transfer.measure(hed, method, aims, tf.constant(moved[None]))[0], second, rtol=1e-4)


# --- gradients ---


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_loss_in_float64(tiny64: Backbone, method: Method) -> None:
    content, style, image = (picture(seed).astype(np.float64)[None] for seed in (7, 8, 9))
    image = 0.8 * image + 0.1  # off the ends of the range
    look = {"pooling": method.pooling, "padding": method.padding}
    of_content = backbones.features(tiny64, tf.constant(content), method.layers, **look)
    of_style = backbones.features(tiny64, tf.constant(style), method.layers, **look)
    aims = Targets(
        {layer: losses.content_statistics(method.content, of_content[layer]) for layer, _ in method.content.layers},
        {
            layer: {name: value[:, None] for name, value in losses.style_statistics(method.style, of_style[layer]).items()}
            for layer, _ in method.style.layers
        },
        tf.ones((1, 1), tf.float64),
    )
    random = np.random.default_rng(10)
    directions = [random.standard_normal(image.shape) for _ in range(4)]
    for place in ((0, 0, 0, 0), (0, 15, 20, 1), (0, 31, 39, 2)):  # and single pixels: corners and the middle
        directions.append(np.zeros(image.shape))
        directions[-1][place] = 1.0
    for term in range(3):
        with tf.GradientTape() as tape:
            variable = tf.constant(image)
            tape.watch(variable)
            value = transfer.loss_terms(tiny64, method, variable, aims)[0, term]
        gradient = tape.gradient(value, variable).numpy()
        assert np.abs(gradient).max() > 0
        for direction in directions:
            step = 1e-6
            there, back = (
                transfer.loss_terms(tiny64, method, tf.constant(image + sign * step * direction), aims)[0, term]
                for sign in (1, -1)
            )
            slope = float(there - back) / (2 * step)
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


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_three_is_three_singles(tiny: Backbone, method: Method) -> None:
    """Equal but for rounding: the backend may sum a batch's products in another order than one picture's.

    Adam with a small epsilon turns the rounding of a gradient near zero into a full step, so it is no smaller here than
    such a gradient's size.
    """
    method = settled(replace(method, init_noise=0.05))
    contents = [picture(seed) for seed in (20, 21, 22)]
    styles = [[picture(23, 36, 33)], [picture(24, 40, 40)], [picture(25)]]
    seeds = [5, 6, 7]
    steps = 6
    together, rows = transfer.advance(
        tiny,
        method,
        targets(tiny, method, contents, styles),
        transfer.start(method, np.stack(contents), seeds),
        steps,
        steps,
    )
    assert rows.shape == (steps, 3, len(transfer.TERMS))
    for k in range(3):
        first = transfer.start(method, contents[k][None], seeds[k : k + 1])
        aims = targets(tiny, method, contents[k : k + 1], styles[k : k + 1])
        alone, row = transfer.advance(tiny, method, aims, first, steps, steps)
        np.testing.assert_allclose(together.image[k], alone.image[0], atol=1e-3)
        np.testing.assert_allclose(rows[:, k], row[:, 0], rtol=1e-4, atol=1e-6)
        assert np.abs(alone.image - first.image).max() > 5e-2  # 1e-3 is small beside the way gone


@pytest.mark.parametrize("method", METHODS)
def test_steps_in_chunks_are_the_same_steps_bit_for_bit(tiny: Backbone, method: Method) -> None:
    aims, first = one_pair(tiny, method)
    whole, rows = transfer.advance(tiny, method, aims, first, 6, 6)
    again, rows_again = transfer.advance(tiny, method, aims, first, 6, 6)
    assert_same(again, whole)
    np.testing.assert_array_equal(rows_again, rows)
    for chunks in ((1, 2, 3), (5, 1), (1,) * 6):
        state, parts = first, []
        for n in chunks:
            state, part = transfer.advance(tiny, method, aims, state, n, 6)
            parts.append(part)
        assert_same(state, whole)
        np.testing.assert_array_equal(np.concatenate(parts), rows)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_kept_as_numpy_goes_on_bit_for_bit(tiny: Backbone, method: Method) -> None:
    aims, first = one_pair(tiny, method)
    whole, _ = transfer.advance(tiny, method, aims, first, 5, 5)
    half, _ = transfer.advance(tiny, method, aims, first, 2, 5)
    kept = {"image": half.image.numpy()} | {name: value.numpy() for name, value in half.optimizer._asdict().items()}
    assert {name: value.dtype.name for name, value in kept.items()} == {
        "image": "float32",
        "mean": "float32",
        "square": "float32",
        "count": "int64",
    }
    image = tf.constant(kept.pop("image"))
    moments = AdamState(**{name: tf.constant(value) for name, value in kept.items()})
    resumed, _ = transfer.advance(tiny, method, aims, TransferState(image, moments, half.level, half.step), 3, 5)
    assert_same(resumed, whole)


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


def test_the_next_level_resizes_the_picture_and_begins_adam_anew(tiny: Backbone) -> None:
    method = PAINTERLY.method
    aims, first = one_pair(tiny, method)
    state, _ = transfer.advance(tiny, method, aims, first, 2, 2)
    above = transfer.ascend(state, Level(50, 63, 10))
    assert above.image.shape == (1, 50, 63, 3)
    assert (above.level, above.step, int(above.optimizer.count)) == (1, 0, 0)
    for moment in (above.optimizer.mean, above.optimizer.square):
        np.testing.assert_array_equal(moment, np.zeros((1, 50, 63, 3)))
    assert float(tf.reduce_min(above.image)) >= 0.0
    assert float(tf.reduce_max(above.image)) <= 1.0
    # the same picture, only finer: its 2 x 2 means over a doubled size are the pixels
    double = transfer.ascend(state, Level(2 * SIZE[0], 2 * SIZE[1], 10)).image.numpy()
    means = double.reshape(SIZE[0], 2, SIZE[1], 2, 3).mean(axis=(1, 3))
    assert np.abs(means - state.image.numpy()[0]).mean() < 0.05


def test_resizing_overshoots_no_edge() -> None:
    image = tf.constant(np.repeat(np.indices((8, 8)).sum(axis=0)[None, ..., None] % 2, 3, axis=-1), tf.float32)
    state = transfer.start(PAINTERLY.method, image.numpy(), [0])
    above = transfer.ascend(state, Level(13, 13, 1)).image
    assert float(tf.reduce_min(above)) == 0.0  # a bicubic filter alone would go below 0 and above 1
    assert float(tf.reduce_max(above)) == 1.0


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


# --- one suite over every recipe ---


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_finite_falls_and_repeats_itself(tiny: Backbone, method: Method) -> None:
    steps = 20

    def paint() -> tuple[TransferState, Array]:
        aims, state = one_pair(tiny, method)
        state, rows = transfer.advance(tiny, method, aims, state, steps, steps)
        return state, np.concatenate([rows, transfer.measure(tiny, method, aims, state.image)[None]])

    state, rows = paint()
    image, totals = state.image.numpy(), rows.sum(axis=(1, 2))
    assert np.all(np.isfinite(rows))
    assert np.all(np.isfinite(image))
    assert image.min() >= 0.0
    assert image.max() <= 1.0
    assert totals[-1] < 0.9 * totals[0]
    again, rows_again = paint()
    assert_same(again, state)
    np.testing.assert_array_equal(rows_again, rows)
