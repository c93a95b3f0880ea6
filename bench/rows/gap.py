"""Wall time to the style gap and content of `painterly`, against `wasserstein`'s published schedule.

    .venv/bin/python -m bench rows.gap wasserstein --size 256

`painterly` runs to its end; the target is the style gap of its image on held-out layers and its content cosine. `wasserstein`
is the recipe of that name in float32: published constants and schedule, our code. Its image is measured every few steps,
untimed; its time is that of the first measurement at which both numbers reach the target. If none does, its total time is used,
which underestimates the true one. Graphs are traced before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import ours
from bench.peers.loop import load_resized
from bench.row import Row, build_ratio_row, list_precisions, run_commands
from bench.samples import write_samples
from nst_tasks.core import metrics, transfer
from nst_tasks.core.method import Method
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.core.vgg import Backbone
from nst_tasks.images.picture import Picture
from nst_tasks.images.resize import fit_size, resize

PAIRS = (("astronaut", "swirls"), ("rocket", "stipple"), ("chelsea", "dunes"))


def wasserstein(size: int = 256, pairs: int = len(PAIRS), every: int = 50, shorten: int = 1) -> list[Row]:
    """Compare `painterly` in each precision with `wasserstein`, measured every `every` steps; `shorten` divides their steps."""
    comparisons: dict[str, list[Comparison]] = {precision: [] for precision in list_precisions()}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_samples(Path(folder))
        for content_name, style_name in PAIRS[:pairs]:
            content, style = (load_resized(paths[name], size) for name in (content_name, style_name))
            for precision, comparison in _compare_pair(content, style, every, shorten).items():
                comparisons[precision].append(comparison._replace(note=f"{content_name} x {style_name} {comparison.note}"))
    against = "wasserstein's published schedule"
    work = f"to painterly's held-out style gap, {size} px"
    rows, gap_only_rows = [], []
    for precision, results in comparisons.items():
        mine = [comparison.painterly for comparison in results]
        theirs = [comparison.wasserstein for comparison in results]
        theirs_gap_only = [comparison.wasserstein_gap_only for comparison in results]
        note = "; ".join(comparison.note for comparison in results)
        rows.append(build_ratio_row(f"{work}, at no less content, {precision}", against, 3.0, theirs, mine, note))
        gap_only_rows.append(
            build_ratio_row(f"{work}, whatever the content, {precision}", against, None, theirs_gap_only, mine)
        )
    return rows + gap_only_rows


class Comparison(NamedTuple):
    """Seconds of both recipes on one pair.

    Attributes:
        painterly: Seconds of the whole transfer, whose style gap and content cosine are the target.
        wasserstein: Seconds to the target, or of the whole transfer if it never gets there.
        wasserstein_gap_only: The same to the style gap alone.
        note: Target, and end of `wasserstein` if it never gets there.
    """

    painterly: float
    wasserstein: float
    wasserstein_gap_only: float
    note: str


def _compare_pair(content: np.ndarray, style: np.ndarray, every: int, shorten: int) -> dict[str, Comparison]:
    """Return the comparison on one pair for each precision of `painterly`."""
    backbone = ours.build_backbone()
    targets: dict[str, tuple[float, tuple[float, float]]] = {}
    for precision in list_precisions():
        method = ours.build_method("painterly", precision)
        for _ in range(2):  # the first round traces the graphs
            *_, (seconds, image) = run_timed_transfer(backbone, method, content, style, 10**9, shorten)
        targets[precision] = seconds, measure_quality(backbone, image, content, style)
    method = ours.build_method("wasserstein", "float32")
    next(run_timed_transfer(backbone, method, content, style, 1, shorten))  # traces the graphs
    points: list[tuple[float, tuple[float, float]]] = []
    for seconds, image in run_timed_transfer(backbone, method, content, style, every, shorten):
        points.append((seconds, measure_quality(backbone, image, content, style)))
        if all(_reaches(points[-1][1], target) for _, target in targets.values()):
            break  # later images are not needed
    end, (end_gap, end_cosine) = points[-1]
    comparisons = {}
    for precision, (seconds, target) in targets.items():
        gap, cosine = target
        full = next((moment for moment, quality in points if _reaches(quality, target)), None)
        gap_only = next((moment for moment, quality in points if quality[0] >= gap), end)
        note = f"gap {gap:.3f} and cosine {cosine:.3f}"
        note += "" if full is not None else f", never: ended at {end_gap:.3f} and {end_cosine:.3f}"
        comparisons[precision] = Comparison(seconds, end if full is None else full, gap_only, note)
    return comparisons


def _reaches(quality: tuple[float, float], target: tuple[float, float]) -> bool:
    """Return whether both numbers of `measure_quality` are at least the target's."""
    return quality[0] >= target[0] and quality[1] >= target[1]


def run_timed_transfer(
    backbone: Backbone, method: Method, content: np.ndarray, style: np.ndarray, every: int, shorten: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the seconds so far and the image (H, W, 3), after each `every` steps and at the end of each level.

    Time that the caller spends between two images does not count.
    """
    seconds, start = 0.0, time.perf_counter()
    state = image = None
    for level in plan_levels(method, *content.shape[:2]):
        level_content = resize(Picture(content, None), level.height, level.width).rgb
        style_shape = fit_size(*style.shape[:2], max(level.height, level.width), upscale=True)
        loop = ours.start(backbone, method, level_content, resize(Picture(style, None), *style_shape).rgb)
        if state is not None:
            loop.state = transfer.start_next_level(method, state, image, level)
        steps_left = max(1, level.steps // shorten)
        while steps_left:
            steps = min(every, steps_left)
            loop.advance(steps)
            steps_left -= steps
            seconds += time.perf_counter() - start
            start = time.perf_counter()
            image, _ = transfer.compute_result(loop.backbone, method, loop.targets, loop.state)
            result_seconds = time.perf_counter() - start
            yield seconds + result_seconds, np.clip(image.numpy()[0], 0.0, 1.0)
            seconds += 0.0 if steps_left else result_seconds  # computing the image is part of a level's end only
            start = time.perf_counter()
        state = loop.state


def measure_quality(backbone: Backbone, out: np.ndarray, content: np.ndarray, style: np.ndarray) -> tuple[float, float]:
    """Return the share of the style gap closed on held-out layers, and the content cosine."""
    content, style = (_resize_for_quality(image) for image in (content, style))
    out = resize(Picture(out, None), *content.shape[:2]).rgb  # the image of a coarser level is smaller
    content_moments = metrics.content_moments(backbone, content, ())
    style_moments = metrics.style_moments(backbone, style, ())
    quality = metrics.measure(backbone, (), out, content_moments, [style_moments], [1.0])
    assert quality.held_out is not None and quality.content_cosine is not None
    return quality.held_out, quality.content_cosine


def _resize_for_quality(image: np.ndarray) -> np.ndarray:
    """Resize an image to the size at which quality is measured."""
    shape = fit_size(*image.shape[:2], metrics.COMPARISON_SIDE_PIXELS, upscale=False)
    return resize(Picture(image, None), *shape).rgb


def main(arguments: Sequence[str]) -> None:
    """Measure the rows of one command."""
    run_commands(__name__, arguments, wasserstein)
