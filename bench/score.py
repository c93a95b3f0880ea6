"""Quality of finished images from any source: style gap closed and content kept, measured as in a run.

.venv/bin/python bench/score.py CONTENT STYLE PICTURE...
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from nst_tasks.core import metrics, vgg
from nst_tasks.images import codec
from nst_tasks.images.picture import Picture, flatten_on_white
from nst_tasks.images.resize import fit_size, resize
from nst_tasks.inputs import presets, weights
from nst_tasks.storage import files


def main(content: str, style: str, *pictures: str) -> None:
    """Print a line of metrics for each image, measured against this content and this style."""
    backbone = vgg.build("vgg16-hed", weights.load("vgg16-hed", None))
    layers = [layer for layer, _ in presets.PAINTERLY.method.style.layers]
    of_style = metrics.style_moments(backbone, _load_image(style), layers)
    against = metrics.content_moments(backbone, _load_image(content), layers)
    print(f"{'style gap':>10}{'cosine':>8}{'SSIM':>7}")
    for picture in pictures:
        out = resize(Picture(_load_image(picture), None), *against.image.shape[:2]).rgb
        quality = metrics.measure(backbone, layers, out, against, [of_style], [1.0])
        print(f"{quality.held_out:10.3f}{quality.content_cosine:8.3f}{quality.luminance_ssim:7.3f}  {picture}")


def _load_image(uri: str):  # type: ignore[no-untyped-def]
    picture = codec.decode(files.read(uri), 10**9)
    rgb = flatten_on_white(picture.rgb, picture.alpha)
    return resize(Picture(rgb, None), *fit_size(rgb.shape[0], rgb.shape[1], metrics.COMPARISON_SIDE_PIXELS, upscale=False)).rgb


if __name__ == "__main__":
    main(*sys.argv[1:])
