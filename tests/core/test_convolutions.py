"""Algorithms of a convolution: which is chosen for which layer, and that all compute the same."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import vgg
from nst_tasks.core.convolutions import Algorithm, Convolution, choose_algorithm, convolve, with_algorithm
from nst_tasks.core.vgg import Backbone
from nst_tasks.core.vgg_layers import FlippedDirection


def convolution(channels_in: int, channels_out: int, layer: str = "block2_conv1") -> Convolution:
    kernel = np.random.default_rng(0).standard_normal((3, 3, channels_in, channels_out), np.float32) / 50
    return Convolution(layer, tf.constant(kernel), tf.zeros(channels_out))


@pytest.mark.parametrize(
    ("direction", "layer", "channels", "algorithm"),
    [
        ("none", "block3_conv2", (256, 256), "direct"),
        ("forward", "block3_conv1", (255, 512), "direct"),
        ("forward", "block3_conv1", (256, 3), "flipped"),
        ("backward", "block1_conv1", (3, 64), "direct"),
        ("backward", "block1_conv1", (63, 512), "direct"),  # too few for either
        ("backward", "block1_conv2", (64, 127), "flipped"),
        ("backward", "block2_conv1", (64, 128), "winograd"),
        ("backward", "block2_conv1", (128, 64), "winograd"),
        ("backward", "block2_conv1", (128, 63), "flipped"),
        ("backward", "block5_conv1", (512, 512), "flipped"),
    ],
)
def test_channels_direction_and_block_choose_the_algorithm(
    direction: FlippedDirection, layer: str, channels: tuple[int, int], algorithm: Algorithm
) -> None:
    assert choose_algorithm(convolution(*channels, layer), direction) == algorithm


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_gpu_and_other_dtypes_compute_directly(direction: FlippedDirection) -> None:
    on_cpu, on_gpu = (
        Convolution("block3_conv2", SimpleNamespace(device=device, dtype=tf.float32, shape=(3, 3, 256, 256)), None)
        for device in ("/job:localhost/device:CPU:0", "/job:localhost/device:GPU:1")
    )
    assert choose_algorithm(on_cpu, direction) != "direct"
    assert choose_algorithm(on_gpu, direction) == "direct"
    wide = convolution(256, 256)
    for dtype in (tf.bfloat16, tf.float64):
        assert choose_algorithm(wide._replace(kernel=tf.cast(wide.kernel, dtype)), direction) == "direct"


@pytest.mark.parametrize(
    ("algorithm", "direction"), [("flipped", "forward"), ("flipped", "backward"), ("winograd", "backward")]
)
def test_every_algorithm_computes_the_direct_convolution(algorithm: Algorithm, direction: FlippedDirection) -> None:
    direct, random = convolution(24, 16), np.random.default_rng(1)
    fast = with_algorithm(direct, algorithm, direction)
    assert (direct.algorithm, fast.algorithm) == ("direct", algorithm)
    assert with_algorithm(fast, "direct", direction) == direct
    x, upstream = (tf.constant(random.standard_normal((2, 19, 15, channels), np.float32)) for channels in (24, 16))
    results = []
    for one in (fast, direct):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = convolve(one, x, "zero")
        results.append((y.numpy(), tape.gradient(y, x, output_gradients=upstream).numpy()))
    for ours, expected in zip(*results, strict=True):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(convolve(fast, x, "replicate"), convolve(direct, x, "replicate"))


@pytest.mark.parametrize(("direction", "operation"), [("forward", "Conv2DBackpropInput"), ("backward", "Conv2D")])
def test_flipped_kernel_replaces_the_slower_operation(direction: FlippedDirection, operation: str) -> None:
    fast = with_algorithm(convolution(4, 5), "flipped", direction)

    def compute_both_passes(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y = convolve(fast, x, "zero")
        return y, tf.gradients(y, x)

    graph = tf.function(compute_both_passes).get_concrete_function(tf.TensorSpec((1, 8, 8, 4))).graph
    assert [each.type for each in graph.get_operations() if "Conv2D" in each.type] == [operation] * 2


def test_vgg_without_avx512_uses_winograd_in_its_middle_blocks(hed: Backbone) -> None:
    prepared = vgg.with_fast_convolutions(replace(hed, flipped_direction="backward"))
    of_block = {"1": "flipped", "2": "winograd", "3": "winograd", "4": "winograd", "5": "flipped"}
    assert [one.algorithm for one in prepared.convolutions] == [
        "direct",
        *(of_block[one.layer[5]] for one in hed.convolutions[1:]),
    ]


def test_vgg_with_avx512_flips_its_wide_kernels(hed: Backbone) -> None:
    prepared = vgg.with_fast_convolutions(replace(hed, flipped_direction="forward"))
    expected = ["flipped" if one.kernel.shape[2] >= 256 else "direct" for one in hed.convolutions]
    assert [one.algorithm for one in prepared.convolutions] == expected
    assert {one.algorithm for one in vgg.with_dtype(prepared, tf.bfloat16).convolutions} == {"direct"}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_features_are_the_same_by_fast_convolutions(hed: Backbone, direction: FlippedDirection) -> None:
    prepared = vgg.with_fast_convolutions(replace(hed, flipped_direction=direction))
    image, results = tf.constant(np.random.default_rng(9).random((1, 38, 34, 3), np.float32)), []
    for backbone in (prepared, hed):
        with tf.GradientTape() as tape:
            tape.watch(image)
            features = vgg.extract_activations(backbone, image, ["block5_conv1"])["block5_conv1"]
            total = tf.reduce_sum(features**2)
        results.append((features.numpy(), tape.gradient(total, image).numpy()))
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
