"""Sample images of the demo, available offline: photographs from scikit-image's wheel, styles shipped with this package.

Photographs, as `skimage.data` documents them:
    astronaut   Eileen Collins; NASA Great Images; public domain, no known copyright restrictions
    chelsea     a cat; Stefan van der Walt; CC0
    coffee      a cup, courtesy of Pikolo Espresso Bar; Rachel Michetti; CC0
    rocket      DSCOVR's launch on a Falcon 9; SpaceX; released into the public domain

Styles: `manifests/samples/*.webp`; the README beside them says how they were made.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

import numpy as np
from PIL import Image

from nst_tasks.errors import SettingsError

MAX_SIDE = 512
"""Longest side of each photograph, in pixels."""

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")

STYLES = ("swirls", "dunes", "stipple", "ink")


@functools.cache
def samples() -> Mapping[str, bytes]:
    """Return the bytes of each sample by its file name, content/{photograph}.jpg and style/{style}.webp.

    Raises:
        SettingsError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as exc:
        raise SettingsError('scikit-image is not installed; install it with: pip install "nst[demo]"') from exc
    files = {}
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(np.asarray(getattr(data, name)(), np.uint8))
        photograph.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        photograph.save(file, "JPEG", quality=95)
        files[f"content/{name}.jpg"] = file.getvalue()
    folder = resources.files("manifests").joinpath("samples")
    files |= {f"style/{name}.webp": folder.joinpath(f"{name}.webp").read_bytes() for name in STYLES}
    return MappingProxyType(files)
