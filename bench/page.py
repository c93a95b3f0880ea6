"""The generated blocks of docs/speed.md: tables between markers, written from the newest results."""

from __future__ import annotations

import json
from pathlib import Path

from bench import batches, growth, profiles
from bench.results import RESULTS_FOLDER, describe_results, list_newest
from bench.rows.row import ROOT, Row, format_markdown

PAGE_PATH = ROOT / "docs" / "speed.md"


def format_table(path: Path) -> str:
    """Return a results file as Markdown: a description of the machine, and a table of the rows."""
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


def insert_blocks(text: str, blocks: dict[str, str]) -> str:
    """Return the text with each block inserted between its markers, `<!-- name -->` and `<!-- /name -->`."""
    for name, block in blocks.items():
        before, mark, rest = text.partition(f"<!-- {name} -->")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        assert mark and closing, f"docs/speed.md: no marks for {name}"
        text = f"{before}{mark}\n{block}\n{closing}{after}"
    return text


def build_blocks(folder: Path = RESULTS_FOLDER) -> dict[str, str]:
    """Return the blocks of docs/speed.md, made of the newest results."""
    shown = {
        "table": [format_table(path) for path in list_newest("speed", folder)],
        "batches": [batches.format_table(path) for path in list_newest("batches", folder)],
        "growth": [growth.format_table(path) for path in list_newest("growth", folder)],
        "profile": [profiles.format_tables(path) for path in list_newest("profile", folder)],
    }
    return {name: "\n\n".join(tables) or "Not measured yet." for name, tables in shown.items()}


def update_page() -> None:
    """Write the newest results into docs/speed.md."""
    PAGE_PATH.write_text(insert_blocks(PAGE_PATH.read_text(), build_blocks()))
