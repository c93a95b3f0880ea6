"""Peak memory of a process that stylizes one pair: our loop at two sizes against the tutorial's in float32.

.venv/bin/python -m bench.rows.memory peak
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.rows.row import ROOT, Row, build_cost_row, list_precisions, main, write_samples

STEPS_PER_RUN = 3


def peak(size: int = 512, large: int = 2048, rounds: int = 2) -> list[Row]:
    """Measure the peak resident memory at both sizes, as a multiple of the tutorial's at `size`."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_samples(Path(folder))
        files = [
            str(pictures["astronaut"]),
            str(pictures["swirls"]),
            f"{folder}/out.png",
            "--steps",
            str(STEPS_PER_RUN),
            "--size",
        ]

        def measure_peaks(module: str, *more: str) -> list[float]:
            return [measure_peak_gib([sys.executable, "-m", module, *files, *more]) for _ in range(rounds)]

        theirs = measure_peaks("bench.peers.tensorflow_tutorial", str(size))
        rows = []
        for pixels, goal in ((size, 0.6), (large, 1.5)):
            for precision in list_precisions():
                mine = measure_peaks("bench.ours", str(pixels), "--precision", precision)
                detail = f"{statistics.median(mine):.2f} GiB against {statistics.median(theirs):.2f} GiB"
                shares = [one / statistics.median(theirs) for one in mine]
                rows.append(
                    build_cost_row(
                        f"peak memory, {pixels} px, {precision}", goal, shares, "x", detail, f"TensorFlow tutorial, {size} px"
                    )
                )
    return rows


def measure_peak_gib(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> float:
    """Run a command and return the peak resident memory of its process in GiB.

    The calling process must stay small: until a child executes its own program, its peak includes its parent's memory.

    Raises:
        CalledProcessError: The command failed.
    """
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss / 2**20  # Linux reports KiB


if __name__ == "__main__":
    main(peak)
