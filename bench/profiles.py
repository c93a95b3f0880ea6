"""Profile of a step by kind of operation, and of a run of a small manifest by phase.

    .venv/bin/python -m bench profiles              # both, into bench/results and docs/speed.md
    .venv/bin/python -m bench profiles --quick --keep /tmp/profile.json

The operations of a step come from TensorFlow's profiler, summed over threads. The run is sampled by `python -m bench phases`.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import ours
from bench.page import format_profile, update_page
from bench.phases import IMPORTS, PHASES, REST, TRACING
from bench.processes import BENCH, ROOT, build_environment, create_parser
from bench.results import describe_machine, get_commit, get_date, get_results_path
from bench.row import list_precisions
from bench.samples import write_grid

OPERATION_KINDS = (
    ("convolutions, both ways", r"Conv2D"),  # a pass may use the other's operation: see `core.convolutions`
    ("Gram matrices and their gradients", r"MatMul|Einsum"),
    ("pooling, both ways", r"Pool"),
    ("casts, copies, layout", r"Cast|Transpose|Reshape|Concat|Pad|Slice|Pack|Copy|Identity|ToTf|Quantize"),
    ("optimizer and everything element by element", r""),
)
"""Kinds of operations and patterns of TensorFlow operation types; the first matching pattern determines an operation's kind."""

STEP = "a step, by the clock"


def profile_step(size: int, steps: int) -> list[dict[str, object]]:
    """Return milliseconds of a `tf-tutorial` step: a row for each kind of operation, with a column for each precision.

    The last row is the median wall time.
    """
    content, style = ours.load_pair(size)
    columns: dict[str, Counter[str]] = {}
    for precision in list_precisions():
        transfer = ours.start(ours.build_backbone(), ours.build_method("tf-tutorial", precision), content, style)
        transfer.advance(2)  # traces the graph
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            transfer.advance(1)
            seconds.append(time.perf_counter() - start)
        columns[precision] = trace_operations(lambda transfer=transfer: transfer.advance(steps), steps)
        columns[precision][STEP] = 1e3 * statistics.median(seconds)
    names = [*(name for name, _ in OPERATION_KINDS), STEP]
    return [{"operation": name, **{each: round(columns[each][name], 3) for each in columns}} for name in names]


def trace_operations(call: Callable[[], object], steps: int) -> Counter[str]:
    """Return the milliseconds per step that each kind of `OPERATION_KINDS` took during a call, summed over threads."""
    import tensorflow as tf  # by now imported by `ours`, as nst imports it
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
        manifest, _ = write_grid(folder, contents, styles)
        environment, file = build_environment(folder), folder / "phases.json"
        command = [*BENCH, "phases", str(file), "run", str(manifest), "--recipe", "tf-tutorial"]
        command += ["--size", str(size), "--steps", str(steps)]
        for out in ("first", "second"):  # the first run creates Prefect's database
            start = time.time()
            subprocess.run([*command, "--out", str(folder / out)], cwd=ROOT, env=environment, capture_output=True, check=True)
            end = time.time()
        sample = json.loads(file.read_text())
    seconds = {"process start": sample["began"] - start, **sample["phases"], "process end": end - sample["ended"]}
    order = ["process start", IMPORTS, REST, TRACING, *(phase for phase, _ in PHASES), "process end"]
    return [{"phase": phase, "seconds": round(seconds.get(phase, 0.0), 2)} for phase in order]


def main(arguments: Sequence[str]) -> None:
    """Measure both profiles, save them and update the page."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="small: whether it runs, not how fast")
    parser.add_argument("--keep", type=Path, help="file for the results, instead of bench/results and the page")
    args = parser.parse_args(arguments)
    size, steps, (contents, styles) = (64, 2, (1, 1)) if args.quick else (256, 50, (2, 2))
    date, machine = get_date(), describe_machine()
    results = {
        "date": date, "commit": get_commit(), "quick": args.quick, "machine": machine, "size": size, "steps": steps,
        "pairs": contents * styles, "step": profile_step(size, 3 if args.quick else 10),
        "manifest": profile_manifest(contents, styles, size, steps),
    }  # fmt: skip
    path = args.keep or get_results_path("profile", date, machine, ".json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(format_profile(path))
    if not args.keep:
        update_page()
