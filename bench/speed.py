"""All rows of the goals' table, each measured by its own command, saved in one file and shown in docs/speed.md.

    make bench                             # all rows: an hour or more on two cores
    .venv/bin/python -m bench.speed --quick --keep /tmp/quick.json
    .venv/bin/python -m bench.speed --only overhead  # measure these rows again, and keep the others
    .venv/bin/python -m bench.speed --docs  # only writes docs/speed.md from the files in bench/results

Each command is printed and can be run alone. Without --keep, each row is saved to bench/results once it is measured, together
with the date, the machine, the versions and the commit, and shown in docs/speed.md. PyTorch's rows need a Python that has
PyTorch: --torch PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import batches, growth, profiles
from bench.rows.row import ROOT, Row, markdown

RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "speed.md"

SUITE = (
    ("step keras --size 256", "--size 64 --rounds 2"),
    ("step keras --size 512", None),
    ("step tutorial --size 256", "--size 64 --rounds 2"),
    ("step tutorial --size 512", None),
    ("step torch --size 256", "--size 64 --rounds 1"),
    ("step torch --size 512", None),
    ("arithmetic share --size 256", "--size 64 --rounds 2"),
    ("arithmetic share --size 512", None),
    ("memory peak", "--size 64 --large 96 --rounds 1"),
    ("descent tutorial --rounds 2", "--size 64 --steps 30"),
    ("gap wasserstein --pairs 1", "--size 64 --shorten 40 --every 10"),
    ("pairs grid", "--contents 1 --styles 2 --size 64 --steps 2"),
    ("pairs overhead", "--pairs 30 --few 10 --size 64 --rounds 1"),
    ("pairs overhead --size 64 --rounds 1", None),
    ("pairs overhead --s3", "--pairs 30 --few 10 --size 64 --rounds 1"),
    ("pairs overhead --backbone vgg16-hed --pairs 60 --rounds 1", None),
    ("intake large", "--pairs 100 --rounds 1"),
)
"""Command of each row, and its options for a quick run, which only checks that the row runs; None omits the row from it."""


def measured(command: Sequence[str], folder: Path) -> list[Row]:
    """Run a command in its own process and return its rows; if it fails, return one row with the reason."""
    file = folder / "rows.json"
    file.unlink(missing_ok=True)
    row, *rest = command
    done = subprocess.run(
        [sys.executable, "-m", f"bench.rows.{row}", "--keep", str(file), *rest], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    if done.returncode or not file.exists():
        print(done.stderr[-2000:], file=sys.stderr)  # not into the results file: it may contain private paths
        why = f"not measured: exit code {done.returncode}"
        work = " ".join(command).partition(" --python ")[0]  # drop the path, which differs between machines
        return [Row(work, "", None, float("nan"), float("nan"), float("nan"), "", why)]
    return [Row.from_plain(row) for row in json.loads(file.read_text())]


def machine() -> dict[str, Any]:
    """Describe the machine and the versions on which the numbers are measured."""
    about = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", about)
    flags = re.search(r"flags\s*: (.*)", about)
    known = set(flags[1].split()) if flags else set()
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "processor": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "bfloat16": sorted(known & {"avx512_bf16", "amx_bf16"}),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "gpu": _gpu(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy", "prefect")},
    }


def _gpu() -> str | None:
    """Return the name of the first GPU as its driver reports it, or None."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def commit() -> str:
    """Return the current commit, with the suffix `-dirty` if the working tree differs outside docs and bench/results."""

    def said(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    differs = said("status", "--porcelain", "--", ".", ":!docs", ":!bench/results")
    return (said("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if differs else "")


def slug(of: dict[str, Any]) -> str:
    """Return the name of a machine for use in file names."""
    name = of["gpu"] or f"{of['processor']} {of['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", str(name).lower())).strip("-")


def newest(kind: str, folder: Path = RESULTS) -> list[Path]:
    """Return the newest results file of each machine, CPUs first.

    Args:
        kind: `speed`, `batches`, `growth` or `profile`.
    """
    by_machine: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{kind}-????-??-??-*")):
        by_machine[path.stem[len(f"{kind}-2026-01-01-") :]] = path
    return [by_machine[name] for name in sorted(by_machine, key=lambda name: (not name.endswith("-cores"), name))]


def table(path: Path) -> str:
    """Return a results file as Markdown: a description of the machine, and a table of the rows."""
    kept = json.loads(path.read_text())
    rows = [Row.from_plain(row["row"]) for row in kept["rows"]]
    verdicts = [row.verdict for row in rows]
    met, not_met, missing = (verdicts.count(verdict) for verdict in ("met", "not met", "not measured"))
    quick = " Quick settings: these numbers say only that every row runs." if kept["quick"] else ""
    fast = kept["machine"]["bfloat16"] or kept["machine"]["gpu"]
    left_out = "" if fast else " Mixed precision is not measured: without hardware for bfloat16 it is slower than float32."
    stamps = {name: ", ".join(dict.fromkeys(row[name] for row in kept["rows"])) for name in ("date", "commit")}
    return (
        f"{described({**kept, **stamps})} {met} of {met + not_met} rows with a goal meet it"
        f"{f', {missing} are not measured' if missing else ''}.{left_out}{quick}\n\n{markdown(rows)}"
    )  # fmt: skip


def described(kept: dict[str, Any]) -> str:
    """Return a sentence with the date, commit and machine of a results file."""
    on = kept["machine"]
    gpu = f"{on['gpu']}, " if on["gpu"] else ""
    formats = ", ".join(on["bfloat16"]) or "no bfloat16"
    return (
        f"Measured on {kept['date']} at commit {kept['commit']} on {gpu}{on['cores']} cores of {on['processor']} ({formats}), "
        f"{on['memory_gib']} GiB, TensorFlow {on['versions']['tensorflow']}."
    )


def page(text: str, blocks: dict[str, str]) -> str:
    """Return the text with each block inserted between its markers, `<!-- name -->` and `<!-- /name -->`."""
    for name, block in blocks.items():
        before, mark, rest = text.partition(f"<!-- {name} -->")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        assert mark and closing, f"docs/speed.md: no marks for {name}"
        text = f"{before}{mark}\n{block}\n{closing}{after}"
    return text


def blocks(folder: Path = RESULTS) -> dict[str, str]:
    """Return the blocks of docs/speed.md, made of the newest results."""
    shown = {
        "table": [table(path) for path in newest("speed", folder)],
        "batches": [batches.table(path) for path in newest("batches", folder)],
        "growth": [growth.table(path) for path in newest("growth", folder)],
        "profile": [profiles.tables(path) for path in newest("profile", folder)],
    }
    return {name: "\n\n".join(tables) or "Not measured yet." for name, tables in shown.items()}


def main() -> None:
    """Measure, save the results and update the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: whether it runs, not how fast")
    parser.add_argument("--only", default="", help="the rows whose command holds this text; the others stay")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    parser.add_argument("--torch", type=Path, default=Path(sys.executable), help="a Python that has PyTorch")
    parser.add_argument("--docs", action="store_true", help="only write docs/speed.md from the newest results")
    asked = parser.parse_args()
    if asked.quick and not asked.keep:
        parser.error("--quick needs --keep FILE: its numbers are not to stand among those in bench/results")
    if not asked.docs:
        measure(asked.quick, asked.only, asked.keep, asked.torch)
    if not asked.keep:
        show()


def show() -> None:
    """Write the newest results into docs/speed.md."""
    PAGE.write_text(page(PAGE.read_text(), blocks()))


def measure(quick: bool, only: str, keep: Path | None, torch: Path) -> None:
    """Run the commands of the suite that contain the text `only`, and save the rows of each at once."""
    on, stamp = machine(), {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit()}
    path = keep or RESULTS / f"speed-{stamp['date']}-{slug(on)}.json"
    rows = {} if quick or not only else earlier(on, path.parent)
    with tempfile.TemporaryDirectory() as folder:
        for command, shortened in SUITE:
            if only not in command or (quick and shortened is None):
                continue
            more = ["--python", str(torch)] if command.startswith("step torch") else []
            whole = [*command.split(), *(shlex.split(shortened or "") if quick else ()), *more]
            print(f"\n{Path(sys.executable).name} -m bench.rows.{' '.join(whole)}", flush=True)
            began = time.monotonic()
            rows[command] = [{**stamp, "command": command, "row": row.as_plain()} for row in measured(whole, Path(folder))]
            print(f"{time.monotonic() - began:.0f} s", flush=True)
            ordered = [row for known, _ in SUITE for row in rows.get(known, ())]
            path.write_text(json.dumps({"quick": quick, "machine": on, "rows": ordered}, indent=1) + "\n")


def earlier(on: dict[str, Any], folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """Return the newest rows of this machine by command; none if its versions have changed since."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in newest("speed", folder):
        kept = json.loads(path.read_text())
        if kept["machine"] == on and not kept["quick"]:
            for row in kept["rows"]:
                rows.setdefault(row["command"], []).append(row)
    return rows


if __name__ == "__main__":
    main()
