"""Flows and tasks can be sent to workers in other processes."""

from typing import Any

import cloudpickle
import pytest

from flows.nightly import nightly
from flows.stylize import stylize_manifest
from nst_tasks.tasks import stylize_batches


@pytest.mark.parametrize("each", [stylize_manifest, nightly, stylize_batches], ids=lambda each: each.name)
def test_flows_and_tasks_can_be_pickled(each: Any) -> None:
    """Dask and Ray pickle a flow by value with the globals that its body names, among which no context variable may be."""
    assert cloudpickle.loads(cloudpickle.dumps(each)).name == each.name
