"""Time of one step on the same objective: a peer's loop and ours in turns.

.venv/bin/python -m bench rows.step keras --size 256
.venv/bin/python -m bench rows.step tutorial --size 256
.venv/bin/python -m bench rows.step torch --size 256 --python /somewhere/with/torch/bin/python

Both run in one process, except PyTorch's loop, which has its own.
"""

from __future__ import annotations

import functools
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import tensorflow as tf

from bench import ours
from bench.peers.loop import Loop, load_resized
from bench.processes import ROOT
from bench.row import Row, build_ratio_row, list_precisions, run_commands, time_alternating
from bench.samples import write_samples
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
    steps = 10
    theirs: list[float] = []
    mine: dict[str, list[float]] = {precision: [] for precision in list_precisions()}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_samples(Path(folder))
        pair = [str(paths["astronaut"]), str(paths["swirls"])]
        command = [str(python), "-m", "bench", "peers.neural_style_torch", *pair, f"{folder}/out.png"]
        command += ["--size", str(size), "--steps", str(steps)]
        content, style = (load_resized(path, size) for path in pair)
        loops = {
            precision: ours.start(ours.build_backbone(), ours.build_method("neural-style", precision), content, style)
            for precision in mine
        }
        first_losses = {precision: float(loop.advance(1)[0]) for precision, loop in loops.items()}  # traces the graphs
        for _ in range(rounds):
            process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if process.returncode:
                sys.exit(process.stderr.strip())
            check_same_loss(first_losses["float32"], _extract_number(r"step 0: loss (\S+)", process.stdout))
            theirs.append(_extract_number(r"(\S+) seconds a step", process.stdout))
            for precision, loop in loops.items():
                seconds = time_alternating(steps, {precision: functools.partial(loop.advance, 1)})
                mine[precision].append(statistics.mean(seconds[precision]))
    return [
        build_ratio_row(f"one step, {size} px, {precision}", "PyTorch neural-style loop", None, theirs, seconds)
        for precision, seconds in mine.items()
    ]


def _extract_number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match is not None, text
    return float(match[1])


def _compare_in_one_process(
    peer: ModuleType, recipe: str, name: str, size: int, rounds: int, goals: tuple[float, float], stretch: bool = False
) -> list[Row]:
    """Return the rows of a peer whose steps alternate with ours, one for each precision and batch size.

    Args:
        peer: Module with a function `start`.
        recipe: Our recipe of the same objective.
        name: Name of the peer in the table.
        goals: Minimum ratios of its time to ours, in float32 and in mixed precision.
        stretch: Resize the style to the content's shape.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = write_samples(Path(folder))
        content = load_resized(paths["astronaut"], size)
        style = load_resized(paths["swirls"], size, content.shape[:2] if stretch else None)
    loop: Loop = peer.start(weights.load(weights.DEFAULT_BACKBONE, None), content, style)
    batch_sizes = dict.fromkeys(list_precisions(), 1)
    if tf.config.list_physical_devices("GPU"):  # on a GPU a run computes pairs in batches of this size
        batch_sizes |= {f"{each}, a pair of {DEFAULT_GPU_BATCH_SIZE}": DEFAULT_GPU_BATCH_SIZE for each in list_precisions()}
    mine = {
        side: ours.start(ours.build_backbone(), ours.build_method(recipe, side.partition(",")[0]), content, style, pairs=pairs)
        for side, pairs in batch_sizes.items()
    }
    check_same_loss(float(mine["float32"].advance(1)[0]), float(loop.step()))
    steps = ours.choose_steps_per_round(size)

    def step_peer() -> None:
        for _ in range(steps):
            loss = loop.step()
        float(loss)

    sides: dict[str, Callable[[], object]] = {name: step_peer}
    sides |= {side: functools.partial(transfer.advance, steps) for side, transfer in mine.items()}
    seconds_per_pair = {
        side: [value / steps / batch_sizes.get(side, 1) for value in values]
        for side, values in time_alternating(rounds, sides).items()
    }
    goal_by_precision = dict(zip(("float32", "mixed"), goals, strict=True))
    return [
        build_ratio_row(
            f"one step, {size} px, {side}",
            name,
            goal_by_precision[side.partition(",")[0]],
            seconds_per_pair[name],
            seconds_per_pair[side],
        )
        for side in mine
    ]


def check_same_loss(mine: float, theirs: float) -> None:
    """Exit with a message if the two first losses are not of the same objective."""
    if not abs(mine - theirs) <= LOSS_TOLERANCE * abs(theirs):
        sys.exit(f"not the same objective: our first loss is {mine:.6g}, theirs {theirs:.6g}")


def main(arguments: Sequence[str]) -> None:
    """Measure the rows of one command."""
    run_commands(__name__, arguments, keras, tutorial, torch)
