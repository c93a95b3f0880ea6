"""Retries of task runs."""

from __future__ import annotations

from nst_tasks.inputs.settings import Settings
from nst_tasks.tasks import stylize_batches, with_retries


def test_retry_delays_grow_and_are_jittered() -> None:
    task = with_retries(stylize_batches, Settings(retries=5, retry_seconds=2))
    assert (task.retries, task.retry_delay_seconds, task.retry_jitter_factor) == (5, [2, 4, 8, 15, 15], 0.5)
    assert with_retries(stylize_batches, Settings(retries=0)).retries == 0
