"""The shape of the VGG networks (Simonyan and Zisserman, arXiv 1409.1556), as plain values: no TensorFlow.

Five blocks of 3x3 convolutions, a 2x2 pooling between blocks. Layers are named as in Keras Applications: `block4_conv2` is
the activation after the second convolution (and ReLU) of the fourth block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from nst_tasks.errors import SettingsError

CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Convolutions in each block, by architecture."""

Turns = Literal["none", "forward", "backward"]
"""Which way float32 convolutions are computed by their turned kernels on a CPU: see `backbones.quickened`."""


def layer_names(architecture: str) -> tuple[str, ...]:
    """Names of the convolution layers of `vgg16` or `vgg19`, shallowest first."""
    blocks = enumerate(CONVOLUTIONS[architecture], start=1)
    return tuple(f"block{block}_conv{k}" for block, count in blocks for k in range(1, count + 1))


def check_layers(architecture: str, layers: Iterable[str]) -> None:
    """Refuse layers that the architecture does not have.

    Raises:
        SettingsError: naming the layer and those there are.
    """
    known = layer_names(architecture)
    for layer in layers:
        if layer not in known:
            raise SettingsError(f"layer {layer}: {architecture} has none of that name; choose among {', '.join(known)}")


def smallest_side(layers: Iterable[str]) -> int:
    """The smallest picture side, in pixels, that leaves the deepest of `layers` at least two positions wide."""
    deepest = max(int(layer.removeprefix("block").partition("_")[0]) for layer in layers)
    return 1 << deepest
