"""Cost of a step by precision, image size and batch size; on a GPU the basis of the limits of batches, bands and memory.

    .venv/bin/python -m bench.batches                     # into bench/results and docs/speed.md
    .venv/bin/python -m bench.batches --sizes 64 --pairs 1,2 --keep /tmp/batches.csv

Operations are deterministic, as in a run. Time is the minimum over a few rounds, in ms; memory is the peak of the GPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from bench.rows.row import list_precisions

COLUMNS = ("recipe", "px", "precision", "pairs", "ms", "gib")

ROUNDS = 3


def measure(recipe: str, precision: str, size: int, pairs: int, steps: int) -> dict[str, object]:
    """Return a row of results: milliseconds of one step of a batch of `pairs`, and peak GiB of the GPU, 0 without one."""
    import tensorflow as tf

    from bench import ours

    content, style = ours.load_pair(size)
    transfer = ours.start(ours.build_backbone(), ours.build_method(recipe, precision), content, style, pairs=pairs)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.experimental.reset_memory_stats("GPU:0")
    seconds_per_step = []
    for _ in range(1 + ROUNDS):  # the first round traces the graph
        began = time.perf_counter()
        transfer.advance(steps)
        seconds_per_step.append((time.perf_counter() - began) / steps)
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30 if gpus else 0.0
    values = (recipe, size, precision, pairs, round(1e3 * min(seconds_per_step[1:]), 2), round(peak, 2))
    return dict(zip(COLUMNS, values, strict=True))


def format_table(path: Path) -> str:
    """Return the results file as a Markdown table."""
    lines = ["| recipe | px | precision | pairs in a batch | ms a step | ms a pair | GiB of the GPU |", "| --- " * 7 + "|"]
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            cells = [row["recipe"], row["px"], row["precision"], row["pairs"], row["ms"]]
            gib = float(row["gib"])
            cells += [f"{float(row['ms']) / int(row['pairs']):.2f}", f"{gib:.2f}" if gib else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return f"`{path.name}`:\n\n" + "\n".join(lines)


def main() -> None:
    """Measure, save the results and update the page."""
    from bench.page import update_page
    from bench.results import RESULTS_FOLDER, describe_machine, slugify
    from nst_tasks.engine.devices import acquire
    from nst_tasks.progress import Progress

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", default="tf-tutorial")
    parser.add_argument("--sizes", default="256,512", help="longest sides in pixels, by commas")
    parser.add_argument("--pairs", default="1,8", help="in a batch, by commas")
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    args = parser.parse_args()
    name = f"batches-{datetime.now(UTC):%Y-%m-%d}-{slugify(describe_machine())}.csv"
    path = args.keep or RESULTS_FOLDER / name
    with path.open("w", newline="") as file, acquire(Progress()):
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for size in map(int, args.sizes.split(",")):
            for precision in list_precisions():
                for pairs in map(int, args.pairs.split(",")):
                    rows.writerow(measure(args.recipe, precision, size, pairs, args.steps))
                    file.flush()
    print(format_table(path))
    if not args.keep:
        update_page()


if __name__ == "__main__":
    main()
