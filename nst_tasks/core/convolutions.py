"""3x3 convolutions in the form that is fastest on this machine: direct, by the flipped kernel, or by Winograd F(4, 3).

Every form computes the same convolution and the same gradient with respect to the input; only the order of sums differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import tensorflow as tf

FLIPPED_MIN_CHANNELS = {"forward": 256, "backward": 64}
"""Minimum input channels for the flipped kernel, by pass: with fewer, the overhead costs what the convolution gains."""


WINOGRAD_MIN_CHANNELS = 64, 128
"""Minimum channels for Winograd F(4, 3): of the smaller and of the larger number among input and output channels."""


BLOCK_WITHOUT_WINOGRAD = "block5"
"""Block without Winograd F(4, 3): its few positions take little time, and six kernels for one would dominate memory."""


class FastConvolution(NamedTuple):
    """Forward and backward pass of a convolution by other kernels than its own, zero-padded and without bias.

    forward: forward pass, (B, h, w, C_in) -> (B, h, w, C_out). backward: backward pass, the gradient with respect to the input,
    (B, h, w, C_out) -> (B, h, w, C_in). algorithm: `turned` if one of them uses the flipped kernel, `halved` if both use
    Winograd F(4, 3).
    """

    algorithm: Literal["turned", "halved"]
    forward: Callable[[tf.Tensor], tf.Tensor]
    backward: Callable[[tf.Tensor], tf.Tensor]


class Convolution(NamedTuple):
    """Kernel (3, 3, C_in, C_out) and bias (C_out,) of a layer; ways: a faster way to compute it, or None."""

    layer: str
    kernel: tf.Tensor
    bias: tf.Tensor
    fast: FastConvolution | None = None


def convolve(convolution: Convolution, x: tf.Tensor, padding: str) -> tf.Tensor:
    """Return the convolution (B, h, w, C_out) of x (B, h, w, C_in), without its bias.

    Args:
        padding: `zero` or `replicate`.
    """
    ways = convolution.fast
    if padding == "replicate":
        x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")  # one pixel of SYMMETRIC repeats the edge
        return tf.nn.conv2d(x, convolution.kernel, 1, "VALID")
    if ways is None:
        return convolve_same(convolution.kernel, x)
    y: tf.Tensor = tf.custom_gradient(lambda x: (ways.forward(x), ways.backward))(x)
    return y


def convolve_same(kernel: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return the zero-padded convolution (B, h, w, C_out) of x (B, h, w, C_in) by a kernel (3, 3, C_in, C_out)."""
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def input_gradient(kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Return the gradient (B, h, w, C_in) of `convolve_same` with respect to x, given that of its output (B, h, w, C_out)."""
    channels = kernel.shape[2]
    shape = tf.concat([tf.shape(upstream)[:3], [channels]], axis=0)
    gradient = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=shape, filter=kernel, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
    )
    return tf.ensure_shape(gradient, (None, None, None, channels))
