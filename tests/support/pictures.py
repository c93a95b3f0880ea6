"""Small pictures for tests, as arrays and as files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from nst_tasks.images import codec
from nst_tasks.images.picture import Source

Array = np.ndarray
SIZE = (32, 40)
"""Height and width of a picture, unless a test says otherwise."""

PATTERNS: Mapping[str, Callable[[Array, Array], Array]] = {
    "cat": lambda y, x: np.stack([x, y, 0.5 + 0.0 * x], -1),
    "dog": lambda y, x: np.stack([0.5 + 0.5 * np.sin(9 * x), y, 1 - x], -1),
    "oil": lambda y, x: np.stack([0.5 + 0.5 * np.sin(40 * (x + y)), 0.5 + 0.5 * np.sin(31 * y), 0.3 + 0.0 * x], -1),
    "ink": lambda y, x: np.repeat((np.sin(50 * x * y) > 0)[..., None].astype(float), 3, -1),
}
"""Two contents (cat, dog) and two styles (oil, ink), as functions of y and x in [0, 1]."""


def picture(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> Array:
    """Return a picture (height, width, 3) of soft blobs with some grain, in [0, 1]."""
    import tensorflow as tf

    random = np.random.default_rng(seed)
    coarse = tf.image.resize(random.random((4, 5, 3), np.float32), (height, width), "bicubic").numpy()
    return np.clip(0.1 + 0.8 * coarse + 0.02 * random.standard_normal((height, width, 3), np.float32), 0.0, 1.0)


def encode_pattern(name: str, height: int = 72, width: int = 96) -> bytes:
    """Return one of `PATTERNS` as a PNG."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return codec.encode(PATTERNS[name](y, x).astype(np.float32), None, "png", {})


def encode_flat(color: str, width: int = 80, height: int = 60, format: str = "PNG") -> bytes:
    """Return a picture of one named color as a file."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, format)
    return file.getvalue()


def write_source(folder: Path, name: str, rgb: Array, alpha: Array | None = None) -> Source:
    """Write a picture (H, W, 3) in [0, 1] as a PNG into the folder; return its identity, as an inspection finds it."""
    path, data = folder / f"{name}.png", codec.encode(rgb, alpha, "png", {})
    path.write_bytes(data)
    return Source(str(path), hashlib.sha256(data).hexdigest(), "1", *rgb.shape[:2])
