"""Peak memory of one optimization step, estimated from the method and the image size (measured by bench/memory.py)."""

from __future__ import annotations

from nst_tasks.core.bands import default_limits
from nst_tasks.core.method import LARGE_IMAGE_PIXELS, LBFGS, MIN_SIZE, Method, limit_history

WHOLE_BYTES_PER_PIXEL = 3_000
"""Peak bytes of a step per pixel of an image computed as a whole in float32, with a margin (bench/memory.py)."""


BAND_BYTES_PER_VALUE = 96
"""Peak bytes per value of the single band of features that is in memory at a time, for a large image (core/bands.py)."""


BANDED_BYTES_PER_PIXEL = 490
"""Peak bytes per pixel of an image in bands: the image, its gradient, Adam's moments, the features between two blocks."""


LBFGS_BYTES_PER_PIXEL = 340
"""Peak bytes per pixel that L-BFGS takes besides features and history, for an image of at most `LARGE_IMAGE_PIXELS` pixels."""


LBFGS_UPDATE_BYTES_PER_PIXEL = 420
"""Peak bytes per pixel during an L-BFGS update, besides its history; some of it stays allocated from coarser levels."""


def peak_bytes(method: Method, height: int, width: int, on_gpu: bool = False) -> int:
    """Estimate the peak bytes of one step of one pair of this size, in addition to those of the idle process (bench/memory.py).

    The features of a large image are computed in bands; everything outside the bands takes two thirds with `mixed`. An entry
    of the L-BFGS history is two float32 images, 24 bytes per pixel, and during an update the history exists twice.
    """
    pixels, optimizer = height * width, limit_history(method, height, width).optimizer
    whole, outside = WHOLE_BYTES_PER_PIXEL * pixels, BANDED_BYTES_PER_PIXEL * pixels
    if method.precision == "mixed":
        whole, outside = whole * 2 // 3, outside * 2 // 3
    features = min(whole, BAND_BYTES_PER_VALUE * default_limits(method.precision, on_gpu).max_values + outside)
    if not isinstance(optimizer, LBFGS):
        return features
    history = optimizer.history * 2 * 3 * 4 * pixels
    lbfgs_bytes = LBFGS_BYTES_PER_PIXEL * pixels if pixels <= LARGE_IMAGE_PIXELS else 0
    return max(features + history + lbfgs_bytes, LBFGS_UPDATE_BYTES_PER_PIXEL * pixels + 2 * history)


def fitting_size(method: Method, height: int, width: int, memory_bytes: float, on_gpu: bool = False) -> int:
    """Return the approximate longest side, in pixels, at which one image scaled down fits into `memory_bytes`."""
    longest = max(height, width)
    sides = range(MIN_SIZE, longest, 16)
    # a linear search: memory is not monotonic, because the L-BFGS history is shorter for images above `LARGE_IMAGE_PIXELS`
    fitting_sides = (
        side
        for side in reversed(sides)
        if peak_bytes(method, round(height * side / longest), round(width * side / longest), on_gpu) <= memory_bytes
    )
    return next(fitting_sides, MIN_SIZE)
