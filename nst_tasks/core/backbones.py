"""VGG feature extractors, truncated at the deepest requested layer; `architecture` lists their layers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from nst_tasks.core import winograd
from nst_tasks.core.architecture import Turns

MEAN_RGB = (123.68, 116.779, 103.939)
"""ImageNet's mean color on the 0-255 scale; these networks were trained with it subtracted."""


TURNED_FROM = {"forward": 256, "backward": 64}
"""Minimum input channels for the flipped kernel, by pass: with fewer, the overhead costs what the convolution gains."""

HALVED_FROM = 64, 128
"""Minimum channels for Winograd F(4, 3): of the smaller and of the larger number among input and output channels."""

WHOLE = "block5"
"""Block without Winograd F(4, 3): its few positions take little time, and six kernels for one would dominate memory."""


class Ways(NamedTuple):
    """Forward and backward pass of a convolution by other kernels than its own, zero-padded and without bias.

    forth: forward pass, (B, h, w, C_in) -> (B, h, w, C_out). back: backward pass, the gradient with respect to the input,
    (B, h, w, C_out) -> (B, h, w, C_in). form: `turned` if one of them uses the flipped kernel, `halved` if both use Winograd
    F(4, 3).
    """

    form: Literal["turned", "halved"]
    forth: Callable[[tf.Tensor], tf.Tensor]
    back: Callable[[tf.Tensor], tf.Tensor]


class Convolution(NamedTuple):
    """Kernel (3, 3, C_in, C_out) and bias (C_out,) of a layer; ways: a faster way to compute it, or None."""

    layer: str
    kernel: tf.Tensor
    bias: tf.Tensor
    ways: Ways | None = None


@dataclass(frozen=True, eq=False)
class Backbone:
    """VGG network as a sequence of convolutions, all of the dtype that features are computed in.

    The input is RGB in [0, 1] minus `MEAN_RGB / 255`. turns: the pass that this machine computes faster by flipped kernels.
    """

    name: str
    convolutions: tuple[Convolution, ...]
    turns: Turns = "none"


def build(
    name: str, weights: Mapping[str, tuple[np.ndarray, np.ndarray]], dtype: tf.DType = tf.float32, turns: Turns = "none"
) -> Backbone:
    """Build a backbone from weights for inputs of BGR in 0-255 minus the mean.

    Args:
        weights: Layer -> (kernel, bias), in the network's order.
    """
    convolutions: list[Convolution] = []
    for layer, (kernel, bias) in weights.items():
        if not convolutions:  # scale and reorder the first kernel once, instead of the image at each step
            kernel = 255.0 * np.asarray(kernel, np.float64)[:, :, ::-1]
        convolutions.append(Convolution(layer, tf.constant(kernel, dtype), tf.constant(bias, dtype)))
    return Backbone(name, tuple(convolutions), turns)


def scaled(backbone: Backbone, factor: float) -> Backbone:
    """Return the backbone with every feature multiplied by `factor`.

    The network is homogeneous if its biases are scaled too: `relu(s W x + s b) = s relu(W x + b)` for s > 0, layer after layer.
    """
    first, *rest = (one._replace(bias=factor * one.bias) for one in backbone.convolutions)
    return replace(backbone, convolutions=(first._replace(kernel=factor * first.kernel), *rest))


def rounded(backbone: Backbone, dtype: tf.DType) -> Backbone:
    """Return the backbone with weights, and so features, of another dtype, and without fast convolutions."""
    weights = (Convolution(one.layer, tf.cast(one.kernel, dtype), tf.cast(one.bias, dtype)) for one in backbone.convolutions)
    return replace(backbone, convolutions=tuple(weights))


def quickened(backbone: Backbone, turned_from: int | None = None, halved_from: tuple[int, int] = HALVED_FROM) -> Backbone:
    """Return the backbone with its float32 convolutions in the form that this CPU computes fastest; unchanged on a GPU.

    Results are equal up to rounding. A convolution is the gradient, with respect to its input, of the convolution by the
    flipped kernel. TensorFlow implements both on a CPU, and the faster one depends on the machine (bench/convolutions.py):

    - With AVX-512, the gradient's. It first packs the weights into blocks; the convolution's does so only for constants within
      the graph, and takes twice as long for 512 channels. So the flipped kernel serves the `forward` pass.
    - Without AVX-512, the convolution's, by up to a factor of two. So the flipped kernel serves the `backward` pass, and wide
      convolutions use Winograd F(4, 3) in both passes (not measured with AVX-512).

    Args:
        turned_from: Minimum input channels for the flipped kernel, by default those of `TURNED_FROM`.
        halved_from: Minimum channels for Winograd F(4, 3), as in `HALVED_FROM`.
    """
    if backbone.turns == "none" or on_gpu(backbone):
        return backbone
    least = TURNED_FROM[backbone.turns] if turned_from is None else turned_from

    def quicken(one: Convolution) -> Convolution:
        if one.kernel.dtype != tf.float32:
            return one
        fewer, more = sorted(one.kernel.shape[2:])
        wide = fewer >= halved_from[0] and more >= halved_from[1]
        halve = backbone.turns == "backward" and wide and not one.layer.startswith(WHOLE)
        if not halve and one.kernel.shape[2] < least:
            return one
        turned = tf.transpose(tf.reverse(one.kernel, (0, 1)), (0, 1, 3, 2))
        if halve:
            ways = Ways("halved", *(functools.partial(winograd.convolved, winograd.kernels(k)) for k in (one.kernel, turned)))
        elif backbone.turns == "backward":
            ways = Ways("turned", *(functools.partial(_whole, k) for k in (one.kernel, turned)))
        else:
            ways = Ways("turned", *(functools.partial(_gradient, k) for k in (turned, one.kernel)))
        return one._replace(ways=ways)

    return replace(backbone, convolutions=tuple(map(quicken, backbone.convolutions)))


def on_gpu(backbone: Backbone) -> bool:
    """Return whether the weights, and so all that is computed from them, are on a GPU."""
    device: str = backbone.convolutions[0].kernel.device
    return "GPU" in device


def cut(backbone: Backbone, deepest: str) -> Backbone:
    """Return the backbone up to and including the layer `deepest`."""
    names = [one.layer for one in backbone.convolutions]
    return replace(backbone, convolutions=backbone.convolutions[: 1 + names.index(deepest)])


def blocks(backbone: Backbone, layers: Iterable[str]) -> tuple[tuple[Convolution, ...], ...]:
    """Return the convolutions up to the deepest of `layers`, grouped by block."""
    names = [one.layer for one in backbone.convolutions]
    used = cut(backbone, max(layers, key=names.index)).convolutions
    return tuple(tuple(block) for _, block in itertools.groupby(used, lambda convolution: convolution.layer.partition("_")[0]))


def centred(backbone: Backbone, image: tf.Tensor) -> tf.Tensor:
    """Return the network's input: the image (B, H, W, 3) RGB in [0, 1] minus the mean color, in the backbone's dtype."""
    mean = tf.constant(np.array(MEAN_RGB) / 255.0, image.dtype)
    return tf.cast(image - mean, backbone.convolutions[0].kernel.dtype)


def through(
    block: Sequence[Convolution], x: tf.Tensor, padding: str = "zero", activation: str = "relu"
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Apply a block to its input and return its output (B, h, w, C) and the activations of each of its layers.

    Args:
        padding: Padding of the block's first convolution, `zero` or `replicate`.
        activation: Activations to return, after the ReLU (`relu`) or before it (`linear`).
    """
    found: dict[str, tf.Tensor] = {}
    for k, convolution in enumerate(block):
        linear = tf.nn.bias_add(convolved(convolution, x, padding if k == 0 else "zero"), convolution.bias)
        x = tf.nn.relu(linear)
        found[convolution.layer] = linear if activation == "linear" else x
    return x, found


def convolved(convolution: Convolution, x: tf.Tensor, padding: str) -> tf.Tensor:
    """Return the convolution (B, h, w, C_out) of x (B, h, w, C_in), without its bias.

    Args:
        padding: `zero` or `replicate`.
    """
    ways = convolution.ways
    if padding == "replicate":
        x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")  # one pixel of SYMMETRIC repeats the edge
        return tf.nn.conv2d(x, convolution.kernel, 1, "VALID")
    if ways is None:
        return _whole(convolution.kernel, x)
    y: tf.Tensor = tf.custom_gradient(lambda x: (ways.forth(x), ways.back))(x)
    return y


def _whole(kernel: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return the zero-padded convolution (B, h, w, C_out) of x (B, h, w, C_in) by a kernel (3, 3, C_in, C_out)."""
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def _gradient(kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Return the gradient (B, h, w, C_in) of `_whole` with respect to x, given that of its output (B, h, w, C_out)."""
    channels = kernel.shape[2]
    shape = tf.concat([tf.shape(upstream)[:3], [channels]], axis=0)
    gradient = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=shape, filter=kernel, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
    )
    return tf.ensure_shape(gradient, (None, None, None, channels))


def pooled(x: tf.Tensor, pooling: str = "max") -> tf.Tensor:
    """Return the next block's input, (B, h, w, C) -> (B, h/2, w/2, C), by `max` or `average` pooling."""
    return (tf.nn.max_pool2d if pooling == "max" else tf.nn.avg_pool2d)(x, 2, 2, "VALID")


def features(
    backbone: Backbone,
    image: tf.Tensor,
    layers: Iterable[str],
    pooling: str = "max",
    padding: str = "zero",
    activation: str = "relu",
) -> dict[str, tf.Tensor]:
    """Return the activations at `layers` of an image (B, H, W, 3) RGB in [0, 1]: layer -> (B, h, w, C) in the backbone's dtype.

    Args:
        pooling: `max` or `average`.
        padding: Padding of the network's first convolution, `zero` or `replicate`.
        activation: Activations to return, after the ReLU (`relu`) or before it (`linear`).
    """
    wanted = set(layers)
    found: dict[str, tf.Tensor] = {}
    x = centred(backbone, image)
    for k, block in enumerate(blocks(backbone, wanted)):
        x, more = through(block, pooled(x, pooling) if k else x, "zero" if k else padding, activation)
        found |= {layer: more[layer] for layer in more if layer in wanted}
    return found
