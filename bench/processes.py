"""Command lines of benchmarks, and child processes: their environment, time and peak memory."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

BENCH = (sys.executable, "-m", "bench")
"""Command that starts a benchmark, in the folder `ROOT`."""

NST = str(Path(sys.executable).parent / "nst")


def format_program(module: str) -> str:
    """Return the command of a benchmark for its usage line: `python -m bench rows.step` for the module `bench.rows.step`."""
    return f"python -m {module.replace('.', ' ', 1)}"


def create_parser(module: str, docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser for the arguments of a benchmark, described by the first line of its module's docstring."""
    return argparse.ArgumentParser(format_program(module), description=(docstring or "").partition("\n")[0])


def build_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process without the user's settings of Prefect, nst and AWS.

    Args:
        folder: Where Prefect keeps its database.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "NST_", "AWS_"))}
    return {**kept, "PREFECT_HOME": str(folder / "prefect"), "DO_NOT_TRACK": "1"}


def measure_seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command in its own process and return its seconds.

    Raises:
        SystemExit: The command failed.
    """
    start = time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nended with exit code {process.returncode}:\n{process.stderr[-2000:]}")
    return time.perf_counter() - start


def measure_peak_gib(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> float:
    """Run a command and return the peak resident memory of its process in GiB.

    The calling process must stay small: until a child executes its own program, its peak includes its parent's memory.

    Raises:
        CalledProcessError: The command failed.
    """
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss / 2**20  # Linux reports KiB
