"""Result files of benchmarks: where they lie, their names, and the machine and commit that made them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.rows.row import ROOT

RESULTS_FOLDER = ROOT / "bench" / "results"


def describe_machine() -> dict[str, Any]:
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
    on = results["machine"]
    gpu = f"{on['gpu']}, " if on["gpu"] else ""
    formats = ", ".join(on["bfloat16"]) or "no bfloat16"
    return (
        f"Measured on {results['date']} at commit {results['commit']} on "
        f"{gpu}{on['cores']} cores of {on['processor']} ({formats}), "
        f"{on['memory_gib']} GiB, TensorFlow {on['versions']['tensorflow']}."
    )
