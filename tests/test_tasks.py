"""What the task runs do by themselves."""

from __future__ import annotations

from nst_tasks.inputs.settings import Settings
from nst_tasks.tasks import stylize_batches, with_retries


def test_retries_wait_longer_each_time_and_not_all_alike() -> None:
    shell = with_retries(stylize_batches, Settings(retries=5, retry_seconds=2))
    assert (shell.retries, shell.retry_delay_seconds, shell.retry_jitter_factor) == (5, [2, 4, 8, 15, 15], 0.5)
    assert with_retries(stylize_batches, Settings(retries=0)).retries == 0
