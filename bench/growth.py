"""Growth of cost: seconds and peak memory over pixels, steps, styles and pairs.

    .venv/bin/python -m bench growth                # into bench/results, a plot in docs and docs/speed.md
    .venv/bin/python -m bench growth --quick --keep /tmp/growth.csv

Each point is measured in its own process: `python -m bench ours` on one pair for pixels, steps and styles, `nst run` for pairs.
The plot needs the extra `bench`.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

from bench.page import update_page
from bench.processes import BENCH, NST, build_environment, create_parser, measure_peak_gib
from bench.results import describe_machine, get_date, get_plot_path, get_results_path, read_rows
from bench.row import list_precisions
from bench.rows.pairs import write_tutorial_recipe
from bench.samples import write_samples

mpl.use("Agg")  # draws into files

COLUMNS = ("over", "value", "precision", "seconds", "gib")

MEASUREMENT_POINTS: Mapping[str, Sequence[int]] = {
    "pixels": (128, 256, 384, 512, 768, 1024),  # longest side
    "steps": (10, 20, 40, 80),
    "styles": (1, 2, 4, 8),
    "pairs": (1, 4, 8, 16),
}

QUICK_POINTS: Mapping[str, Sequence[int]] = {"pixels": (64, 96), "steps": (2, 4), "styles": (1, 2), "pairs": (1, 2)}


def measure(points: Mapping[str, Sequence[int]], size: int, steps: int) -> Iterator[dict[str, object]]:
    """Yield a row for each point and precision: seconds of the whole process, and its peak memory in GiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, environment = write_samples(folder), build_environment(folder)
        content, style = str(paths["astronaut"]), str(paths["swirls"])
        for precision in list_precisions():
            for over in ("pixels", "steps", "styles"):
                for value in points[over]:
                    values = {"pixels": size, "steps": steps, "styles": 1} | {over: value}
                    command = [*BENCH, "ours", content, style, f"{folder}/out.png"]
                    command += ["--precision", precision, "--size", str(values["pixels"])]
                    command += ["--steps", str(values["steps"]), "--styles", str(values["styles"])]
                    seconds, gib = _measure_process(command, environment)
                    yield {"over": over, "value": value, "precision": precision, "seconds": seconds, "gib": gib}
            for pairs in points["pairs"]:
                rows = [f"{content},{style},p{k},{k}" for k in range(pairs)]  # rows with equal seeds would be one pair
                (folder / "m.csv").write_text("\n".join(["content,style,id,seed", *rows]) + "\n")
                command = [NST, "run", str(folder / "m.csv"), "--out", f"{folder}/{precision}{pairs}"]
                command += ["--recipe", write_tutorial_recipe(folder, precision), "--size", str(size), "--steps", str(steps)]
                seconds, gib = _measure_process(command, environment)
                yield {"over": "pairs", "value": pairs, "precision": precision, "seconds": seconds, "gib": gib}


def _measure_process(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in GiB of a command."""
    start = time.perf_counter()
    gib = measure_peak_gib(command, environment)
    return round(time.perf_counter() - start, 2), round(gib, 3)


def plot(path: Path, out: Path) -> None:
    """Plot seconds and memory over each of `MEASUREMENT_POINTS`, a panel for each."""
    from matplotlib import pyplot

    rows = read_rows(path)
    figure, panels = pyplot.subplots(2, len(MEASUREMENT_POINTS), figsize=(12, 5), layout="constrained", sharex="col")
    for column, over in enumerate(MEASUREMENT_POINTS):
        for line, (name, label) in enumerate((("seconds", "seconds, whole process"), ("gib", "peak memory, GiB"))):
            axes = panels[line][column]
            for precision in dict.fromkeys(row["precision"] for row in rows):
                points = [row for row in rows if (row["over"], row["precision"]) == (over, precision)]
                x = [float(row["value"]) ** 2 / 1e6 if over == "pixels" else float(row["value"]) for row in points]
                axes.plot(x, [float(row[name]) for row in points], "o-", label=precision)
            axes.set_ylim(0.0, 1.08 * axes.dataLim.ymax)  # do not clip the marker of the highest point
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
            if line == 1:
                axes.set_xlabel({"pixels": "megapixels"}.get(over, over))
    panels[0][0].legend(fontsize=8)
    figure.savefig(out, dpi=90)


def main(arguments: Sequence[str]) -> None:
    """Measure, save the results, plot them and update the page."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="small: whether it runs, not how fast")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    args = parser.parse_args(arguments)
    path = args.keep or get_results_path("growth", get_date(), describe_machine(), ".csv")
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for row in measure(QUICK_POINTS if args.quick else MEASUREMENT_POINTS, *((64, 2) if args.quick else (256, 20))):
            rows.writerow(row)
            file.flush()
            print(row, flush=True)
    plot(path, args.keep.with_suffix(".png") if args.keep else get_plot_path(path))
    if not args.keep:
        update_page()
