"""VGG feature extractors, truncated at the deepest requested layer; `vgg_layers` lists their layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from nst_tasks.core.convolutions import Convolution, convolve, with_fast_algorithm
from nst_tasks.core.vgg_layers import FlippedDirection, block_number

MEAN_RGB = (123.68, 116.779, 103.939)
"""ImageNet's mean color on the 0-255 scale; these networks were trained with it subtracted."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """VGG network as a sequence of convolutions, all of the dtype that features are computed in.

    The input is RGB in [0, 1] minus `MEAN_RGB / 255`. flipped_direction: the pass that this machine computes faster by flipped
    kernels.
    """

    name: str
    convolutions: tuple[Convolution, ...]
    flipped_direction: FlippedDirection = "none"

    @property
    def is_on_gpu(self) -> bool:
        """True if the weights, and so all that is computed from them, are on a GPU."""
        return self.convolutions[0].is_on_gpu


def build(
    name: str,
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]],
    dtype: tf.DType = tf.float32,
    flipped_direction: FlippedDirection = "none",
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
    return Backbone(name, tuple(convolutions), flipped_direction)


def with_scaled_features(backbone: Backbone, factor: float) -> Backbone:
    """Return the backbone with every feature multiplied by `factor`.

    The network is homogeneous if its biases are scaled too: `relu(s W x + s b) = s relu(W x + b)` for s > 0, layer after layer.
    """
    first, *rest = (one._replace(bias=factor * one.bias) for one in backbone.convolutions)
    return replace(backbone, convolutions=(first._replace(kernel=factor * first.kernel), *rest))


def with_dtype(backbone: Backbone, dtype: tf.DType) -> Backbone:
    """Return the backbone with weights, and so features, of another dtype, and without fast convolutions."""
    weights = (Convolution(one.layer, tf.cast(one.kernel, dtype), tf.cast(one.bias, dtype)) for one in backbone.convolutions)
    return replace(backbone, convolutions=tuple(weights))


def with_fast_convolutions(backbone: Backbone) -> Backbone:
    """Return the backbone with each convolution prepared for the algorithm that is fastest on this machine."""
    prepared = (with_fast_algorithm(one, backbone.flipped_direction) for one in backbone.convolutions)
    return replace(backbone, convolutions=tuple(prepared))


def truncate(backbone: Backbone, deepest: str) -> Backbone:
    """Return the backbone up to and including the layer `deepest`."""
    names = [one.layer for one in backbone.convolutions]
    return replace(backbone, convolutions=backbone.convolutions[: 1 + names.index(deepest)])


def group_by_block(backbone: Backbone, layers: Iterable[str]) -> tuple[tuple[Convolution, ...], ...]:
    """Return the convolutions up to the deepest of `layers`, grouped by block."""
    names = [one.layer for one in backbone.convolutions]
    used = truncate(backbone, max(layers, key=names.index)).convolutions
    return tuple(tuple(block) for _, block in itertools.groupby(used, lambda convolution: block_number(convolution.layer)))


def subtract_mean(backbone: Backbone, image: tf.Tensor) -> tf.Tensor:
    """Return the network's input: the image (B, H, W, 3) RGB in [0, 1] minus the mean color, in the backbone's dtype."""
    mean = tf.constant(np.array(MEAN_RGB) / 255.0, image.dtype)
    return tf.cast(image - mean, backbone.convolutions[0].kernel.dtype)


def apply_block(
    block: Sequence[Convolution], x: tf.Tensor, padding: str = "zero", activation: str = "relu"
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Apply a block to its input and return its output (B, h, w, C) and the activations of each of its layers.

    Args:
        padding: Padding of the block's first convolution, `zero` or `replicate`.
        activation: Activations to return, after the ReLU (`relu`) or before it (`linear`).
    """
    activations: dict[str, tf.Tensor] = {}
    for k, convolution in enumerate(block):
        linear = tf.nn.bias_add(convolve(convolution, x, padding if k == 0 else "zero"), convolution.bias)
        x = tf.nn.relu(linear)
        activations[convolution.layer] = linear if activation == "linear" else x
    return x, activations


def pool(x: tf.Tensor, pooling: str = "max") -> tf.Tensor:
    """Return the next block's input, (B, h, w, C) -> (B, h/2, w/2, C), by `max` or `average` pooling."""
    return (tf.nn.max_pool2d if pooling == "max" else tf.nn.avg_pool2d)(x, 2, 2, "VALID")


def extract_activations(
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
    requested = set(layers)
    activations: dict[str, tf.Tensor] = {}
    x = subtract_mean(backbone, image)
    for k, block in enumerate(group_by_block(backbone, requested)):
        x, more = apply_block(block, pool(x, pooling) if k else x, "zero" if k else padding, activation)
        activations |= {layer: more[layer] for layer in more if layer in requested}
    return activations
