"""The message of a sweep."""

from __future__ import annotations

from flows.nightly import SweepResult
from nst_tasks.outputs.ledger import RunResult


def test_every_result_is_counted_in_the_message() -> None:
    words = {
        RunResult.GOOD: "good",
        RunResult.FAILURES: "with failures",
        RunResult.REFUSED: "refused",
        RunResult.FAILED: "failed",
    }
    for word in words.values():
        assert f"0 {word}" in SweepResult({}, 0).message
    assert {*words, RunResult.INTERRUPTED} == set(RunResult)  # one that is interrupted ends the sweep
