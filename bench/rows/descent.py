"""Wall time to the loss that the TensorFlow tutorial's Adam reaches, by its own loss function.

    .venv/bin/python -m bench rows.descent tutorial --size 256 --steps 1000

Ours is L-BFGS on the same objective and from the same content image, with a coarser level at half size, after which it needs
fewer evaluations. Their number is found first, untimed. Then whole transfers of this many evaluations are timed, from images to
image, alternating with stretches of the tutorial's steps. Graphs are traced before the clock starts, on both sides.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bench import ours
from bench.peers import tensorflow_tutorial
from bench.peers.loop import Loop
from bench.row import Row, build_ratio_row, format_seconds, list_precisions, run_commands, time_alternating
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
    images = ours.load_pair(size)
    loop = tensorflow_tutorial.start(weights.load(weights.DEFAULT_BACKBONE, None), *images)
    adam, rows = run_peer(loop, steps), []
    for precision in list_precisions():
        method = replace(ours.build_method("tf-tutorial", precision), optimizer=LBFGS(history=20), pyramid=HALF_SIZE_PYRAMID)
        work = f"to the loss of {steps} steps of Adam, {size} px, L-BFGS {precision}, from half size"
        rows.append(compare(work, ours.build_backbone(), method, images, loop, adam, rounds, most))
    return rows


class PeerRun(NamedTuple):
    """Steps of a peer's loop, their time, and the losses before the first and after the last."""

    steps: int
    seconds: float
    first_loss: float
    loss: float


def run_peer(loop: Loop, steps: int) -> PeerRun:
    """Run a peer's loop. The first step traces the graph, and counts as one of the others."""
    first_loss = float(loop.step())
    start = time.perf_counter()
    for _ in range(steps - 1):
        loop.step()
    image = loop.image()
    seconds = (time.perf_counter() - start) * steps / (steps - 1)
    return PeerRun(steps, seconds, first_loss, loop.loss(image))


def compare(
    work: str,
    backbone: Backbone,
    method: Method,
    images: tuple[np.ndarray, np.ndarray],
    peer: Loop,
    adam: PeerRun,
    rounds: int,
    most: int,
) -> Row:
    """Return the row of the peer's time to its last loss, relative to ours.

    Args:
        work: Name of the row.
        images: Content (H, W, 3) and style (h, w, 3).
        peer: Loop that continues, to be timed in turns with ours.
        adam: Its run, whose last loss is the target.
        most: Maximum number of our evaluations.
    """
    against = "TensorFlow tutorial's loop"
    search = count_evaluations(backbone, method, *images, peer, adam.loss, most)
    if search.evaluations is None:
        bound = adam.seconds / search.seconds
        note = f"less than that: {most} evaluations come to {search.loss:.4g}, "
        note += f"Adam to {adam.loss:.4g} from {adam.first_loss:.4g}"
        return Row(work, against, 20.0, bound, bound, bound, "x", note)
    stretch = max(1, adam.steps // 40)

    def run_stretch() -> None:
        for _ in range(stretch):
            loss = peer.step()
        float(loss)

    transfer_all = functools.partial(run_transfer, backbone, method, *images, search.evaluations)
    seconds = time_alternating(rounds, {"theirs": run_stretch, "ours": transfer_all})
    theirs = [value * adam.steps / stretch for value in seconds["theirs"]]
    coarse_steps = method.pyramid.coarse_steps if method.pyramid else 0
    note = f"{search.evaluations} evaluations after {coarse_steps} of a quarter to {adam.loss:.4g} from {adam.first_loss:.4g}"
    note += f"; the {adam.steps} steps themselves took {format_seconds(adam.seconds)}"
    return build_ratio_row(work, against, 20.0, theirs, seconds["ours"], note)


def run_transfer(backbone: Backbone, method: Method, content: np.ndarray, style: np.ndarray, evaluations: int) -> np.ndarray:
    """Return the best image (H, W, 3) after the coarser level and this many evaluations at full size."""
    loop = start_at_full_size(backbone, method, content, style)
    loop.advance(evaluations)
    return get_best_image(loop)


class Search(NamedTuple):
    """Search for the number of evaluations to a target loss.

    Attributes:
        evaluations: Evaluations at full size until the target was reached; None if it was not.
        loss: Loss at the last check.
        seconds: Time of the evaluations at full size, without the checks.
    """

    evaluations: int | None
    loss: float
    seconds: float


def count_evaluations(
    backbone: Backbone, method: Method, content: np.ndarray, style: np.ndarray, peer: Loop, target: float, most: int
) -> Search:
    """Count the evaluations until the peer's own loss function reaches the target, at most `most`."""
    loop, seconds, loss = start_at_full_size(backbone, method, content, style), 0.0, math.inf
    for evaluations in range(EVALUATIONS_PER_CHECK, most + 1, EVALUATIONS_PER_CHECK):
        start = time.perf_counter()
        loop.advance(EVALUATIONS_PER_CHECK)
        seconds += time.perf_counter() - start
        loss = peer.loss(get_best_image(loop))
        if loss <= target:
            return Search(evaluations, loss, seconds)
    return Search(None, loss, seconds)


def start_at_full_size(backbone: Backbone, method: Method, content: np.ndarray, style: np.ndarray) -> ours.Transfer:
    """Return the transfer at full size before its first step, after its coarser levels."""
    previous: ours.Transfer | None = None
    for level in plan_levels(method, *content.shape[:2]):
        style_shape = fit_size(*style.shape[:2], max(level.height, level.width), upscale=True)
        level_content = resize(Picture(content, None), level.height, level.width).rgb
        loop = ours.start(backbone, method, level_content, resize(Picture(style, None), *style_shape).rgb)
        if previous is not None:
            previous.advance(method.pyramid.coarse_steps if method.pyramid else 0)
            image = tf.constant(get_best_image(previous)[None])  # (1, H, W, 3)
            loop.state = transfer.start_next_level(method, previous.state, image, level)
        previous = loop
    assert previous is not None
    return previous


def get_best_image(loop: ours.Transfer) -> np.ndarray:
    """Return the evaluated image (H, W, 3) with the lowest loss."""
    image: np.ndarray = lbfgs.best(loop.state.optimizer)[0].numpy()[0]
    return image


def main(arguments: Sequence[str]) -> None:
    """Measure the rows of one command."""
    run_commands(__name__, arguments, tutorial)
