"""Layers of the VGG networks (Simonyan and Zisserman, arXiv 1409.1556) as plain values, without TensorFlow.

A network has five blocks of 3x3 convolutions with a 2x2 pooling between blocks. Layers are named as in Keras Applications:
`block4_conv2` is the activation after the second convolution (and ReLU) of the fourth block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from nst_tasks.errors import SettingsError

CONVOLUTIONS_PER_BLOCK = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Number of convolutions in each block, by architecture."""

FlippedDirection = Literal["none", "forward", "backward"]
"""Pass in which a CPU computes float32 convolutions by the flipped kernel (see `core.convolutions`)."""


def layer_names(architecture: str) -> tuple[str, ...]:
    """Return the names of the convolution layers of `vgg16` or `vgg19`, shallowest first."""
    blocks = enumerate(CONVOLUTIONS_PER_BLOCK[architecture], start=1)
    return tuple(f"block{block}_conv{k}" for block, count in blocks for k in range(1, count + 1))


def check_layers(architecture: str, layers: Iterable[str]) -> None:
    """Check that the architecture has all of these layers.

    Raises:
        SettingsError: The architecture lacks a layer; the message names it and the valid ones.
    """
    known = layer_names(architecture)
    for layer in layers:
        if layer not in known:
            raise SettingsError(f"layer {layer}: {architecture} has none of that name; choose among {', '.join(known)}")


def block_number(layer: str) -> int:
    """Return the number of a layer's block, counted from 1: 4 for `block4_conv2`."""
    return int(layer.removeprefix("block").partition("_")[0])


def min_side(layers: Iterable[str]) -> int:
    """Return the smallest image side, in pixels, at which the deepest of `layers` is at least two positions wide."""
    return 1 << max(map(block_number, layers))
