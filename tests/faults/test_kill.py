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
    kill_until_done,
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
    kills = rounds = 0
    while kills < KILLS:  # what is done before it was killed often enough is followed by another
        out = tmp_path / f"killed-{rounds}"
        command = build_command(manifest, str(out), steps, "--checkpoint-every", "3")
        count, result = kill_until_done(command, out, KILLS - kills, SEED + rounds)
        kills, rounds = kills + count, rounds + 1
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
        assert_nothing_lost(str(out))
        assert_same_results(str(out), calm)
    print(f"killed {kills} times in {rounds} rounds")
