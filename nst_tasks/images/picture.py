"""Decoded images and the identity of input images: URI, SHA-256, store version and size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nst_tasks.errors import redact

if TYPE_CHECKING:
    import numpy as np  # a manifest is validated without it

OUTPUT_FORMATS = ("png", "jpg", "webp")
"""File formats of results, which are also their file extensions."""


@dataclass(frozen=True)
class Source:
    """Identity of an input image: URI, SHA-256, store version, and displayed height and width in pixels."""

    __pydantic_config__ = {"extra": "forbid"}  # an unknown field in a record may change which image it is

    uri: str
    sha256: str
    version: str
    height: int
    width: int

    @property
    def name(self) -> str:
        """File name up to its first dot, for display."""
        file = redact(self.uri).rpartition("/")[2]
        return file.partition(".")[0] or file

    def redact_uri(self) -> Source:
        """Return the same source with its URI redacted for markers and reports."""
        return replace(self, uri=redact(self.uri))


MIN_VISIBLE_ALPHA = 1 / 510
"""Half an 8-bit step: a smaller alpha is written as 0, and a smaller mask value changes no written pixel."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright image, float32 in [0, 1]: `rgb` (H, W, 3) in sRGB, `alpha` (H, W) or None if opaque."""

    rgb: np.ndarray
    alpha: np.ndarray | None = None


def flatten_on_white(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Composite rgb (H, W, 3) with alpha (H, W) or None over white: (H, W, 3)."""
    return rgb if alpha is None else rgb * alpha[..., None] + (1 - alpha[..., None])
