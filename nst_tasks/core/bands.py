"""Bands of rows in which a block of the network is computed, to bound its memory for large images.

A 3x3 convolution reads one row above and one below. For `n` of them to be exact on a band's own rows, the band reads `n` more
rows on either side, except at the edge of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nst_tasks.errors import SettingsError


@dataclass(frozen=True)
class BandLimits:
    """Size limits, in feature values, for computing a block of the network in bands.

    A block in which one image has more than `max_values` values `h w C` is computed in bands of about `band_values` values, or
    of `max_values` if `band_values` is None. Bands depend on the image's size only, not on the memory or the batch, which must
    not affect its pixels.

    Raises:
        SettingsError: A limit is below 1.
    """

    max_values: int
    band_values: int | None = None

    def __post_init__(self) -> None:
        for values in (self.max_values, self.band_values):
            if values is not None and values < 1:
                raise SettingsError(f"bands: {values!r} values are fewer than 1")


MIN_BAND_ROWS = 32
"""Minimum rows of a band that is smaller than `max_values` requires: rows read by two bands are computed twice."""

CPU_FLOAT32 = BandLimits(2**23, band_values=2**21)
"""float32 on a CPU: from 2^23 values on, recomputing a band costs less than the memory that it saves.

Bands of a quarter of that take 2 % more time, and save workspace: TensorFlow's convolution unfolds its input to 3 x 3 values
for each one."""

CPU_MIXED = BandLimits(2**22)
"""Mixed precision on a CPU: recomputing a band in bfloat16 is cheap compared with what the image and the weights take."""

GPU = BandLimits(2**26)
"""On a GPU, which small bands leave idle: VGG16 computes a megapixel as a whole.

A step of 512 x 512 pixels takes an H200 7 ms as a whole and 15 ms in two bands."""


def default_limits(precision: str, on_gpu: bool) -> BandLimits:
    """Return the default bands for a precision and kind of device."""
    if on_gpu:
        return GPU
    return CPU_MIXED if precision == "mixed" else CPU_FLOAT32


def band_tables(height: int, width: int, blocks: Sequence[tuple[int, int]], limits: BandLimits) -> tuple[np.ndarray, ...]:
    """Return the bands (K, 4) int32 of each block that is computed in bands, first block first.

    A band is `(top, bottom, first, last)`: its own rows are `top:bottom`, with `top` even for the pooling that follows, and it
    reads the rows `first:last`. Rows are counted at the block's resolution, which halves from block to block.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        blocks: Channels and number of convolutions of each block.
    """
    tables = []
    for index, (channels, convolutions) in enumerate(blocks):
        rows, columns = height >> index, width >> index
        count = -(-rows * columns * channels // limits.max_values)
        if count <= 1:
            break
        row_pairs = max(rows // 2, 1)
        small_bands = -(-rows * columns * channels // (limits.band_values or limits.max_values))
        count = min(max(count, min(small_bands, rows // MIN_BAND_ROWS)), row_pairs)
        edges = np.array([2 * (row_pairs * k // count) for k in range(count)] + [rows])
        top, bottom = edges[:-1], edges[1:]
        span = min(int((bottom - top).max()) + 2 * convolutions, rows)  # one for all: each shape prepares kernels
        first = np.clip(top - convolutions, 0, rows - span)
        tables.append(np.stack([top, bottom, first, first + span], axis=1).astype(np.int32))
    return tuple(tables)
