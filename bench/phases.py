"""Seconds of an `nst` command by phase, sampled from the stacks of its threads.

    .venv/bin/python -m bench phases /tmp/phases.json run manifest.csv --out out

About two hundred times a second, the stacks of all threads are read, and the time since the last sample counts for the first of
`PHASES` that any thread is in. Writes a JSON object: the seconds of each phase, and the times of the command's begin and end.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from bench.processes import create_parser

PHASES = (
    ("steps", ("nst_tasks.core.transfer.advance", "nst_tasks.core.transfer.compute_result")),
    ("targets", ("nst_tasks.engine.targets.build_targets",)),
    ("quality numbers", ("nst_tasks.engine.evaluation.measure_quality",)),
    (
        "reading weights",
        (
            "nst_tasks.engine.optimization.build_backbone",
            "nst_tasks.inputs.readers.read_weights",
            "nst_tasks.inputs.weights.compute_sha256",
        ),
    ),
    ("reading pictures", ("nst_tasks.engine.preprocessing.load_job", "nst_tasks.planning.inspection.inspect_image")),
    ("encoding and writing", ("nst_tasks.engine.publish.publish",)),
    ("report and summary", ("nst_tasks.outputs.report.write_report",)),
)
"""Phases of a run in order of priority, and the nst functions that identify them."""

TRACING, IMPORTS, REST = "tracing graphs", "imports", "Prefect and the rest"

PRIORITY = (*(name for name, _ in PHASES), TRACING, IMPORTS)
"""Phases in order of priority; time in none of them counts for `REST`."""

SAMPLE_INTERVAL_SECONDS = 0.005


def find_phase(frame: FrameType | None, names: Mapping[str, str]) -> str | None:
    """Return the phase of the innermost frame that has one, or None.

    Args:
        names: Phases by the full name of a function.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" and code.co_name == "_find_and_load":
            return IMPORTS
        module = frame.f_globals.get("__name__", "")
        if module.endswith("polymorphic_function.tracing_compilation") and code.co_name == "trace_function":
            return TRACING
        if phase := names.get(f"{module}.{code.co_name}"):
            return phase
        frame = frame.f_back
    return None


def sample_threads(seconds: Counter[str], end: threading.Event) -> None:
    """Sample all other threads until `end` is set, and add the seconds between samples to their phase."""
    names = {function: name for name, functions in PHASES for function in functions}
    own = threading.get_ident()
    previous = time.perf_counter()
    while not end.wait(SAMPLE_INTERVAL_SECONDS):
        current = {find_phase(frame, names) for thread, frame in sys._current_frames().items() if thread != own}
        now = time.perf_counter()
        seconds[next((name for name in PRIORITY if name in current), REST)] += now - previous
        previous = now


def main(arguments: Sequence[str]) -> None:
    """Run the command `nst` in this process and sample it."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("file", type=Path, help="file for the results, as JSON")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of nst")
    args = parser.parse_args(arguments)
    start, seconds, end = time.time(), Counter[str](), threading.Event()
    sampler = threading.Thread(target=sample_threads, args=(seconds, end), daemon=True)
    sampler.start()
    try:
        from flows.cli import app  # within the sampled time

        app(args.arguments)
    finally:
        end.set()
        sampler.join()
        args.file.write_text(json.dumps({"began": start, "ended": time.time(), "phases": seconds}))
