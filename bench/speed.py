"""All rows of the table in docs/speed.md, each measured by its own command and saved in one file.

    make bench                             # all rows: an hour or more on two cores
    .venv/bin/python -m bench speed --quick --keep /tmp/quick.json
    .venv/bin/python -m bench speed --only overhead  # measure these rows again, and keep the others
    .venv/bin/python -m bench speed --docs  # only writes docs/speed.md from the files in bench/results

Each command is printed and can be run alone. Without --keep, each row is saved to bench/results once it is measured, together
with the date, the machine, the versions and the commit, and shown in docs/speed.md. PyTorch's rows need a Python that has
PyTorch: --torch PATH.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.page import update_page
from bench.processes import BENCH, ROOT, create_parser
from bench.results import RESULTS_FOLDER, describe_machine, get_commit, get_date, get_results_path, list_newest
from bench.row import Row

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
"""Command of each row below `bench.rows`, and its options for a quick run, which only checks that the row runs.

None omits the row from a quick run.
"""


def measure_rows(command: Sequence[str], folder: Path) -> list[Row]:
    """Run a command in its own process and return its rows; if it fails, return one row with the reason."""
    file = folder / "rows.json"
    file.unlink(missing_ok=True)
    module, *rest = command
    process = subprocess.run(
        [*BENCH, f"rows.{module}", "--keep", str(file), *rest], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False
    )
    if process.returncode or not file.exists():
        print(process.stderr[-2000:], file=sys.stderr)  # not into the results file: it may contain private paths
        reason = f"not measured: exit code {process.returncode}"
        work = " ".join(command).partition(" --python ")[0]  # drop the path, which differs between machines
        return [Row(work, "", None, math.nan, math.nan, math.nan, "", reason)]
    return [Row.from_plain(row) for row in json.loads(file.read_text())]


def measure_suite(suite: Sequence[tuple[str, str | None]], only: str, quick: bool, keep: Path | None, torch: Path) -> None:
    """Run the commands of the suite that contain the text `only`, and save the rows after each.

    Args:
        suite: Commands and options as in `SUITE`.
        keep: File for the results, instead of one in bench/results.
        torch: A Python that has PyTorch.
    """
    machine, date, commit = describe_machine(), get_date(), get_commit()
    path = keep or get_results_path("speed", date, machine, ".json")
    rows = {} if quick or not only else load_earlier_rows(machine, path.parent)
    with tempfile.TemporaryDirectory() as folder:
        for command, quick_options in suite:
            if only not in command or (quick and quick_options is None):
                continue
            whole = [*command.split(), *(shlex.split(quick_options or "") if quick else ())]
            whole += ["--python", str(torch)] if command.startswith("step torch") else []
            print(f"\n{Path(sys.executable).name} -m bench rows.{' '.join(whole)}", flush=True)
            start = time.monotonic()
            rows[command] = [
                {"date": date, "commit": commit, "command": command, "row": row.as_plain()}
                for row in measure_rows(whole, Path(folder))
            ]
            print(f"{time.monotonic() - start:.0f} s", flush=True)
            ordered = [row for name, _ in suite for row in rows.get(name, ())]
            path.write_text(json.dumps({"quick": quick, "machine": machine, "rows": ordered}, indent=1) + "\n")


def load_earlier_rows(machine: dict[str, Any], folder: Path = RESULTS_FOLDER) -> dict[str, list[dict[str, Any]]]:
    """Return the newest rows of this machine by command; none if its versions have changed since."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in list_newest("speed", folder):
        results = json.loads(path.read_text())
        if results["machine"] == machine and not results["quick"]:
            for row in results["rows"]:
                rows.setdefault(row["command"], []).append(row)
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measure, save the results and update the page."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: whether it runs, not how fast")
    parser.add_argument("--only", default="", help="the rows whose command holds this text; the others stay")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    parser.add_argument("--torch", type=Path, default=Path(sys.executable), help="a Python that has PyTorch")
    parser.add_argument("--docs", action="store_true", help="only write docs/speed.md from the newest results")
    args = parser.parse_args(arguments)
    if args.quick and not args.keep:
        parser.error("--quick needs --keep FILE: its numbers are not to stand among those in bench/results")
    if not args.docs:
        measure_suite(SUITE, args.only, args.quick, args.keep, args.torch)
    if not args.keep:
        update_page()
