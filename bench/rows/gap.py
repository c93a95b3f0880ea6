"""Wall time to the style gap that `painterly` closes, with content kept as well: against `wasserstein`'s published schedule.

    .venv/bin/python -m bench.rows.gap wasserstein --size 256

`painterly` runs to its end; the target is the style gap of its image on held-out layers and its content cosine. `wasserstein`
is the recipe of that name in float32: published constants and schedule, our code. Its image is measured every few steps,
untimed; its time is that of the first measurement at which both numbers reach the target. If none does, its total time is used,
which underestimates the true one. Graphs are traced before.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from bench import ours
from bench.peers.loop import load_resized
from bench.rows.row import Row, build_ratio_row, list_precisions, main, write_samples
from nst_tasks.core import metrics, transfer
from nst_tasks.core.method import Method
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.core.vgg import Backbone
from nst_tasks.images.picture import Picture
from nst_tasks.images.resize import fit_size, resize

PAIRS = (("astronaut", "swirls"), ("rocket", "stipple"), ("chelsea", "dunes"))


def wasserstein(size: int = 256, pairs: int = len(PAIRS), every: int = 50, shorten: int = 1) -> list[Row]:
    """Compare `painterly` in each precision with `wasserstein`, measured every `every` steps; `shorten` divides their steps."""
    names, network = list_precisions(), ours.build_backbone()
    theirs: dict[str, list[float]] = {name: [] for name in names}
    alone: dict[str, list[float]] = {name: [] for name in names}
    mine: dict[str, list[float]] = {name: [] for name in names}
    notes: dict[str, list[str]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_samples(Path(folder))
        for content_name, style_name in PAIRS[:pairs]:
            content, style = (load_resized(str(pictures[name]), size) for name in (content_name, style_name))
            reached = {}
            for name in names:
                method = ours.build_method("painterly", name)
                for _ in range(2):  # the first round traces the graphs
                    *_, (spent, image) = run_timed_transfer(network, method, content, style, 10**9, shorten)
                mine[name].append(spent)
                reached[name] = measure_quality(network, image, content, style)
            published = ours.build_method("wasserstein", "float32")
            next(run_timed_transfer(network, published, content, style, 1, shorten))
            seen = []
            for spent, image in run_timed_transfer(network, published, content, style, every, shorten):
                seen.append((spent, measure_quality(network, image, content, style)))
                if all(seen[-1][1][k] >= max(goal[k] for goal in reached.values()) for k in (0, 1)):
                    break  # later images are not needed
            for name, (gap, cosine) in reached.items():
                alone[name].append(next((spent for spent, (its_gap, _) in seen if its_gap >= gap), seen[-1][0]))
                in_time = [spent for spent, (its_gap, its_cosine) in seen if its_gap >= gap and its_cosine >= cosine]
                theirs[name].append(in_time[0] if in_time else seen[-1][0])
                last = seen[-1][1]
                end = "" if in_time else f", never: ended at {last[0]:.3f} and {last[1]:.3f}"
                notes[name].append(f"{content_name} x {style_name} gap {gap:.3f} and cosine {cosine:.3f}{end}")
    against = "wasserstein's published schedule"
    work = f"to painterly's held-out style gap, {size} px"
    return [
        *(
            build_ratio_row(
                f"{work}, at no less content, {name}", against, 3.0, theirs[name], mine[name], "; ".join(notes[name])
            )
            for name in names
        ),
        *(build_ratio_row(f"{work}, whatever the content, {name}", against, None, alone[name], mine[name]) for name in names),
    ]  # fmt: skip


def run_timed_transfer(
    network: Backbone, method: Method, content: np.ndarray, style: np.ndarray, every: int, shorten: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the seconds so far and the image (H, W, 3), after each `every` steps and at the end of each level.

    Time that the caller spends between two images does not count.
    """
    spent, began = 0.0, time.perf_counter()
    state = image = None
    for level in plan_levels(method, *content.shape[:2]):
        shown = resize(Picture(content, None), level.height, level.width).rgb
        shape = fit_size(*style.shape[:2], max(level.height, level.width), upscale=True)
        side = ours.start(network, method, shown, resize(Picture(style, None), *shape).rgb)
        if state is not None:
            side.state = transfer.start_next_level(method, state, image, level)
        left = max(1, level.steps // shorten)
        while left:
            side.advance(min(every, left))
            left -= min(every, left)
            spent += time.perf_counter() - began
            began = time.perf_counter()
            image, _ = transfer.compute_result(side.backbone, method, side.targets, side.state)
            ending = time.perf_counter() - began
            yield spent + ending, np.clip(image.numpy()[0], 0.0, 1.0)
            spent += 0.0 if left else ending  # computing the image is part of a level's end only
            began = time.perf_counter()
        state = side.state


def measure_quality(network: Backbone, out: np.ndarray, content: np.ndarray, style: np.ndarray) -> tuple[float, float]:
    """Return the share of the style gap closed on held-out layers, and the content cosine."""
    content, style = (_resize_for_quality(picture) for picture in (content, style))
    out = resize(Picture(out, None), *content.shape[:2]).rgb  # the image of a coarser level is smaller
    numbers = metrics.measure(
        network, (), out, metrics.content_moments(network, content, ()), [metrics.style_moments(network, style, ())], [1.0]
    )
    assert numbers.held_out is not None and numbers.content_cosine is not None
    return numbers.held_out, numbers.content_cosine


def _resize_for_quality(picture: np.ndarray) -> np.ndarray:
    """Resize an image to the size at which quality is measured."""
    shape = fit_size(*picture.shape[:2], metrics.COMPARISON_SIDE_PIXELS, upscale=False)
    return resize(Picture(picture, None), *shape).rgb


if __name__ == "__main__":
    main(wasserstein)
