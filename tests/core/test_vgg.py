"""Features against Keras Applications, and what a user of them relies on: cut, pooling, padding, names."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import vgg
from nst_tasks.core.convolutions import Convolution
from nst_tasks.core.vgg import Backbone
from nst_tasks.core.vgg_layers import block_number, check_layers, layer_names, min_side
from nst_tasks.errors import SettingsError
from nst_tasks.inputs import weights


def noise(seed: int, height: int, width: int) -> tf.Tensor:
    """Return a batch (1, height, width, 3) of one picture of noise."""
    return tf.constant(np.random.default_rng(seed).random((1, height, width, 3), np.float32))


def test_vgg16_features_are_those_of_keras() -> None:
    network = keras.applications.VGG16(weights=None, include_top=False)
    random = np.random.default_rng(0)
    arrays = {}
    for layer in layer_names("vgg16"):
        kernel, bias = network.get_layer(layer).get_weights()
        arrays[layer] = (kernel, random.standard_normal(bias.shape).astype(np.float32))
        network.get_layer(layer).set_weights(arrays[layer])
    image = noise(1, 37, 50)  # odd sides, so that the poolings have a remainder to leave out
    # Keras's preprocessing, by hand: 0-255, blue first, minus ImageNet's mean
    bgr = image.numpy()[..., ::-1] * 255.0 - np.array([103.939, 116.779, 123.68], np.float32)
    outputs = keras.Model(network.input, [network.get_layer(layer).output for layer in arrays])(bgr)
    found = vgg.extract_activations(vgg.build("vgg16", arrays), image, arrays)
    assert list(found) == list(arrays)
    for layer, expected in zip(arrays, outputs, strict=True):
        expected = expected.numpy()
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_nothing_is_computed_below_the_deepest_layer_asked_for(tiny19: Backbone) -> None:
    image = noise(2, 16, 16)
    expected = vgg.extract_activations(tiny19, image, layer_names("vgg16"))["block2_conv1"]
    cut = next(k for k, one in enumerate(tiny19.convolutions) if one.layer == "block2_conv1") + 1
    misfit = tf.zeros((1, 1, 1, 1)), tf.zeros((1,))  # no convolution of these features can use it
    poisoned = tuple(Convolution(one.layer, *misfit) for one in tiny19.convolutions[cut:])
    for rest in (poisoned, ()):
        backbone = replace(tiny19, convolutions=tiny19.convolutions[:cut] + rest)
        found = vgg.extract_activations(backbone, image, ["block2_conv1", "block1_conv2"])
        assert sorted(found) == ["block1_conv2", "block2_conv1"]
        np.testing.assert_array_equal(found["block2_conv1"], expected)


def test_a_member_of_a_batch_is_seen_alone(tiny19: Backbone) -> None:
    first, second = noise(3, 16, 24), noise(4, 16, 24)
    both = vgg.extract_activations(tiny19, tf.concat([first, second], axis=0), ["block3_conv1"])["block3_conv1"]
    for k, one in enumerate((first, second)):
        alone = vgg.extract_activations(tiny19, one, ["block3_conv1"])["block3_conv1"]
        np.testing.assert_allclose(both[k], alone[0], rtol=1e-5, atol=1e-5)


def centre_tap(count: int) -> Backbone:
    """`count` blocks of one convolution each that hands its input on: of the colours, blue comes out first."""
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[1, 1] = np.eye(3)
    bias = np.array([103.939, 116.779, 123.68], np.float32)  # gives the mean back, which the backbone subtracts
    return vgg.build(
        "centre",
        {f"block{k}_conv1": (kernel, bias if k == 1 else np.zeros(3, np.float32)) for k in range(1, count + 1)},
    )


@pytest.mark.parametrize(("pooling", "pool"), [("max", np.max), ("average", np.mean)])
def test_pooling_by_hand(pooling: str, pool: object) -> None:
    image = noise(5, 5, 7)  # the last row and the last column are left out
    found = vgg.extract_activations(centre_tap(2), image, ["block1_conv1", "block2_conv1"], pooling)
    pixels = image.numpy()[..., ::-1] * 255.0
    np.testing.assert_allclose(found["block1_conv1"], pixels, rtol=1e-5, atol=1e-3)
    expected = pool(pixels[:, :4, :6].reshape(1, 2, 2, 3, 2, 3), axis=(2, 4))
    np.testing.assert_allclose(found["block2_conv1"], expected, rtol=1e-5, atol=1e-3)


def test_features_before_the_relu_are_what_the_relu_cuts(tiny19: Backbone) -> None:
    image, layers = noise(8, 16, 16), ["block1_conv2", "block3_conv2", "block2_conv1"]
    linear = vgg.extract_activations(tiny19, image, layers, activation="linear")
    relu = vgg.extract_activations(tiny19, image, layers, activation="relu")
    for layer in layers:
        assert float(tf.reduce_min(linear[layer])) < 0
        np.testing.assert_array_equal(np.maximum(linear[layer], 0.0), relu[layer])  # deeper layers see the same all the same


def test_replicate_padding_continues_a_plain_color(tiny19: Backbone) -> None:
    plain = tf.fill((1, 8, 10, 3), 0.9)

    def spread(padding: str) -> float:
        found = vgg.extract_activations(tiny19, plain, ["block1_conv1"], padding=padding)["block1_conv1"].numpy()
        assert found.shape[1:3] == (8, 10)
        assert found.max() > 0
        return float(np.ptp(found, axis=(1, 2)).max() / found.max())

    assert spread("replicate") < 1e-5
    assert spread("zero") > 0.1


def test_padding_changes_nothing_but_the_border(tiny19: Backbone) -> None:
    image = noise(6, 8, 8)
    zero = vgg.extract_activations(tiny19, image, ["block1_conv1"])["block1_conv1"].numpy()
    replicate = vgg.extract_activations(tiny19, image, ["block1_conv1"], padding="replicate")["block1_conv1"].numpy()
    np.testing.assert_allclose(zero[:, 1:-1, 1:-1], replicate[:, 1:-1, 1:-1], rtol=1e-5, atol=1e-5)


def test_layers_are_named_as_keras_names_them() -> None:
    blocks = {"vgg16": [2, 2, 3, 3, 3], "vgg19": [2, 2, 4, 4, 4]}
    for name, counts in blocks.items():
        expected = [f"block{b}_conv{k}" for b, count in enumerate(counts, 1) for k in range(1, count + 1)]
        assert list(layer_names(name)) == expected
    assert [one.layer for one in vgg.build("tiny", weights.load("tiny", None)).convolutions] == list(layer_names("vgg16"))


def test_an_unknown_layer_is_refused_by_name() -> None:
    check_layers("vgg19", ["block1_conv1", "block5_conv4"])
    with pytest.raises(SettingsError, match=r"layer block5_conv4: vgg16 has none of that name; choose .*block5_conv3"):
        check_layers("vgg16", ["block1_conv1", "block5_conv4"])


@pytest.mark.parametrize(
    ("layers", "side"),
    [(["block1_conv2"], 2), (["block2_conv1"], 4), (["block5_conv1", "block1_conv1"], 32), (["block4_conv2"], 16)],
)
def test_min_side_leaves_two_positions(tiny19: Backbone, layers: list[str], side: int) -> None:
    assert min_side(layers) == side == 2 ** max(map(block_number, layers))
    deepest = max(layers)
    assert vgg.extract_activations(tiny19, noise(7, side, side), layers)[deepest].shape[1:3] == (2, 2)
    assert vgg.extract_activations(tiny19, noise(7, side - 1, side), layers)[deepest].shape[1] == 1
