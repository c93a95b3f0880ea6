"""VGG feature extractors, cut at the deepest layer asked for; `architecture` says what they are made of."""

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
"""ImageNet's mean colour on the 0-255 scale, which these networks were trained to see subtracted."""


TURNED_FROM = {"forward": 256, "backward": 64}
"""Input channels from which that is the faster: with fewer, what stands beside the convolution costs what it gains."""

HALVED_FROM = 64, 128
"""Channels from which half of the multiplications are the faster: of the fewer and of the more, going in and coming out."""

WHOLE = "block5"
"""Where they are not halved: of its few positions it takes little time, and six kernels for one would be most of the memory."""


class Ways(NamedTuple):
    """How a convolution is computed by other kernels than its own, without its bias and with zeros around it.

    forth: (B, h, w, C_in) -> (B, h, w, C_out). back: its gradient, the other way. form: one of them by the `turned` kernel, or
    both with half of the multiplications, `halved`.
    """

    form: Literal["turned", "halved"]
    forth: Callable[[tf.Tensor], tf.Tensor]
    back: Callable[[tf.Tensor], tf.Tensor]


class Convolution(NamedTuple):
    """Kernel (3, 3, C_in, C_out) and bias (C_out,) of a layer; ways: what to compute it by, None for its kernel."""

    layer: str
    kernel: tf.Tensor
    bias: tf.Tensor
    ways: Ways | None = None


@dataclass(frozen=True, eq=False)
class Backbone:
    """Convolutions in order, all of the dtype that is computed in.

    The first one's input is RGB in [0, 1] minus `MEAN_RGB / 255`. turns: what its machine computes fastest.
    """

    name: str
    convolutions: tuple[Convolution, ...]
    turns: Turns = "none"


def build(
    name: str, weights: Mapping[str, tuple[np.ndarray, np.ndarray]], dtype: tf.DType = tf.float32, turns: Turns = "none"
) -> Backbone:
    """A backbone from weights for BGR of 0-255 minus the mean: layer -> (kernel, bias), in the network's order."""
    convolutions: list[Convolution] = []
    for layer, (kernel, bias) in weights.items():
        if not convolutions:  # so that no step has to bring the image into the network's range
            kernel = 255.0 * np.asarray(kernel, np.float64)[:, :, ::-1]
        convolutions.append(Convolution(layer, tf.constant(kernel, dtype), tf.constant(bias, dtype)))
    return Backbone(name, tuple(convolutions), turns)


def scaled(backbone: Backbone, factor: float) -> Backbone:
    """The backbone whose every feature is `factor` times as large.

    The network is homogeneous but for its biases: `relu(s W x + s b) = s relu(W x + b)` for s > 0, layer after layer.
    """
    first, *rest = (one._replace(bias=factor * one.bias) for one in backbone.convolutions)
    return replace(backbone, convolutions=(first._replace(kernel=factor * first.kernel), *rest))


def rounded(backbone: Backbone, dtype: tf.DType) -> Backbone:
    """The backbone with weights, and so features, of another dtype."""
    weights = (Convolution(one.layer, tf.cast(one.kernel, dtype), tf.cast(one.bias, dtype)) for one in backbone.convolutions)
    return replace(backbone, convolutions=tuple(weights))


def quickened(backbone: Backbone, turned_from: int | None = None, halved_from: tuple[int, int] = HALVED_FROM) -> Backbone:
    """The backbone, on a CPU with its float32 kernels in the form that is computed fastest too; it computes the same.

    A convolution is the gradient, with respect to its input, of the one by the turned kernel. Which of TensorFlow's two CPU
    kernels is the faster depends on the machine (bench/convolutions.py). With AVX-512, the gradient's: it puts the weights in
    blocks first, which the convolution's does only with constants within the graph, and that takes twice as long for 512
    channels. So there the turned kernel serves the way `forward`. Without, the convolution's, by up to twice: it serves the
    gradient, `backward`, and wide convolutions go both ways with half of the multiplications (not measured with AVX-512).
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
    """Whether its weights, and so what is computed of them, are on a GPU."""
    device: str = backbone.convolutions[0].kernel.device
    return "GPU" in device


def cut(backbone: Backbone, deepest: str) -> Backbone:
    """The backbone as far as a layer."""
    names = [one.layer for one in backbone.convolutions]
    return replace(backbone, convolutions=backbone.convolutions[: 1 + names.index(deepest)])


def blocks(backbone: Backbone, layers: Iterable[str]) -> tuple[tuple[Convolution, ...], ...]:
    """The network's convolutions, block by block, up to the deepest of `layers`."""
    names = [one.layer for one in backbone.convolutions]
    used = cut(backbone, max(layers, key=names.index)).convolutions
    return tuple(tuple(block) for _, block in itertools.groupby(used, lambda convolution: convolution.layer.partition("_")[0]))


def centred(backbone: Backbone, image: tf.Tensor) -> tf.Tensor:
    """What the network looks at: the image (B, H, W, 3) RGB in [0, 1] minus the mean colour, in the backbone's dtype."""
    mean = tf.constant(np.array(MEAN_RGB) / 255.0, image.dtype)
    return tf.cast(image - mean, backbone.convolutions[0].kernel.dtype)


def through(
    block: Sequence[Convolution], x: tf.Tensor, padding: str = "zero", activation: str = "relu"
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """A block's output (B, h, w, C) for its input, and the activations at each of its layers.

    Padding of its first convolution is `zero` or `replicate`; the activations are those after the ReLU (`relu`) or before it
    (`linear`).
    """
    found: dict[str, tf.Tensor] = {}
    for k, convolution in enumerate(block):
        linear = tf.nn.bias_add(convolved(convolution, x, padding if k == 0 else "zero"), convolution.bias)
        x = tf.nn.relu(linear)
        found[convolution.layer] = linear if activation == "linear" else x
    return x, found


def convolved(convolution: Convolution, x: tf.Tensor, padding: str) -> tf.Tensor:
    """A convolution of (B, h, w, C_in) -> (B, h, w, C_out), without its bias."""
    ways = convolution.ways
    if padding == "replicate":
        x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")  # one pixel of SYMMETRIC repeats the edge
        return tf.nn.conv2d(x, convolution.kernel, 1, "VALID")
    if ways is None:
        return _whole(convolution.kernel, x)
    y: tf.Tensor = tf.custom_gradient(lambda x: (ways.forth(x), ways.back))(x)
    return y


def _whole(kernel: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The convolution (B, h, w, C_out), with zeros around it, of x (B, h, w, C_in) by a kernel (3, 3, C_in, C_out)."""
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def _gradient(kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """The gradient (B, h, w, C_in) of that convolution with respect to its input, given its output's (B, h, w, C_out)."""
    channels = kernel.shape[2]
    shape = tf.concat([tf.shape(upstream)[:3], [channels]], axis=0)
    gradient = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=shape, filter=kernel, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
    )
    return tf.ensure_shape(gradient, (None, None, None, channels))


def pooled(x: tf.Tensor, pooling: str = "max") -> tf.Tensor:
    """What the next block is given: (B, h, w, C) -> (B, h/2, w/2, C), by `max` or `average`."""
    return (tf.nn.max_pool2d if pooling == "max" else tf.nn.avg_pool2d)(x, 2, 2, "VALID")


def features(
    backbone: Backbone,
    image: tf.Tensor,
    layers: Iterable[str],
    pooling: str = "max",
    padding: str = "zero",
    activation: str = "relu",
) -> dict[str, tf.Tensor]:
    """Activations at `layers`: image (B, H, W, 3) RGB in [0, 1] -> layer -> (B, h, w, C) in the backbone's dtype.

    Pooling, padding (of the network's first convolution) and activation as for `pooled` and `through`.
    """
    wanted = set(layers)
    found: dict[str, tf.Tensor] = {}
    x = centred(backbone, image)
    for k, block in enumerate(blocks(backbone, wanted)):
        x, more = through(block, pooled(x, pooling) if k else x, "zero" if k else padding, activation)
        found |= {layer: more[layer] for layer in more if layer in wanted}
    return found
