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
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from nst_tasks import checkpoint, hardware, presets, resume, weights
from nst_tasks.checkpoint import Checkpoint
from nst_tasks.core import backbones, transfer

STEPS = 4
"""Steps per measurement."""


def measure(recipe: str, size: int, rounds: int, folder: str) -> None:
    """Measure one recipe and print its line."""
    method = presets.find(recipe).method
    backbone = backbones.build("vgg16-hed", weights.load("vgg16-hed", None), turns=hardware.turns())
    contents = np.random.default_rng(0).random((1, size, size, 3), np.float32)
    style = transfer.style_statistics(backbone, method, contents[0, ::-1])
    targets = transfer.targets(backbone, method, contents, [[style]], [[1.0]])
    state, terms = transfer.advance(backbone, method, targets, transfer.start(method, contents, [0]), STEPS, 10_000)
    at = Checkpoint(state, state.image, (terms,), (np.zeros(STEPS + 1),))

    began = time.perf_counter()
    data = checkpoint.encode(checkpoint.on_host(at), "0" * 64)
    Path(folder, "one.npz").write_bytes(data)
    alone = time.perf_counter() - began

    ratios = []
    for _ in range(rounds):
        took: dict[bool, float] = {}
        for writing in (False, True):
            with resume.Saver(folder, print) as saver:
                began = time.perf_counter()
                for _ in range(STEPS):
                    state, _ = transfer.advance(backbone, method, targets, state, 1, 10_000)
                    if writing and saver.idle:
                        saver.save(["0" * 64], Checkpoint(state, at.first, at.terms, at.seconds))
                took[writing] = (time.perf_counter() - began) / STEPS
        ratios.append(took[True] / took[False])
    print(
        f"{recipe:12} {size} px: {len(data) / 1e6:6.1f} MB, {alone:5.2f} s to encode and write; a step {took[False]:5.2f} s, "
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
