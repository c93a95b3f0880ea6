"""Winograd F(4, 3): the same convolution at every size, as exact in float32."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import winograd


@pytest.mark.parametrize("width", [*range(1, 11), 17])
@pytest.mark.parametrize("height", [1, 2, 7])
def test_it_is_the_convolution_whatever_the_size(height: int, width: int) -> None:
    random = np.random.default_rng(width)
    x, kernel = random.standard_normal((2, height, width, 5)), tf.constant(random.standard_normal((3, 3, 5, 4)))
    found = winograd.convolve(winograd.transform_kernel(kernel), tf.constant(x))
    np.testing.assert_allclose(found, tf.nn.conv2d(x, kernel, 1, "SAME"), rtol=0, atol=1e-12)


def test_winograd_equals_the_direct_convolution() -> None:
    parts = winograd.transform_kernel(tf.ones((3, 3, 5, 4)))
    assert [tuple(part.shape) for part in parts] == [(3, 1, 5, 4)] * 6
    assert all(part.dtype == tf.float32 for part in parts)


def test_one_graph_serves_every_size() -> None:
    kernel = tf.constant(np.random.default_rng(1).standard_normal((3, 3, 5, 4)))
    parts = winograd.transform_kernel(kernel)
    graph = tf.function(lambda x: winograd.convolve(parts, x), input_signature=[tf.TensorSpec((None,) * 4, tf.float64)])
    for shape in ((1, 6, 9, 5), (2, 3, 4, 5)):
        x = np.random.default_rng(2).standard_normal(shape)
        found = graph(tf.constant(x))
        np.testing.assert_allclose(found, tf.nn.conv2d(x, kernel, 1, "SAME"), rtol=0, atol=1e-12)
    assert graph.get_concrete_function().output_shapes[3] == 4
    assert graph.experimental_get_tracing_count() == 1


def test_float32_is_as_exact_as_a_convolution_is() -> None:
    random = np.random.default_rng(3)
    x, kernel = random.random((1, 24, 26, 256)), random.standard_normal((3, 3, 256, 32)) / 50
    exact = tf.nn.conv2d(x, kernel, 1, "SAME").numpy()
    x32, kernel32 = tf.constant(x, tf.float32), tf.constant(kernel, tf.float32)
    ours = winograd.convolve(winograd.transform_kernel(kernel32), x32)
    assert np.abs(ours - exact).max() < 5e-6 * np.abs(exact).max()
