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
from bench.rows.row import Row, alternating, main, precisions, ratio, seconds
from nst_tasks import images, weights
from nst_tasks.core import lbfgs, transfer
from nst_tasks.core.backbones import Backbone
from nst_tasks.core.method import LBFGS, Method, Pyramid
from nst_tasks.core.pyramid import levels
from nst_tasks.images import Picture

BETWEEN = 2
"""Evaluations between two checks of the loss."""

HALF = Pyramid(smallest=32, ratio=2.0, coarse_steps=150, levels=2)


def tutorial(size: int = 256, steps: int = 1000, rounds: int = 3, most: int = 400) -> list[Row]:
    """Compare the tutorial's 1,000 steps of Adam with our L-BFGS, limited to `most` evaluations."""
    content, style = ours.pair(size)
    loop = tensorflow_tutorial.start(weights.load(weights.DEFAULT, None), content, style)
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

    rows, network = [], ours.backbone()
    for precision in precisions():
        method = replace(ours.method("tf-tutorial", precision), optimizer=LBFGS(history=20), pyramid=HALF)
        work = f"to the loss of {steps} steps of Adam, {size} px, L-BFGS {precision}, from half size"
        needed = search(network, method, content, style, loop, target, most)
        if needed.evaluations is None:
            bound = adam / needed.seconds
            note = f"less than that: {most} evaluations come to {needed.loss:.4g}, Adam to {target:.4g} from {first:.4g}"
            rows.append(Row(work, "TensorFlow tutorial's loop", 20.0, bound, bound, bound, "x", note))
            continue
        mine = functools.partial(transferred, network, method, content, style, needed.evaluations)
        taken = alternating(rounds, {"theirs": theirs, "mine": mine})
        whole = [value * steps / stretch for value in taken["theirs"]]
        note = f"{needed.evaluations} evaluations after {HALF.coarse_steps} of a quarter to {target:.4g} from {first:.4g}"
        note += f"; the {steps} steps themselves took {seconds(adam)}"
        rows.append(ratio(work, "TensorFlow tutorial's loop", 20.0, whole, taken["mine"], note))
    return rows


def transferred(network: Backbone, method: Method, content: np.ndarray, style: np.ndarray, evaluations: int) -> np.ndarray:
    """Return the best image (H, W, 3) after the coarser level and this many evaluations at full size."""
    side = started(network, method, content, style)
    side.advance(evaluations)
    return best(side)


class Search(NamedTuple):
    """Result of a search for the number of evaluations.

    Attributes:
        evaluations: Evaluations at full size until the target was reached; None if it was not.
        loss: Loss at the last check.
        seconds: Time of the evaluations at full size, without the checks.
    """

    evaluations: int | None
    loss: float
    seconds: float


def search(
    network: Backbone, method: Method, content: np.ndarray, style: np.ndarray, loop: Loop, target: float, most: int
) -> Search:
    """Count the evaluations until the peer's own loss function reaches the target, at most `most`."""
    side, taken, loss = started(network, method, content, style), 0.0, math.inf
    for evaluations in range(BETWEEN, most + 1, BETWEEN):
        began = time.perf_counter()
        side.advance(BETWEEN)
        taken += time.perf_counter() - began
        loss = loop.loss(best(side))
        if loss <= target:
            return Search(evaluations, loss, taken)
    return Search(None, loss, taken)


def started(network: Backbone, method: Method, content: np.ndarray, style: np.ndarray) -> ours.Ours:
    """Return the transfer at full size before its first step, after its coarser levels."""
    side: ours.Ours | None = None
    for level in levels(method, *content.shape[:2]):
        shape = images.fit(*style.shape[:2], max(level.height, level.width), upscale=True)
        shown = images.resize(Picture(content, None), level.height, level.width).rgb
        following = ours.start(network, method, shown, images.resize(Picture(style, None), *shape).rgb)
        if side is not None:
            side.advance(method.pyramid.coarse_steps if method.pyramid else 0)
            following.state = transfer.ascend(method, side.state, tf.constant(best(side)[None]), level)
        side = following
    assert side is not None
    return side


def best(side: ours.Ours) -> np.ndarray:
    """Return the evaluated image (H, W, 3) with the lowest loss."""
    image: np.ndarray = lbfgs.best(side.state.optimizer)[0].numpy()[0]
    return image


if __name__ == "__main__":
    main(tutorial)
