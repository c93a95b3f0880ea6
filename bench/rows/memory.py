"""Peak memory of a process that stylizes one pair: our loop at two sizes, against the tutorial's.

.venv/bin/python -m bench rows.memory peak
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.processes import BENCH, measure_peak_gib
from bench.row import Row, build_cost_row, list_precisions, run_commands
from bench.samples import write_samples

STEPS_PER_RUN = 3


def peak(size: int = 512, large: int = 2048, rounds: int = 2) -> list[Row]:
    """Measure the peak resident memory at both sizes, as a multiple of the tutorial's at `size`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_samples(Path(folder))
        options = [str(paths["astronaut"]), str(paths["swirls"]), f"{folder}/out.png", "--steps", str(STEPS_PER_RUN)]

        def measure_peaks(name: str, *more: str) -> list[float]:
            return [measure_peak_gib([*BENCH, name, *options, *more]) for _ in range(rounds)]

        theirs = statistics.median(measure_peaks("peers.tensorflow_tutorial", "--size", str(size)))
        rows = []
        for pixels, goal in ((size, 0.6), (large, 1.5)):
            for precision in list_precisions():
                mine = measure_peaks("ours", "--size", str(pixels), "--precision", precision)
                work, against = f"peak memory, {pixels} px, {precision}", f"TensorFlow tutorial, {size} px"
                detail = f"{statistics.median(mine):.2f} GiB against {theirs:.2f} GiB"
                rows.append(build_cost_row(work, goal, [gib / theirs for gib in mine], "x", detail, against))
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measure the rows of one command."""
    run_commands(__name__, arguments, peak)
