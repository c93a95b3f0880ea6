"""Profile of a step by kind of operation, and of a run of a small manifest by phase.

    .venv/bin/python -m bench.profiles              # both, into bench/results and docs/speed.md
    .venv/bin/python -m bench.profiles --quick --keep /tmp/profile.json

The operations of a step come from TensorFlow's profiler, summed over threads. The run is sampled: about two hundred times a
second, the stacks of all threads of `nst run` are read, and the time since the last sample counts for the first of `PHASES`
that any thread is in.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from bench.rows.pairs import CONTENTS, STYLES, build_environment
from bench.rows.row import ROOT, list_precisions, write_samples

OPERATION_KINDS = (
    ("convolutions, both ways", r"Conv2D"),  # a pass may use the other's operation: see `core.convolutions`
    ("Gram matrices and their gradients", r"MatMul|Einsum"),
    ("pooling, both ways", r"Pool"),
    ("casts, copies, layout", r"Cast|Transpose|Reshape|Concat|Pad|Slice|Pack|Copy|Identity|ToTf|Quantize"),
    ("optimizer and everything element by element", r""),
)
"""Kinds of operations and patterns of TensorFlow operation types; the first matching pattern determines an operation's kind."""

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

SAMPLE_INTERVAL_SECONDS = 0.005
"""Seconds between two samples."""


def profile_step(size: int, steps: int) -> list[dict[str, object]]:
    """Return milliseconds of a `tf-tutorial` step: a row for each kind of operation, with a column for each precision.

    The last row is the median wall time.
    """
    from bench import ours

    content, style = ours.load_pair(size)
    columns: dict[str, Counter[str]] = {}
    for precision in list_precisions():
        transfer = ours.start(ours.build_backbone(), ours.build_method("tf-tutorial", precision), content, style)
        transfer.advance(2)
        walls = []
        for _ in range(steps):
            began = time.perf_counter()
            transfer.advance(1)
            walls.append(time.perf_counter() - began)
        columns[precision] = trace_operations(lambda transfer=transfer: transfer.advance(steps), steps)
        columns[precision]["a step, by the clock"] = 1e3 * statistics.median(walls)
    names = [name for name, _ in OPERATION_KINDS] + ["a step, by the clock"]
    return [{"operation": name, **{each: round(columns[each][name], 3) for each in columns}} for name in names]


def trace_operations(call, steps: int) -> Counter[str]:
    """Return the milliseconds per step that each kind of `OPERATION_KINDS` took during a call, summed over threads."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
        tf.profiler.experimental.start(folder, options)
        call()
        tf.profiler.experimental.stop()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(trace.read_bytes())
    milliseconds: Counter[str] = Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            operation = re.fullmatch(r"[\w/.-]+:(\w+)", plane.event_metadata[event.metadata_id].name)
            if operation and not re.search(r"PartitionedCall|While", operation[1]):  # containers of other operations
                kind = next(name for name, pattern in OPERATION_KINDS if re.search(pattern, operation[1]))
                milliseconds[kind] += event.duration_ps / 1e9 / steps
    return milliseconds


def profile_manifest(contents: int, styles: int, size: int, steps: int) -> list[dict[str, object]]:
    """Return the seconds of `nst run` on a small grid, a row for each phase from process start to process end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, environment = write_samples(folder), build_environment(folder)
        chosen = [(pictures[content], pictures[style]) for content in CONTENTS[:contents] for style in STYLES[:styles]]
        (folder / "m.csv").write_text("\n".join(["content,style", *(f"{one},{other}" for one, other in chosen)]) + "\n")
        command = ["run", str(folder / "m.csv"), "--size", str(size), "--steps", str(steps), "--recipe", "tf-tutorial"]
        seconds_by_phase: dict[str, float] = {}
        for turn in ("first", "second"):  # the first run creates Prefect's database
            began = time.time()
            whole = [sys.executable, "-m", "bench.profiles", "--sampled", str(folder / "phases.json"), "--"]
            subprocess.run(
                [*whole, *command, "--out", str(folder / turn)], cwd=ROOT, env=environment, capture_output=True, check=True
            )  # fmt: skip
            ended = time.time()
            sample = json.loads((folder / "phases.json").read_text())
            seconds_by_phase = {
                "process start": sample["began"] - began,
                **sample["phases"],
                "process end": ended - sample["ended"],
            }
    order = ["process start", IMPORTS, REST, TRACING, *(name for name, _ in PHASES), "process end"]
    return [{"phase": name, "seconds": round(seconds_by_phase.get(name, 0.0), 2)} for name in order]


def run_sampled_nst(arguments: list[str], keep: Path) -> None:
    """Run `nst` with these arguments in this process, sample it, and write the seconds by phase to a JSON file."""
    began, phases, done = time.time(), Counter[str](), threading.Event()
    names = {function: name for name, functions in PHASES for function in functions}
    order = [name for name, _ in PHASES] + [TRACING, IMPORTS]
    watcher = threading.Thread(target=_sample_threads, args=(phases, names, order, done), daemon=True)
    watcher.start()
    try:
        from flows.cli import app

        app(arguments)
    finally:
        done.set()
        watcher.join()
        keep.write_text(json.dumps({"began": began, "ended": time.time(), "phases": phases}))


def _sample_threads(phases: Counter[str], names: Mapping[str, str], order: list[str], done: threading.Event) -> None:
    """Sample all other threads until `done` is set, and add the seconds between samples to their phase."""
    before = time.perf_counter()
    while not done.wait(SAMPLE_INTERVAL_SECONDS):
        own = threading.get_ident()
        seen = {find_phase(frame, names) for thread, frame in sys._current_frames().items() if thread != own}
        now = time.perf_counter()
        phases[next((name for name in order if name in seen), REST)] += now - before
        before = now


def find_phase(frame: FrameType | None, names: Mapping[str, str]) -> str | None:
    """Return the phase of the innermost frame that has one, or None."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" and code.co_name == "_find_and_load":
            return IMPORTS
        module = frame.f_globals.get("__name__", "")
        if module.endswith("polymorphic_function.tracing_compilation") and code.co_name == "trace_function":
            return TRACING
        if found := names.get(f"{module}.{code.co_name}"):
            return found
        frame = frame.f_back
    return None


def format_tables(path: Path) -> str:
    """Return a results file as two Markdown tables."""
    from bench.results import describe_results

    kept = json.loads(path.read_text())
    *operations, clock = kept["step"]
    sides = [name for name in clock if name != "operation"]
    sums = {side: sum(row[side] for row in operations) for side in sides}
    lines = [
        f"{describe_results(kept)} A step of `tf-tutorial` at {kept['size']} px, operations summed over threads; "
        "then `nst run` of "
        f"{kept['pairs']} pairs at {kept['size']} px, {kept['steps']} steps each, process start to end.",
        "", f"| operation | {' | '.join(sides)} |", "| --- |" + " --- |" * len(sides),
    ]  # fmt: skip
    for row in operations:
        cells = (f"{row[side]:.1f} ms, {100 * row[side] / max(sums[side], 1e-9):.0f} %" for side in sides)
        lines.append(f"| {row['operation']} | {' | '.join(cells)} |")
    lines.append(f"| {clock['operation']} | {' | '.join(f'{clock[side]:.1f} ms' for side in sides)} |")
    whole = sum(row["seconds"] for row in kept["manifest"])
    lines += ["", "| a small manifest | seconds | share |", "| --- | --- | --- |"]
    lines += [f"| {row['phase']} | {row['seconds']:.2f} | {100 * row['seconds'] / whole:.0f} % |" for row in kept["manifest"]]
    return "\n".join([*lines, f"| in all | {whole:.2f} | |"])


def main() -> None:
    """Measure both profiles, save them and update the page."""
    if "--sampled" in sys.argv:
        at = sys.argv.index("--sampled")
        run_sampled_nst(sys.argv[at + 3 :], Path(sys.argv[at + 1]))
        return
    from bench.page import update_page
    from bench.results import RESULTS_FOLDER, describe_machine, get_commit, slugify

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small: whether it runs, not how fast")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    args = parser.parse_args()
    size, steps, (contents, styles) = (64, 2, (1, 1)) if args.quick else (256, 50, (2, 2))
    date, machine = f"{datetime.now(UTC):%Y-%m-%d}", describe_machine()
    kept = {
        "date": date, "commit": get_commit(), "quick": args.quick, "machine": machine, "size": size, "steps": steps,
        "pairs": contents * styles, "step": profile_step(size, 3 if args.quick else 10),
        "manifest": profile_manifest(contents, styles, size, steps),
    }  # fmt: skip
    path = args.keep or RESULTS_FOLDER / f"profile-{date}-{slugify(machine)}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(format_tables(path))
    if not args.keep:
        update_page()


if __name__ == "__main__":
    main()
