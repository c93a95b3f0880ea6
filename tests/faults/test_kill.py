"""Killed at any moment, again and again, a run comes to the bytes of one that nobody disturbed.

SOAK_KILLS says how often (`make soak` says 25), SOAK_SEED which moments.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from survival import ROWS, assert_nothing_lost, assert_same_results, command, killed_until_done, write_manifest

KILLS = int(os.environ.get("SOAK_KILLS", "2"))
SEED = int(os.environ.get("SOAK_SEED", "1508"))
STEPS = 40 if KILLS < 5 else 40 * KILLS
"""Enough for the calm run not to be over before the last kill."""


def test_a_run_killed_at_random_moments_gives_the_bytes_of_a_calm_one(prefect_api: str, pictures: Path, tmp_path: Path) -> None:
    manifest, ids = write_manifest(pictures), ["best", "averaged", "coarse", "falling"]
    environment = {"PREFECT_API_URL": prefect_api, "NST_RETRY_SECONDS": "0.1"}
    calm = subprocess.run(
        command(manifest, tmp_path / "calm", STEPS),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert calm.returncode == 0, calm.stderr
    killed, round = 0, 0
    while killed < KILLS:  # a round that is done before it was killed often enough is followed by another
        out = tmp_path / f"killed-{round}"
        often, ended = killed_until_done(
            command(manifest, out, STEPS, "--checkpoint-every", "3"), out, environment, KILLS - killed, SEED + round
        )
        killed, round = killed + often, round + 1
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        assert_nothing_lost(str(out), ROWS.encode())
        assert_same_results(str(out), str(tmp_path / "calm"), ids)
    print(f"killed {killed} times in {round} rounds")
