"""3x3 convolutions by the algorithm that is fastest on this machine: direct, by flipped kernels, or by Winograd F(4, 3).

All algorithms compute the same convolution and the same gradient with respect to its input, up to rounding. A convolution is
the gradient, with respect to its input, of the convolution by the flipped kernel. TensorFlow implements both on a CPU, and the
faster one depends on the machine (bench/convolutions.py):

- With AVX-512, the gradient's. It first packs the weights into blocks; the convolution's does so only for constants within the
  graph, and takes twice as long for 512 channels. So the forward pass is the gradient of the convolution by the flipped kernel.
- Without AVX-512, the convolution's, by up to a factor of two. So the backward pass is the convolution by the flipped kernel,
  and wide convolutions use Winograd F(4, 3) in both passes (not measured with AVX-512).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import tensorflow as tf

from nst_tasks.core import winograd
from nst_tasks.core.vgg_layers import FlippedDirection

FLIPPED_MIN_CHANNELS = {"forward": 256, "backward": 64}
"""Minimum input channels for the flipped kernel, by pass: with fewer, the overhead costs what the convolution gains."""

WINOGRAD_MIN_CHANNELS = 64, 128
"""Minimum channels for Winograd F(4, 3): of the smaller and of the larger number among input and output channels."""

BLOCK_WITHOUT_WINOGRAD = "block5"
"""Block without Winograd F(4, 3): its few positions take little time, and six kernels for one would dominate memory."""

Algorithm = Literal["direct", "flipped", "winograd"]
"""Algorithm of a convolution and its gradient: TensorFlow's own, one of the two by the flipped kernel, or both by Winograd."""


class FastConvolution(NamedTuple):
    """Forward and backward pass of a convolution by an algorithm other than `direct`, zero-padded and without bias.

    forward: (B, h, w, C_in) -> (B, h, w, C_out). backward: the gradient with respect to the input, (B, h, w, C_out) ->
    (B, h, w, C_in).
    """

    algorithm: Algorithm
    forward: Callable[[tf.Tensor], tf.Tensor]
    backward: Callable[[tf.Tensor], tf.Tensor]


class Convolution(NamedTuple):
    """Convolution of a layer: kernel (3, 3, C_in, C_out), bias (C_out,), and a fast algorithm or None for the direct one."""

    layer: str
    kernel: tf.Tensor
    bias: tf.Tensor
    fast: FastConvolution | None = None

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm that computes it with zero padding."""
        return self.fast.algorithm if self.fast else "direct"

    @property
    def is_on_gpu(self) -> bool:
        """True if the weights, and so all that is computed from them, are on a GPU."""
        return "GPU" in self.kernel.device


def convolve(convolution: Convolution, x: tf.Tensor, padding: str) -> tf.Tensor:
    """Return the convolution (B, h, w, C_out) of x (B, h, w, C_in), without its bias.

    Args:
        padding: `zero` or `replicate`, which is always computed directly.
    """
    fast = convolution.fast
    if padding == "replicate":
        x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")  # one pixel of SYMMETRIC repeats the edge
        return tf.nn.conv2d(x, convolution.kernel, 1, "VALID")
    if fast is None:
        return _convolve_same(convolution.kernel, x)
    y: tf.Tensor = tf.custom_gradient(lambda x: (fast.forward(x), fast.backward))(x)
    return y


def with_fast_algorithm(convolution: Convolution, direction: FlippedDirection) -> Convolution:
    """Return the convolution prepared for the fastest algorithm.

    Args:
        direction: The pass that this machine computes faster by flipped kernels.
    """
    return with_algorithm(convolution, choose_algorithm(convolution, direction), direction)


def choose_algorithm(convolution: Convolution, direction: FlippedDirection) -> Algorithm:
    """Return the fastest algorithm for a convolution; on a GPU and in bfloat16 it is the direct one."""
    kernel = convolution.kernel
    if direction == "none" or kernel.dtype != tf.float32 or convolution.is_on_gpu:
        return "direct"
    fewer, more = sorted(kernel.shape[2:])
    is_wide = fewer >= WINOGRAD_MIN_CHANNELS[0] and more >= WINOGRAD_MIN_CHANNELS[1]
    if direction == "backward" and is_wide and not convolution.layer.startswith(BLOCK_WITHOUT_WINOGRAD):
        return "winograd"
    return "flipped" if kernel.shape[2] >= FLIPPED_MIN_CHANNELS[direction] else "direct"


def with_algorithm(convolution: Convolution, algorithm: Algorithm, direction: FlippedDirection) -> Convolution:
    """Return the convolution prepared for an algorithm; `direction` is the pass in which `flipped` uses the flipped kernel."""
    if algorithm == "direct":
        return convolution._replace(fast=None)
    kernel = convolution.kernel  # (3, 3, C_in, C_out)
    flipped = tf.transpose(tf.reverse(kernel, (0, 1)), (0, 1, 3, 2))  # (3, 3, C_out, C_in)
    if algorithm == "winograd":
        passes = [functools.partial(winograd.convolve, winograd.transform_kernel(each)) for each in (kernel, flipped)]
    elif direction == "forward":
        passes = [functools.partial(_compute_input_gradient, each) for each in (flipped, kernel)]
    else:
        passes = [functools.partial(_convolve_same, each) for each in (kernel, flipped)]
    return convolution._replace(fast=FastConvolution(algorithm, *passes))


def _convolve_same(kernel: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return the zero-padded convolution (B, h, w, C_out) of x (B, h, w, C_in) by a kernel (3, 3, C_in, C_out)."""
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def _compute_input_gradient(kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Return the gradient (B, h, w, C_in) of `_convolve_same` with respect to x, given that of its output (B, h, w, C_out)."""
    channels = kernel.shape[2]
    shape = tf.concat([tf.shape(upstream)[:3], [channels]], axis=0)
    gradient = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=shape, filter=kernel, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
    )
    return tf.ensure_shape(gradient, (None, None, None, channels))
