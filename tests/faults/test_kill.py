"""Killed at any moment, again and again, a run leaves the bytes of an undisturbed one.

SOAK_KILLS says how often (`make soak` says 25), SOAK_SEED at which moments.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.survival import (
    STEPS,
    assert_nothing_lost,
    assert_same_results,
    build_command,
    killed_until_done,
    run_inputs,
    write_inputs,
)

KILLS = int(os.environ.get("SOAK_KILLS", "1"))
SEED = int(os.environ.get("SOAK_SEED", "1508"))


def test_run_killed_at_random_gives_the_same_bytes(flow_api: str, calm: str, tmp_path: Path) -> None:
    manifest, steps = write_inputs(str(tmp_path / "in")), STEPS * min(KILLS, 20)
    if steps != STEPS:
        calm = str(tmp_path / "calm")
        assert run_inputs(manifest, calm, steps).exit_code == 0
    killed = rounds = 0
    while killed < KILLS:  # what is done before it was killed often enough is followed by another
        out = tmp_path / f"killed-{rounds}"
        again = build_command(manifest, str(out), steps, "--checkpoint-every", "3")
        often, ended = killed_until_done(again, out, KILLS - killed, SEED + rounds)
        killed, rounds = killed + often, rounds + 1
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        assert_nothing_lost(str(out))
        assert_same_results(str(out), calm)
    print(f"killed {killed} times in {rounds} rounds")
