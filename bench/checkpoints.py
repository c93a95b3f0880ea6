"""Cost of checkpoints: their size, and how much longer a step takes while they are written.

    .venv/bin/python -m bench checkpoints [SIZE [ROUNDS]]

Steps with and without checkpoints alternate in one process. The worst case is measured: each checkpoint starts as soon as the
last one is on disk. By default a run writes one every 30 seconds, so that its cost is much smaller.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench import ours
from bench.processes import create_parser
from nst_tasks.core import transfer
from nst_tasks.engine import checkpoint, checkpoint_store
from nst_tasks.engine.checkpoint import Checkpoint, PairHistory

STEPS_PER_MEASUREMENT = 4

STEPS_PER_LEVEL = 10_000
"""More than are run, so that the level never ends."""

KEY = "0" * 64


def measure(recipe: str, size: int, rounds: int, folder: str) -> None:
    """Measure one recipe and print its line."""
    content = np.random.default_rng(0).random((size, size, 3), np.float32)
    loop = ours.start(ours.build_backbone(), ours.build_method(recipe, "float32"), content, content[::-1])
    terms = _advance(loop, STEPS_PER_MEASUREMENT)
    seconds = np.zeros(STEPS_PER_MEASUREMENT + 1)
    level_start_image = loop.state.image

    def build_checkpoint() -> Checkpoint:
        return Checkpoint(loop.state, level_start_image, (PairHistory((terms[:, 0],), (seconds,)),))

    start = time.perf_counter()
    data = checkpoint.encode(checkpoint.to_host(build_checkpoint()), KEY)
    Path(folder, "one.npz").write_bytes(data)
    write_seconds = time.perf_counter() - start

    step_seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for writes in (False, True):
            with checkpoint_store.CheckpointWriter(folder, print) as writer:
                start = time.perf_counter()
                for _ in range(STEPS_PER_MEASUREMENT):
                    _advance(loop, 1)
                    if writes and writer.is_idle:
                        writer.save([KEY], build_checkpoint())
                step_seconds[writes].append((time.perf_counter() - start) / STEPS_PER_MEASUREMENT)
    ratios = [with_checkpoint / without for without, with_checkpoint in zip(*step_seconds.values(), strict=True)]
    print(
        f"{recipe:12} {size} px: {len(data) / 1e6:6.1f} MB, {write_seconds:5.2f} s to encode and write; "
        f"a step {statistics.median(step_seconds[False]):5.2f} s, "
        f"with one always being written {statistics.median(ratios):.3f} times as long (of {rounds}: {min(ratios):.3f} to "
        f"{max(ratios):.3f})",
        flush=True,
    )


def _advance(loop: ours.Transfer, steps: int) -> np.ndarray:
    """Run this many steps of the level and return their terms, (steps, 1, 3)."""
    loop.state, terms = transfer.advance(loop.backbone, loop.method, loop.targets, loop.state, steps, STEPS_PER_LEVEL)
    return terms


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("size", type=int, nargs="?", default=256, help="side of the image, in pixels")
    parser.add_argument("rounds", type=int, nargs="?", default=7)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in ("tf-tutorial", "painterly"):
            measure(recipe, args.size, args.rounds, folder)
