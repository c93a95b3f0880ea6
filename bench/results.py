"""Result files of benchmarks: their folder and names, and the machine and commit that made them."""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.processes import ROOT
from nst_tasks.engine.hardware import BFLOAT16_CPU_FLAGS, read_cpu

RESULTS_FOLDER = ROOT / "bench" / "results"


def describe_machine() -> dict[str, Any]:
    """Describe the machine and the versions on which the numbers are measured."""
    cpu = read_cpu()
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "processor": cpu.model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "bfloat16": sorted(cpu.flags & BFLOAT16_CPU_FLAGS),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "gpu": _get_gpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy", "prefect")},
    }


def _get_gpu_name() -> str | None:
    """Return the name of the first GPU as its driver reports it, or None."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def get_commit() -> str:
    """Return the current commit, with the suffix `-dirty` if the working tree differs outside docs and bench/results."""

    def run_git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    differs = run_git("status", "--porcelain", "--", ".", ":!docs", ":!bench/results")
    return (run_git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if differs else "")


def slugify(machine: dict[str, Any]) -> str:
    """Return the name of a machine for use in file names."""
    name = machine["gpu"] or f"{machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", str(name).lower())).strip("-")


def get_results_path(kind: str, date: str, machine: dict[str, Any], suffix: str) -> Path:
    """Return the path of a results file, such as `speed-2026-01-31-a-processor-2-cores.json` in bench/results."""
    return RESULTS_FOLDER / f"{kind}-{date}-{slugify(machine)}{suffix}"


def get_plot_path(path: Path) -> Path:
    """Return the path of the plot of a results file about growth; each machine has one, of its newest results."""
    return ROOT / "docs" / f"growth-{path.stem[len('growth-2026-01-01-') :]}.png"


def get_date() -> str:
    """Return the current date in UTC, such as `2026-01-31`."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def list_newest(kind: str, folder: Path = RESULTS_FOLDER) -> list[Path]:
    """Return the newest results file of each machine, CPUs first.

    Args:
        kind: `speed`, `batches`, `growth` or `profile`.
    """
    by_machine: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{kind}-????-??-??-*")):
        by_machine[path.stem[len(f"{kind}-2026-01-01-") :]] = path
    return [by_machine[name] for name in sorted(by_machine, key=lambda name: (not name.endswith("-cores"), name))]


def describe_results(results: dict[str, Any]) -> str:
    """Return a sentence with the date, commit and machine of a results file."""
    machine = results["machine"]
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    formats = ", ".join(machine["bfloat16"]) or "no bfloat16"
    return (
        f"Measured on {results['date']} at commit {results['commit']} on "
        f"{gpu}{machine['cores']} cores of {machine['processor']} ({formats}), "
        f"{machine['memory_gib']} GiB, TensorFlow {machine['versions']['tensorflow']}."
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file of results."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
