"""Wall time to the loss that the TensorFlow tutorial's Adam reaches, on its own objective and by its own loss function.

    .venv/bin/python -m bench.rows.descent tutorial --size 256 --steps 1000

Ours is L-BFGS on the same objective and from the same content image, with a coarser level at half size, after which it needs
fewer evaluations. Their number is found first, untimed. Then whole transfers of this many evaluations are timed, from images to
image, alternating with stretches of the tutorial's steps. Graphs are traced before the clock starts, on both sides.
"""

from __future__ import annotations

import functools
import math
import os
import time
from dataclasses import replace
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from bench import ours
from bench.peers import tensorflow_tutorial
from bench.peers.loop import Loop
from bench.rows.row import Row, build_ratio_row, format_seconds, list_precisions, main, time_alternating
from nst_tasks.core import lbfgs, transfer
from nst_tasks.core.method import LBFGS, Method, Pyramid
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.core.vgg import Backbone
from nst_tasks.images.picture import Picture
from nst_tasks.images.resize import fit_size, resize
from nst_tasks.inputs import weights

EVALUATIONS_PER_CHECK = 2
"""Evaluations between two checks of the loss."""

HALF_SIZE_PYRAMID = Pyramid(smallest=32, ratio=2.0, coarse_steps=150, levels=2)


def tutorial(size: int = 256, steps: int = 1000, rounds: int = 3, most: int = 400) -> list[Row]:
    """Compare the tutorial's 1,000 steps of Adam with our L-BFGS, limited to `most` evaluations."""
    content, style = ours.load_pair(size)
    loop = tensorflow_tutorial.start(weights.load(weights.DEFAULT_BACKBONE, None), content, style)
    first = float(loop.step())
    began = time.perf_counter()
    for _ in range(steps - 1):
        loop.step()
    reached = loop.image()
    adam = (time.perf_counter() - began) * steps / (steps - 1)
    target = loop.loss(reached)
    stretch = max(1, steps // 40)

    def theirs() -> None:
        for _ in range(stretch):
            loss = loop.step()
        float(loss)

    rows, network = [], ours.build_backbone()
    for precision in list_precisions():
        method = replace(ours.build_method("tf-tutorial", precision), optimizer=LBFGS(history=20), pyramid=HALF_SIZE_PYRAMID)
        work = f"to the loss of {steps} steps of Adam, {size} px, L-BFGS {precision}, from half size"
        needed = count_evaluations(network, method, content, style, loop, target, most)
        if needed.evaluations is None:
            bound = adam / needed.seconds
            note = f"less than that: {most} evaluations come to {needed.loss:.4g}, Adam to {target:.4g} from {first:.4g}"
            rows.append(Row(work, "TensorFlow tutorial's loop", 20.0, bound, bound, bound, "x", note))
            continue
        mine = functools.partial(run_transfer, network, method, content, style, needed.evaluations)
        taken = time_alternating(rounds, {"theirs": theirs, "mine": mine})
        whole = [value * steps / stretch for value in taken["theirs"]]
        steps = HALF_SIZE_PYRAMID.coarse_steps
        note = f"{needed.evaluations} evaluations after {steps} of a quarter to {target:.4g} from {first:.4g}"
        note += f"; the {steps} steps themselves took {format_seconds(adam)}"
        rows.append(build_ratio_row(work, "TensorFlow tutorial's loop", 20.0, whole, taken["mine"], note))
    return rows


def run_transfer(network: Backbone, method: Method, content: np.ndarray, style: np.ndarray, evaluations: int) -> np.ndarray:
    """Return the best image (H, W, 3) after the coarser level and this many evaluations at full size."""
    side = start_at_full_size(network, method, content, style)
    side.advance(evaluations)
    return get_best_image(side)


class SearchResult(NamedTuple):
    """Result of a search for the number of evaluations.

    Attributes:
        evaluations: Evaluations at full size until the target was reached; None if it was not.
        loss: Loss at the last check.
        seconds: Time of the evaluations at full size, without the checks.
    """

    evaluations: int | None
    loss: float
    seconds: float


def count_evaluations(
    network: Backbone, method: Method, content: np.ndarray, style: np.ndarray, loop: Loop, target: float, most: int
) -> SearchResult:
    """Count the evaluations until the peer's own loss function reaches the target, at most `most`."""
    side, seconds_spent, loss = start_at_full_size(network, method, content, style), 0.0, math.inf
    for evaluations in range(EVALUATIONS_PER_CHECK, most + 1, EVALUATIONS_PER_CHECK):
        began = time.perf_counter()
        side.advance(EVALUATIONS_PER_CHECK)
        seconds_spent += time.perf_counter() - began
        loss = loop.loss(get_best_image(side))
        if loss <= target:
            return SearchResult(evaluations, loss, seconds_spent)
    return SearchResult(None, loss, seconds_spent)


def start_at_full_size(network: Backbone, method: Method, content: np.ndarray, style: np.ndarray) -> ours.StartedTransfer:
    """Return the transfer at full size before its first step, after its coarser levels."""
    side: ours.StartedTransfer | None = None
    for level in plan_levels(method, *content.shape[:2]):
        shape = fit_size(*style.shape[:2], max(level.height, level.width), upscale=True)
        shown = resize(Picture(content, None), level.height, level.width).rgb
        following = ours.start(network, method, shown, resize(Picture(style, None), *shape).rgb)
        if side is not None:
            side.advance(method.pyramid.coarse_steps if method.pyramid else 0)
            following.state = transfer.start_next_level(method, side.state, tf.constant(get_best_image(side)[None]), level)
        side = following
    assert side is not None
    return side


def get_best_image(side: ours.StartedTransfer) -> np.ndarray:
    """Return the evaluated image (H, W, 3) with the lowest loss."""
    image: np.ndarray = lbfgs.best(side.state.optimizer)[0].numpy()[0]
    return image


if __name__ == "__main__":
    main(tutorial)
