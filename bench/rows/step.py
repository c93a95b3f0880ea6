"""Time of one step on the same objective: a peer's loop and ours, alternating in one process (PyTorch's in its own).

.venv/bin/python -m bench.rows.step keras --size 256
.venv/bin/python -m bench.rows.step tutorial --size 256
.venv/bin/python -m bench.rows.step torch --size 256 --python /somewhere/with/torch/bin/python
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from bench import ours
from bench.peers.loop import Loop, load_resized
from bench.rows.row import ROOT, Row, build_ratio_row, list_precisions, main, time_alternating, write_samples
from nst_tasks.engine.devices import DEFAULT_GPU_BATCH_SIZE
from nst_tasks.inputs import weights

LOSS_TOLERANCE = 1e-3
"""Maximum relative difference between the first losses of two sides with the same objective, in float32."""


def keras(size: int = 256, rounds: int = 9) -> list[Row]:
    """Measure the Keras example's loop, which runs content and style through the network at every step."""
    from bench.peers import keras_example

    return _compare_in_one_process(keras_example, "keras-io", "Keras example's loop", size, rounds, (3.0, 5.0), stretch=True)


def tutorial(size: int = 256, rounds: int = 9) -> list[Row]:
    """Measure the TensorFlow tutorial's loop."""
    from bench.peers import tensorflow_tutorial

    return _compare_in_one_process(tensorflow_tutorial, "tf-tutorial", "TensorFlow tutorial's loop", size, rounds, (1.05, 1.7))


def torch(size: int = 256, rounds: int = 5, python: Path = Path(sys.executable)) -> list[Row]:
    """Measure the PyTorch neural-style loop, a process each round, its mean step against ours."""
    steps, theirs = 10, []
    seconds_by_precision: dict[str, list[float]] = {each: [] for each in list_precisions()}
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_samples(Path(folder))
        files = [str(pictures["astronaut"]), str(pictures["swirls"])]
        command = [str(python), "-m", "bench.peers.neural_style_torch", *files, f"{folder}/out.png"]
        command += ["--size", str(size), "--steps", str(steps)]
        content, style = (load_resized(file, size) for file in files)
        mine = {
            each: ours.start(ours.build_backbone(), ours.build_method("neural-style", each), content, style)
            for each in list_precisions()
        }
        first = float(mine["float32"].advance(1)[0])
        for each in list_precisions()[1:]:
            mine[each].advance(1)
        for _ in range(rounds):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr.strip())
            check_same_loss(first, _extract_number(r"step 0: loss (\S+)", done.stdout))
            theirs.append(_extract_number(r"(\S+) seconds a step", done.stdout))
            for each, side in mine.items():
                rest = time_alternating(steps, {each: lambda side=side: side.advance(1)})
                seconds_by_precision[each].append(statistics.mean(rest[each]))
    return [
        build_ratio_row(f"one step, {size} px, {each}", "PyTorch neural-style loop", None, theirs, seconds_by_precision[each])
        for each in list_precisions()
    ]


def _extract_number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1])


def _compare_in_one_process(
    peer: ModuleType, recipe: str, name: str, size: int, rounds: int, goals: tuple[float, float], stretch: bool = False
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_samples(Path(folder))
        content = load_resized(str(pictures["astronaut"]), size)
        style = load_resized(str(pictures["swirls"]), size, content.shape[:2] if stretch else None)
    loop: Loop = peer.start(weights.load(weights.DEFAULT_BACKBONE, None), content, style)
    batch = {each: 1 for each in list_precisions()}
    if tf.config.list_physical_devices("GPU"):  # on a GPU a run computes pairs in batches of this size
        batch |= {f"{each}, a pair of {DEFAULT_GPU_BATCH_SIZE}": DEFAULT_GPU_BATCH_SIZE for each in list_precisions()}
    mine = {
        name: ours.start(ours.build_backbone(), ours.build_method(recipe, name.partition(",")[0]), content, style, pairs=pairs)
        for name, pairs in batch.items()
    }
    check_same_loss(float(mine["float32"].advance(1)[0]), float(loop.step()))
    steps = ours.choose_steps_per_round(size)

    def theirs() -> None:
        for _ in range(steps):
            loss = loop.step()
        float(loss)

    sides: dict[str, Callable[[], object]] = {name: theirs}
    sides |= {each: lambda side=side: side.advance(steps) for each, side in mine.items()}
    seconds_by_side = {
        side: [value / steps / batch.get(side, 1) for value in values]
        for side, values in time_alternating(rounds, sides).items()
    }
    goal_of = dict(zip(("float32", "mixed"), goals, strict=True))
    return [
        build_ratio_row(
            f"one step, {size} px, {each}", name, goal_of[each.partition(",")[0]], seconds_by_side[name], seconds_by_side[each]
        )
        for each in mine
    ]


def check_same_loss(mine: float, theirs: float) -> None:
    """Exit with a message if the two first losses are not of the same objective."""
    if not abs(mine - theirs) <= LOSS_TOLERANCE * abs(theirs):
        sys.exit(f"not the same objective: our first loss is {mine:.6g}, theirs {theirs:.6g}")


if __name__ == "__main__":
    main(keras, tutorial, torch)
