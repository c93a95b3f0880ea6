"""Bands of rows: how much of a block of the network is computed at a time, so that a large picture takes no more memory for it.

A 3x3 convolution looks one row up and down. A band that is to have `n` of them right at its own rows, though it sees no more
than a part of the picture, therefore takes `n` rows more on either side, except where the picture ends there as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nst_tasks.errors import SettingsError


@dataclass(frozen=True)
class Bands:
    """A block of the network in which a picture has more than `most` values is computed in bands of about `each`, or `most`.

    The picture's size alone decides, and neither the memory nor the batch, on which its pixels must not depend.
    """

    most: int
    each: int | None = None

    def __post_init__(self) -> None:
        for values in (self.most, self.each):
            if values is not None and values < 1:
                raise SettingsError(f"bands: {values!r} values are fewer than 1")


LEAST_ROWS = 32
"""Of bands that are smaller than `most` asks for: what two of them look at is computed twice."""

USUAL = Bands(2**23, each=2**21)
"""From 2^23 values on, a band computed once more costs less than the memory; where one is, a quarter as large ones cost a
fiftieth more: TensorFlow's convolution unfolds what it is given, 3 x 3 values for each, in memory of its own."""

MIXED = Bands(2**22)
"""In bfloat16, where computing a band once more is cheap beside what the image and the weights take."""

GPU = Bands(2**26)
"""On a GPU, which small bands leave idle: of VGG16, a megapixel as a whole (an H200 takes 7 ms for a step of 512 x 512 pixels
so, and 15 in two bands)."""


def usual(precision: str, on_gpu: bool) -> Bands:
    """The bands of a precision where nobody says otherwise."""
    if on_gpu:
        return GPU
    return MIXED if precision == "mixed" else USUAL


def tables(height: int, width: int, blocks: Sequence[tuple[int, int]], bands: Bands) -> tuple[np.ndarray, ...]:
    """The bands (K, 4) int32 of each block that is computed in bands, first block first, of a picture of so many pixels.

    blocks: of each, its channels and how many convolutions it has. A band is the rows `top` to `bottom` that are its own, `top`
    even for the pooling that follows, and `first` to `last` that it looks at; in the block's own rows, of which a picture has
    half as many in each block as in the one before.
    """
    found = []
    for at, (channels, convolutions) in enumerate(blocks):
        rows, columns = height >> at, width >> at
        count = -(-rows * columns * channels // bands.most)
        if count <= 1:
            break
        pairs = max(rows // 2, 1)
        smaller = -(-rows * columns * channels // (bands.each or bands.most))
        count = min(max(count, min(smaller, rows // LEAST_ROWS)), pairs)
        edges = np.array([2 * (pairs * k // count) for k in range(count)] + [rows])
        top, bottom = edges[:-1], edges[1:]
        span = min(int((bottom - top).max()) + 2 * convolutions, rows)  # alike, for kernels are prepared anew for each shape
        first = np.clip(top - convolutions, 0, rows - span)
        found.append(np.stack([top, bottom, first, first + span], axis=1).astype(np.int32))
    return tuple(found)
