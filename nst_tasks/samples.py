"""The demo's pictures, made without a network: photographs that scikit-image's wheel carries, paintings of our own.

Photographs, as `skimage.data` documents them:
    astronaut   Eileen Collins; NASA Great Images; public domain, no known copyright restrictions
    chelsea     a cat; Stefan van der Walt; CC0
    coffee      a cup, courtesy of Pikolo Espresso Bar; Rachel Michetti; CC0
    rocket      DSCOVR's launch on a Falcon 9; SpaceX; released into the public domain

Paintings: `nst_tasks.painting`, our own code, under this project's licence.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image

from nst_tasks.errors import SettingsError
from nst_tasks.painting import paint

LONGEST = 512
"""The longest side of each sample, in pixels."""

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")

PAINTINGS: Mapping[str, int] = {"swirls": 2, "dunes": 3, "stipple": 3, "ink": 4}
"""Each style with the seed whose painting we like best."""


@functools.cache
def samples() -> Mapping[str, bytes]:
    """Each sample's file by its name, content/{photograph}.jpg and style/{painting}.png: painted once, as it takes seconds.

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
        photograph.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        files[f"content/{name}.jpg"] = _encoded(photograph, "JPEG")
    for style, seed in PAINTINGS.items():
        files[f"style/{style}.png"] = _encoded(Image.fromarray(paint(style, LONGEST, LONGEST, seed)), "PNG")
    return MappingProxyType(files)


def _encoded(picture: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **({"quality": 95} if form == "JPEG" else {}))
    return file.getvalue()
