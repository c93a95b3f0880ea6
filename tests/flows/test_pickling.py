"""Flows and tasks can be sent to workers in other processes."""

from typing import Any

import cloudpickle
import pytest

from flows.nightly import nightly
from flows.stylize import stylize_manifest
from nst_tasks.tasks import stylize_batches


@pytest.mark.parametrize("flow", [stylize_manifest, nightly, stylize_batches], ids=lambda flow: flow.name)
def test_flows_and_tasks_can_be_pickled(flow: Any) -> None:
    """Dask and Ray pickle a flow by value with the globals that its body names, among which no context variable may be."""
    assert cloudpickle.loads(cloudpickle.dumps(flow)).name == flow.name
