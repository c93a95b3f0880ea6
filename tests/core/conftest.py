"""Backbones that several tests share: building them is slow, and a graph is compiled once for each."""

from __future__ import annotations

import pytest
import tensorflow as tf

from nst_tasks.core import vgg
from nst_tasks.core.vgg import Backbone
from nst_tasks.inputs import weights


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """Return a small network of two convolutions in each block, which are traced faster than the four of VGG19."""
    arrays = weights.load("tiny", None)
    return vgg.build("tiny", {layer: arrays[layer] for layer in arrays if layer.endswith(("conv1", "conv2"))})


@pytest.fixture(scope="session")
def tiny19() -> Backbone:
    """Return a small network with all layers of VGG19."""
    return vgg.build("tiny", weights.load("tiny", None))


@pytest.fixture(scope="session")
def tiny64() -> Backbone:
    """Return the network with all layers in float64, for finite differences."""
    return vgg.build("tiny64", weights.load("tiny", None), tf.float64)


@pytest.fixture(scope="session")
def hed() -> Backbone:
    return vgg.build("vgg16-hed", weights.load("vgg16-hed", None))
