"""VGG feature extractors, cut at the deepest layer asked for; `architecture` says what they are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

MEAN_RGB = (123.68, 116.779, 103.939)
"""ImageNet's mean colour on the 0-255 scale, which these networks were trained to see subtracted."""


Convolution = tuple[str, tf.Tensor, tf.Tensor]
"""Layer name, kernel (3, 3, C_in, C_out) and bias (C_out,)."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """Convolutions in order, all of the dtype that is computed in.

    The first one's input is RGB in [0, 1] minus `MEAN_RGB / 255`.
    """

    name: str
    convolutions: tuple[Convolution, ...]


def build(name: str, weights: Mapping[str, tuple[np.ndarray, np.ndarray]], dtype: tf.DType = tf.float32) -> Backbone:
    """A backbone from weights for BGR of 0-255 minus the mean: layer -> (kernel, bias), in the network's order."""
    convolutions: list[Convolution] = []
    for layer, (kernel, bias) in weights.items():
        if not convolutions:  # so that no step has to bring the image into the network's range
            kernel = 255.0 * np.asarray(kernel, np.float64)[:, :, ::-1]
        convolutions.append((layer, tf.constant(kernel, dtype), tf.constant(bias, dtype)))
    return Backbone(name, tuple(convolutions))


def scaled(backbone: Backbone, factor: float) -> Backbone:
    """The backbone whose every feature is `factor` times as large.

    The network is homogeneous but for its biases: `relu(s W x + s b) = s relu(W x + b)` for s > 0, layer after layer.
    """
    (first, kernel, bias), *rest = backbone.convolutions
    biases = ((name, kernel, factor * bias) for name, kernel, bias in rest)
    return Backbone(backbone.name, ((first, factor * kernel, factor * bias), *biases))


def rounded(backbone: Backbone, dtype: tf.DType) -> Backbone:
    """The backbone with weights, and so features, of another dtype."""
    weights = ((name, tf.cast(kernel, dtype), tf.cast(bias, dtype)) for name, kernel, bias in backbone.convolutions)
    return Backbone(backbone.name, tuple(weights))


def blocks(backbone: Backbone, layers: Iterable[str]) -> tuple[tuple[Convolution, ...], ...]:
    """The network's convolutions, block by block, up to the deepest of `layers`."""
    names = [name for name, _, _ in backbone.convolutions]
    used = backbone.convolutions[: 1 + max(names.index(layer) for layer in layers)]
    return tuple(tuple(block) for _, block in itertools.groupby(used, lambda convolution: convolution[0].partition("_")[0]))


def centred(backbone: Backbone, image: tf.Tensor) -> tf.Tensor:
    """What the network looks at: the image (B, H, W, 3) RGB in [0, 1] minus the mean colour, in the backbone's dtype."""
    mean = tf.constant(np.array(MEAN_RGB) / 255.0, image.dtype)
    return tf.cast(image - mean, backbone.convolutions[0][1].dtype)


def through(
    block: Sequence[Convolution], x: tf.Tensor, padding: str = "zero", activation: str = "relu"
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """A block's output (B, h, w, C) for its input, and the activations at each of its layers.

    Padding of its first convolution is `zero` or `replicate`; the activations are those after the ReLU (`relu`) or before it
    (`linear`).
    """
    found: dict[str, tf.Tensor] = {}
    for k, (name, kernel, bias) in enumerate(block):
        if padding == "replicate" and k == 0:
            x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")  # one pixel of SYMMETRIC repeats the edge
            x = tf.nn.conv2d(x, kernel, 1, "VALID")
        else:
            x = tf.nn.conv2d(x, kernel, 1, "SAME")
        linear = tf.nn.bias_add(x, bias)
        x = tf.nn.relu(linear)
        found[name] = linear if activation == "linear" else x
    return x, found


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
