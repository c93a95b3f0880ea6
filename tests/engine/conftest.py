"""A device and a backbone that the tests share, since a graph is traced once for each backbone."""

from __future__ import annotations

import pytest

from nst_tasks.core.vgg import Backbone
from nst_tasks.engine import devices, optimization
from nst_tasks.engine.devices import Device
from nst_tasks.progress import Progress
from tests.support.jobs import TINY_SHA256, run_into


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """Build the tiny network as a run does."""
    return optimization.build_backbone(run_into(""))


@pytest.fixture(scope="module")
def device(tiny: Backbone) -> Device:
    """Return a device with the network, and with caches that only the tests of one module share."""
    return Device("/CPU:0", {TINY_SHA256: tiny})


@pytest.fixture(scope="session")
def share_backbone(tiny: Backbone) -> None:
    """Let the device that batches acquire have the shared network."""
    with devices.acquire(Progress()) as device:
        device.backbones[TINY_SHA256] = tiny
