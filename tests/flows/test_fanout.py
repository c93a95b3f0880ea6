"""Batches and pictures on their way to the workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.fanout import submit_in_window
from nst_tasks.errors import Interrupted
from nst_tasks.inputs.jobs import Batch, split_into_shares
from nst_tasks.progress import Progress, progress_variable
from tests.support.jobs import two_jobs


def test_nothing_is_submitted_after_the_stop_signal() -> None:
    stopping, submitted = Progress(), []
    stopping.stop.set()
    token = progress_variable.set(stopping)
    try:
        with pytest.raises(Interrupted):
            next(submit_in_window(range(3), submitted.append, window=3))
    finally:
        progress_variable.reset(token)
    assert submitted == []


def test_shares_keep_the_order_and_are_at_most_as_many_as_asked(tmp_path: Path) -> None:
    batches = [Batch((job,)) for job in two_jobs(tmp_path)] * 5
    for most in (1, 2, 3, 4, 9, 10, 100):
        shares = split_into_shares(batches, most)
        assert len(shares) <= most
        assert [batch for share in shares for batch in share] == batches
        assert len({len(share) for share in shares[:-1]}) <= 1
    assert split_into_shares([], 3) == []
    assert all(len(share) == 1 for share in split_into_shares(batches, 10))
