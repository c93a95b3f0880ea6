"""Growth of cost: seconds and peak memory over pixels, steps, styles and pairs.

    .venv/bin/python -m bench.growth                # into bench/results, a plot in docs and docs/speed.md
    .venv/bin/python -m bench.growth --quick --keep /tmp/growth.csv

Each point is measured in its own process: `bench.ours` on one pair for pixels, steps and styles, `nst run` for pairs. The plot
needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.rows.memory import measure_peak_gib
from bench.rows.pairs import BIN_FOLDER, build_environment, write_tutorial_recipe
from bench.rows.row import ROOT, list_precisions, write_samples

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
        pictures, environment = write_samples(folder), build_environment(folder)
        content, style = str(pictures["astronaut"]), str(pictures["swirls"])
        for precision in list_precisions():
            for over in ("pixels", "steps", "styles"):
                for value in points[over]:
                    values = {"pixels": size, "steps": steps, "styles": 1} | {over: value}
                    command = [sys.executable, "-m", "bench.ours", content, style, f"{folder}/out.png"]
                    command += ["--precision", precision, "--size", str(values["pixels"])]
                    command += ["--steps", str(values["steps"]), "--styles", str(values["styles"])]
                    seconds, gib = _measure_process(command, environment)
                    yield {"over": over, "value": value, "precision": precision, "seconds": seconds, "gib": gib}
            for pairs in points["pairs"]:
                rows = [f"{content},{style},p{k},{k}" for k in range(pairs)]  # rows with equal seeds would be one pair
                (folder / "m.csv").write_text("\n".join(["content,style,id,seed", *rows]) + "\n")
                command = [str(BIN_FOLDER / "nst"), "run", str(folder / "m.csv"), "--out", f"{folder}/{precision}{pairs}"]
                command += ["--recipe", write_tutorial_recipe(folder, precision), "--size", str(size), "--steps", str(steps)]
                seconds, gib = _measure_process(command, environment)
                yield {"over": "pairs", "value": pairs, "precision": precision, "seconds": seconds, "gib": gib}


def _measure_process(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in GiB of a command."""
    began = time.perf_counter()
    gib = measure_peak_gib(command, environment)
    return round(time.perf_counter() - began, 2), round(gib, 3)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a results file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def format_table(path: Path) -> str:
    """Return a Markdown table of a results file: the cost at the first and at the last point of each row."""
    rows = read_rows(path)
    lines = ["| over | from | to | precision | seconds | GiB |", "| --- | --- | --- | --- | --- | --- |"]
    for over, precision in dict.fromkeys((row["over"], row["precision"]) for row in rows):
        first, *_, last = (row for row in rows if (row["over"], row["precision"]) == (over, precision))
        cells = (f"{float(first[name]):.2f} to {float(last[name]):.2f}" for name in ("seconds", "gib"))
        lines.append(f"| {over} | {first['value']} | {last['value']} | {precision} | {' | '.join(cells)} |")
    shown = f"![Seconds and memory over pixels, steps, styles and pairs]({get_plot_path(path).name})"
    return f"{shown}\n\n`{path.name}`, whole processes:\n\n" + "\n".join(lines)


def get_plot_path(path: Path) -> Path:
    """Return the path of the plot of a results file in bench/results; each machine has one, of its newest results."""
    return ROOT / "docs" / f"growth-{path.stem[len('growth-2026-01-01-') :]}.png"


def plot(path: Path, out: Path) -> None:
    """Plot seconds and memory over each of `MEASUREMENT_POINTS`, a panel for each."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = read_rows(path)
    figure, panels = pyplot.subplots(2, len(MEASUREMENT_POINTS), figsize=(12, 5), layout="constrained", sharex="col")
    for column, over in enumerate(MEASUREMENT_POINTS):
        for line, (name, label) in enumerate((("seconds", "seconds, whole process"), ("gib", "peak memory, GiB"))):
            axes = panels[line][column]
            for precision in dict.fromkeys(row["precision"] for row in rows):
                chosen = [row for row in rows if (row["over"], row["precision"]) == (over, precision)]
                x = [float(row["value"]) ** 2 / 1e6 if over == "pixels" else float(row["value"]) for row in chosen]
                axes.plot(x, [float(row[name]) for row in chosen], "o-", label=precision)
            axes.set_ylim(0.0, 1.08 * axes.dataLim.ymax)  # do not clip the marker of the highest point
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
            if line == 1:
                axes.set_xlabel({"pixels": "megapixels"}.get(over, over))
    panels[0][0].legend(fontsize=8)
    figure.savefig(out, dpi=90)


def main() -> None:
    """Measure, save the results, plot them and update the page."""
    from bench.page import update_page
    from bench.results import RESULTS_FOLDER, describe_machine, slugify

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small: whether it runs, not how fast")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    args = parser.parse_args()
    name = f"growth-{datetime.now(UTC):%Y-%m-%d}-{slugify(describe_machine())}.csv"
    path = args.keep or RESULTS_FOLDER / name
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


if __name__ == "__main__":
    main()
