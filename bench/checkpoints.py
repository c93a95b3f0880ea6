"""Cost of checkpoints: their size, and the time of a step while checkpoints are written, relative to a step without any.

    .venv/bin/python bench/checkpoints.py [SIZE [ROUNDS]]

Steps with and without checkpoints alternate in one process. The worst case is measured: each checkpoint starts as soon as the
last one is on disk. By default a run writes one every 30 seconds, so that its cost is much smaller.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from nst_tasks.core import transfer, vgg
from nst_tasks.engine import checkpoint, checkpoint_store
from nst_tasks.engine.checkpoint import Checkpoint, PairHistory
from nst_tasks.engine.hardware import detect_flipped_direction
from nst_tasks.inputs import presets, weights

STEPS_PER_MEASUREMENT = 4
"""Steps per measurement."""


def measure(recipe: str, size: int, rounds: int, folder: str) -> None:
    """Measure one recipe and print its line."""
    method = presets.find_preset(recipe).method
    backbone = vgg.build("vgg16-hed", weights.load("vgg16-hed", None), flipped_direction=detect_flipped_direction())
    contents = np.random.default_rng(0).random((1, size, size, 3), np.float32)
    style = transfer.style_statistics(backbone, method, contents[0, ::-1])
    targets = transfer.build_targets(backbone, method, contents, [[style]], [[1.0]])
    state, terms = transfer.advance(
        backbone, method, targets, transfer.start(method, contents, [0]), STEPS_PER_MEASUREMENT, 10_000
    )
    history = PairHistory((terms[:, 0],), (np.zeros(STEPS_PER_MEASUREMENT + 1),))
    checkpoint_to_save = Checkpoint(state, state.image, (history,))

    began = time.perf_counter()
    data = checkpoint.encode(checkpoint.to_host(checkpoint_to_save), "0" * 64)
    Path(folder, "one.npz").write_bytes(data)
    write_seconds = time.perf_counter() - began

    ratios = []
    for _ in range(rounds):
        seconds_per_step: dict[bool, float] = {}
        for writing in (False, True):
            with checkpoint_store.CheckpointWriter(folder, print) as saver:
                began = time.perf_counter()
                for _ in range(STEPS_PER_MEASUREMENT):
                    state, _ = transfer.advance(backbone, method, targets, state, 1, 10_000)
                    if writing and saver.is_idle:
                        saver.save(["0" * 64], replace(checkpoint_to_save, state=state))
                seconds_per_step[writing] = (time.perf_counter() - began) / STEPS_PER_MEASUREMENT
        ratios.append(seconds_per_step[True] / seconds_per_step[False])
    print(
        f"{recipe:12} {size} px: {len(data) / 1e6:6.1f} MB, {write_seconds:5.2f} s to encode and write; "
        f"a step {seconds_per_step[False]:5.2f} s, "
        f"with one always being written {statistics.median(ratios):.3f} times as long (of {rounds}: {min(ratios):.3f} to "
        f"{max(ratios):.3f})",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    size, rounds = (int(given) if given else usual for given, usual in zip([*sys.argv[1:], "", ""], (256, 7), strict=False))
    with tempfile.TemporaryDirectory() as folder:
        for recipe in ("tf-tutorial", "painterly"):
            measure(recipe, size, rounds, folder)


if __name__ == "__main__":
    main()
