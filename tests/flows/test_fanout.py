"""Submission of batches to workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from flows.fanout import submit_in_window, wait_for_claimed
from nst_tasks.errors import Interrupted
from nst_tasks.inputs.jobs import Batch, group_into_batches, split_into_shares
from nst_tasks.progress import Progress, progress_variable
from tests.support.changes import change_job
from tests.support.jobs import run_into, two_jobs


def test_nothing_is_submitted_after_the_stop_signal() -> None:
    progress, items = Progress(), []
    progress.stop.set()
    token = progress_variable.set(progress)
    try:
        with pytest.raises(Interrupted):
            next(submit_in_window(range(3), items.append, window=3))
    finally:
        progress_variable.reset(token)
    assert items == []


def test_shares_keep_the_order_and_are_limited_in_number(tmp_path: Path) -> None:
    batches = [Batch((job,)) for job in two_jobs(tmp_path)] * 5
    for limit in (1, 2, 3, 4, 9, 10, 100):
        shares = split_into_shares(batches, limit)
        assert len(shares) <= limit
        assert [batch for share in shares for batch in share] == batches
        assert len({len(share) for share in shares[:-1]}) <= 1
    assert split_into_shares([], 3) == []
    assert all(len(share) == 1 for share in split_into_shares(batches, 10))


def test_pairs_that_another_run_claimed_are_done_in_row_order(tmp_path: Path) -> None:
    """Neither the log nor the groups depend on the order in which the task runs of the pairs end."""
    first, second = (change_job(job, row=row) for job, row in zip(two_jobs(tmp_path), (2, 3), strict=True))
    with disable_run_logger():
        free, busy = wait_for_claimed([second, first], run_into(tmp_path / "out"))
    assert (free, busy) == ([first, second], [])
    (batch,) = group_into_batches([second, first], 2, 2**40)
    assert batch.jobs == (first, second)
