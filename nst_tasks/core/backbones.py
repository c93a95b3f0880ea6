"""VGG feature extractors, cut at the deepest layer asked for; `architecture` says what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

MEAN_RGB = (123.68, 116.779, 103.939)
"""ImageNet's mean colour on the 0-255 scale, which these networks were trained to see subtracted."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """Convolutions in order: layer name, kernel (3, 3, C_in, C_out) float32 for BGR input, bias (C_out,) float32."""

    name: str
    convolutions: tuple[tuple[str, tf.Tensor, tf.Tensor], ...]


def build(name: str, weights: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Backbone:
    """A backbone from its weights: layer name -> (kernel (3, 3, C_in, C_out), bias (C_out,)), in the network's order."""
    return Backbone(
        name,
        tuple(
            (layer, tf.constant(kernel, tf.float32), tf.constant(bias, tf.float32)) for layer, (kernel, bias) in weights.items()
        ),
    )


def features(
    backbone: Backbone,
    image: tf.Tensor,
    layers: Iterable[str],
    pooling: str = "max",
    padding: str = "zero",
    activation: str = "relu",
) -> dict[str, tf.Tensor]:
    """Activations at `layers`: image (B, H, W, 3) float32 RGB in [0, 1] -> layer -> (B, h, w, C) float32.

    Pooling is `max` or `average`; padding of the first convolution `zero` or `replicate`; the activations are those after the
    ReLU (`relu`) or before it (`linear`).
    """
    wanted = set(layers)
    found: dict[str, tf.Tensor] = {}
    x = (image * 255.0 - tf.constant(MEAN_RGB, image.dtype))[..., ::-1]  # (B, H, W, 3), BGR
    block = "block1"
    for name, kernel, bias in backbone.convolutions:
        if not name.startswith(block):
            x = (tf.nn.max_pool2d if pooling == "max" else tf.nn.avg_pool2d)(x, 2, 2, "VALID")  # (B, h/2, w/2, C)
            block = name.partition("_")[0]
        if padding == "replicate" and name == backbone.convolutions[0][0]:
            x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")  # one pixel of SYMMETRIC repeats the edge
            x = tf.nn.conv2d(x, kernel, 1, "VALID")
        else:
            x = tf.nn.conv2d(x, kernel, 1, "SAME")
        linear = tf.nn.bias_add(x, bias)
        x = tf.nn.relu(linear)
        if name in wanted:
            found[name] = linear if activation == "linear" else x
            if len(found) == len(wanted):
                break
    return found
