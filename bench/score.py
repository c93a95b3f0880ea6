"""Quality of finished images from any source: style gap closed and content kept, measured as in a run.

.venv/bin/python bench/score.py CONTENT STYLE PICTURE...
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from nst_tasks import images, presets, storage, weights
from nst_tasks.core import backbones, quality
from nst_tasks.images import Picture


def main(content: str, style: str, *pictures: str) -> None:
    """Print a line of metrics for each image, measured against this content and this style."""
    backbone = backbones.build("vgg16-hed", weights.load("vgg16-hed", None))
    layers = [layer for layer, _ in presets.PAINTERLY.method.style.layers]
    of_style = quality.moments(backbone, _fitted(style), layers)
    against = quality.content(backbone, _fitted(content), layers)
    print(f"{'style gap':>10}{'cosine':>8}{'SSIM':>7}")
    for picture in pictures:
        out = images.resize(Picture(_fitted(picture), None), *against.picture.shape[:2]).rgb
        found = quality.measure(backbone, layers, out, against, [of_style], [1.0])
        print(f"{found.held_out:10.3f}{found.content_cosine:8.3f}{found.luminance_ssim:7.3f}  {picture}")


def _fitted(uri: str):  # type: ignore[no-untyped-def]
    picture = images.decode(storage.read(uri), 10**9)
    rgb = images.on_white(picture.rgb, picture.alpha)
    return images.resize(Picture(rgb, None), *images.fit(rgb.shape[0], rgb.shape[1], quality.SIZE, upscale=False)).rgb


if __name__ == "__main__":
    main(*sys.argv[1:])
