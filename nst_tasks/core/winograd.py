"""3x3 convolutions by Winograd F(4, 3) along the width only: half of the multiplications (arXiv 1509.09308).

Four neighbouring outputs of a row of three weights are a polynomial product, determined by its values at 0, 1, -1, 2, -2 and
infinity: six products instead of twelve. Each of the six is a 3x1 convolution, along the height, of an input a quarter as wide;
the transforms before and after need only additions and scaling by constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

OUTPUTS_PER_TILE = 4
"""Number of neighbouring outputs computed from the same six values."""

KERNEL_TRANSFORM = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
"""Kernel transform G (6, 3): maps the three weights of a row to the weights of the six products."""


def transform_kernel(kernel: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Return the six convolutions' kernels, each (3, 1, C_in, C_out), for a kernel (3, 3, C_in, C_out) of the same dtype."""
    # one after another: memory allocated for all six at once, or in float64, is never returned to the system
    left, middle, right = (kernel[:, column : column + 1] for column in range(3))
    return tuple(a * left + b * middle + c * right for a, b, c in KERNEL_TRANSFORM.tolist())


def convolve(parts: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Return the zero-padded convolution (B, h, w, C_out) of x (B, h, w, C_in).

    Args:
        parts: The six kernels that `transform_kernel` returns.
    """
    batch, height, width = tf.unstack(tf.shape(x)[:3])
    channels_in, channels_out = parts[0].shape[2:]  # not from x, whose channels may be unknown in a loop over bands
    tiles = (width + OUTPUTS_PER_TILE - 1) // OUTPUTS_PER_TILE
    padded = tf.pad(x, [[0, 0], [0, 0], [1, OUTPUTS_PER_TILE * (tiles + 1) - width - 1], [0, 0]])
    columns = tf.reshape(padded, tf.stack([batch, height, tiles + 1, OUTPUTS_PER_TILE, channels_in]))
    tile_columns = [columns[:, :, :-1, k] for k in range(4)]
    next_columns = [columns[:, :, 1:, k] for k in range(2)]
    products = [
        tf.nn.conv2d(value, part, 1, "SAME")
        for value, part in zip(_transform_input(*tile_columns, *next_columns), parts, strict=True)
    ]
    outputs = tf.stack(_transform_output(*products), axis=3)
    rows = tf.reshape(outputs, tf.stack([batch, height, OUTPUTS_PER_TILE * tiles, channels_out]))
    return tf.ensure_shape(rows[:, :, :width], (None, None, None, channels_out))


def _transform_input(
    a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor, e: tf.Tensor, f: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Return the input transform: the values of six neighbouring columns at the six points."""
    even, odd = e - 4.0 * c, d - 4.0 * b
    even2, odd2 = e - c, 2.0 * (d - b)
    return 4.0 * a - 5.0 * c + e, even + odd, even - odd, even2 + odd2, even2 - odd2, 4.0 * b - 5.0 * d + f


def _transform_output(
    a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor, e: tf.Tensor, f: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Return the output transform: the four outputs from the products at the six points."""
    even, odd, even2, odd2 = b + c, b - c, d + e, d - e
    return a + even + even2, odd + 2.0 * odd2, even + 4.0 * even2, odd + 8.0 * odd2 + f
