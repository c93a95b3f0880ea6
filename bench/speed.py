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
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.page import update_page
from bench.results import RESULTS_FOLDER, describe_machine, get_commit, list_newest, slugify
from bench.rows.row import ROOT, Row

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


def measure_rows(command: Sequence[str], folder: Path) -> list[Row]:
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


def main() -> None:
    """Measure, save the results and update the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: whether it runs, not how fast")
    parser.add_argument("--only", default="", help="the rows whose command holds this text; the others stay")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    parser.add_argument("--torch", type=Path, default=Path(sys.executable), help="a Python that has PyTorch")
    parser.add_argument("--docs", action="store_true", help="only write docs/speed.md from the newest results")
    args = parser.parse_args()
    if args.quick and not args.keep:
        parser.error("--quick needs --keep FILE: its numbers are not to stand among those in bench/results")
    if not args.docs:
        run_suite(args.quick, args.only, args.keep, args.torch)
    if not args.keep:
        update_page()


def run_suite(quick: bool, only: str, keep: Path | None, torch: Path) -> None:
    """Run the commands of the suite that contain the text `only`, and save the rows of each at once."""
    on, stamp = describe_machine(), {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": get_commit()}
    path = keep or RESULTS_FOLDER / f"speed-{stamp['date']}-{slugify(on)}.json"
    rows = {} if quick or not only else load_earlier_rows(on, path.parent)
    with tempfile.TemporaryDirectory() as folder:
        for command, shortened in SUITE:
            if only not in command or (quick and shortened is None):
                continue
            more = ["--python", str(torch)] if command.startswith("step torch") else []
            whole = [*command.split(), *(shlex.split(shortened or "") if quick else ()), *more]
            print(f"\n{Path(sys.executable).name} -m bench.rows.{' '.join(whole)}", flush=True)
            began = time.monotonic()
            rows[command] = [{**stamp, "command": command, "row": row.as_plain()} for row in measure_rows(whole, Path(folder))]
            print(f"{time.monotonic() - began:.0f} s", flush=True)
            ordered = [row for known, _ in SUITE for row in rows.get(known, ())]
            path.write_text(json.dumps({"quick": quick, "machine": on, "rows": ordered}, indent=1) + "\n")


def load_earlier_rows(on: dict[str, Any], folder: Path = RESULTS_FOLDER) -> dict[str, list[dict[str, Any]]]:
    """Return the newest rows of this machine by command; none if its versions have changed since."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in list_newest("speed", folder):
        kept = json.loads(path.read_text())
        if kept["machine"] == on and not kept["quick"]:
            for row in kept["rows"]:
                rows.setdefault(row["command"], []).append(row)
    return rows


if __name__ == "__main__":
    main()
