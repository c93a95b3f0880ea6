"""Backbones that several tests share: building them is slow, and a graph is compiled once for each."""

from __future__ import annotations

import pytest
import tensorflow as tf

from nst_tasks import weights
from nst_tasks.core import backbones
from nst_tasks.core.backbones import Backbone


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return backbones.build("tiny", weights.load("tiny", None))


@pytest.fixture(scope="session")
def tiny64() -> Backbone:
    """The same network in float64, for finite differences."""
    return backbones.build("tiny64", weights.load("tiny", None), tf.float64)


@pytest.fixture(scope="session")
def hed() -> Backbone:
    return backbones.build("vgg16-hed", weights.load("vgg16-hed", None))
