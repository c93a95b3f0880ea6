"""Cost of a step by precision, image size and batch size.

    .venv/bin/python -m bench batches                     # into bench/results and docs/speed.md
    .venv/bin/python -m bench batches --sizes 64 --pairs 1,2 --keep /tmp/batches.csv

Operations are deterministic, as in a run. Time is the minimum over a few rounds, in ms; memory is the peak of the GPU. The
limits of batches, bands and memory on GPUs are based on these numbers.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

from bench import ours
from bench.page import format_batches, update_page
from bench.processes import create_parser
from bench.results import describe_machine, get_date, get_results_path
from bench.row import list_precisions
from nst_tasks.engine.devices import acquire
from nst_tasks.progress import Progress

COLUMNS = ("recipe", "px", "precision", "pairs", "ms", "gib")

ROUNDS = 3


def measure(recipe: str, precision: str, size: int, pairs: int, steps: int) -> dict[str, object]:
    """Return a row of results: milliseconds of one step of a batch of `pairs`, and peak GiB of the GPU, 0 without one."""
    import tensorflow as tf  # by now imported by `ours`, as nst imports it

    content, style = ours.load_pair(size)
    transfer = ours.start(ours.build_backbone(), ours.build_method(recipe, precision), content, style, pairs=pairs)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.experimental.reset_memory_stats("GPU:0")
    seconds_per_step = []
    for _ in range(1 + ROUNDS):  # the first round traces the graph
        start = time.perf_counter()
        transfer.advance(steps)
        seconds_per_step.append((time.perf_counter() - start) / steps)
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30 if gpus else 0.0
    values = (recipe, size, precision, pairs, round(1e3 * min(seconds_per_step[1:]), 2), round(peak, 2))
    return dict(zip(COLUMNS, values, strict=True))


def main(arguments: Sequence[str]) -> None:
    """Measure, save the results and update the page."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("--recipe", default="tf-tutorial")
    parser.add_argument("--sizes", default="256,512", help="longest sides in pixels, by commas")
    parser.add_argument("--pairs", default="1,8", help="in a batch, by commas")
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    args = parser.parse_args(arguments)
    path = args.keep or get_results_path("batches", get_date(), describe_machine(), ".csv")
    with path.open("w", newline="") as file, acquire(Progress()):
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for size in map(int, args.sizes.split(",")):
            for precision in list_precisions():
                for pairs in map(int, args.pairs.split(",")):
                    rows.writerow(measure(args.recipe, precision, size, pairs, args.steps))
                    file.flush()
    print(format_batches(path))
    if not args.keep:
        update_page()
