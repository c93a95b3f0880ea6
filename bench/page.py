"""Generated blocks of docs/speed.md: the newest results as tables, between markers."""

from __future__ import annotations

import json
from pathlib import Path

from bench.processes import ROOT
from bench.results import RESULTS_FOLDER, describe_results, get_plot_path, list_newest, read_rows
from bench.row import Row, format_markdown

PAGE_PATH = ROOT / "docs" / "speed.md"


def format_speed(path: Path) -> str:
    """Return results of `speed` as Markdown: a description of the machine, and a table of the rows."""
    results = json.loads(path.read_text())
    rows = [Row.from_plain(row["row"]) for row in results["rows"]]
    verdicts = [row.verdict for row in rows]
    met, not_met, missing = (verdicts.count(verdict) for verdict in ("met", "not met", "not measured"))
    quick = " Quick settings: these numbers say only that every row runs." if results["quick"] else ""
    fast = results["machine"]["bfloat16"] or results["machine"]["gpu"]
    left_out = "" if fast else " Mixed precision is not measured: without hardware for bfloat16 it is slower than float32."
    stamps = {name: ", ".join(dict.fromkeys(row[name] for row in results["rows"])) for name in ("date", "commit")}
    return (
        f"{describe_results({**results, **stamps})} {met} of {met + not_met} rows with a goal meet it"
        f"{f', {missing} are not measured' if missing else ''}.{left_out}{quick}\n\n{format_markdown(rows)}"
    )  # fmt: skip


def format_batches(path: Path) -> str:
    """Return results of `batches` as a Markdown table."""
    lines = ["| recipe | px | precision | pairs in a batch | ms a step | ms a pair | GiB of the GPU |", "| --- " * 7 + "|"]
    for row in read_rows(path):
        cells = [row["recipe"], row["px"], row["precision"], row["pairs"], row["ms"]]
        gib = float(row["gib"])
        cells += [f"{float(row['ms']) / int(row['pairs']):.2f}", f"{gib:.2f}" if gib else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return f"`{path.name}`:\n\n" + "\n".join(lines)


def format_growth(path: Path) -> str:
    """Return results of `growth` as Markdown: their plot, and a table of the cost at the first and last point of each line."""
    rows = read_rows(path)
    lines = ["| over | from | to | precision | seconds | GiB |", "| --- | --- | --- | --- | --- | --- |"]
    for over, precision in dict.fromkeys((row["over"], row["precision"]) for row in rows):
        first, *_, last = (row for row in rows if (row["over"], row["precision"]) == (over, precision))
        cells = (f"{float(first[name]):.2f} to {float(last[name]):.2f}" for name in ("seconds", "gib"))
        lines.append(f"| {over} | {first['value']} | {last['value']} | {precision} | {' | '.join(cells)} |")
    image = f"![Seconds and memory over pixels, steps, styles and pairs]({get_plot_path(path).name})"
    return f"{image}\n\n`{path.name}`, whole processes:\n\n" + "\n".join(lines)


def format_profile(path: Path) -> str:
    """Return results of `profiles` as two Markdown tables."""
    results = json.loads(path.read_text())
    *operations, clock = results["step"]
    precisions = [name for name in clock if name != "operation"]
    sums = {precision: sum(row[precision] for row in operations) for precision in precisions}
    lines = [
        f"{describe_results(results)} A step of `tf-tutorial` at {results['size']} px, operations summed over threads; "
        f"then `nst run` of {results['pairs']} pairs at {results['size']} px, {results['steps']} steps each, "
        "process start to end.",
        "", f"| operation | {' | '.join(precisions)} |", "| --- |" + " --- |" * len(precisions),
    ]  # fmt: skip
    for row in operations:
        cells = (f"{row[each]:.1f} ms, {100 * row[each] / max(sums[each], 1e-9):.0f} %" for each in precisions)
        lines.append(f"| {row['operation']} | {' | '.join(cells)} |")
    lines.append(f"| {clock['operation']} | {' | '.join(f'{clock[each]:.1f} ms' for each in precisions)} |")
    phases = results["manifest"]
    total = sum(row["seconds"] for row in phases)
    lines += ["", "| a small manifest | seconds | share |", "| --- | --- | --- |"]
    lines += [f"| {row['phase']} | {row['seconds']:.2f} | {100 * row['seconds'] / total:.0f} % |" for row in phases]
    return "\n".join([*lines, f"| in all | {total:.2f} | |"])


FORMATS = {
    "table": ("speed", format_speed),
    "batches": ("batches", format_batches),
    "growth": ("growth", format_growth),
    "profile": ("profile", format_profile),
}
"""Kind of results and their format for each block, by the block's name."""


def build_blocks(folder: Path = RESULTS_FOLDER) -> dict[str, str]:
    """Return the blocks of docs/speed.md by name, made of the newest results in the folder."""
    return {
        name: "\n\n".join(map(format_results, list_newest(kind, folder))) or "Not measured yet."
        for name, (kind, format_results) in FORMATS.items()
    }


def insert_blocks(text: str, blocks: dict[str, str]) -> str:
    """Return the text with each block inserted between its markers, `<!-- name -->` and `<!-- /name -->`."""
    for name, block in blocks.items():
        before, mark, rest = text.partition(f"<!-- {name} -->")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        assert mark and closing, f"docs/speed.md: no marks for {name}"
        text = f"{before}{mark}\n{block}\n{closing}{after}"
    return text


def update_page() -> None:
    """Write the newest results into docs/speed.md."""
    PAGE_PATH.write_text(insert_blocks(PAGE_PATH.read_text(), build_blocks()))
