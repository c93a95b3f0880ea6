"""Quality of finished images from any source: style gap closed and content kept, measured as in a run.

.venv/bin/python -m bench score CONTENT STYLE IMAGE...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench import ours
from bench.processes import create_parser
from nst_tasks.core import metrics
from nst_tasks.images import codec
from nst_tasks.images.picture import Picture, flatten_on_white
from nst_tasks.images.resize import fit_size, resize
from nst_tasks.inputs import presets
from nst_tasks.storage import files


def main(arguments: Sequence[str]) -> None:
    """Print a line of metrics for each image, measured against the content and the style."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("content")
    parser.add_argument("style")
    parser.add_argument("images", nargs="+", metavar="image")
    args = parser.parse_args(arguments)
    backbone = ours.build_backbone()
    layers = [layer for layer, _ in presets.PAINTERLY.method.style.layers]
    style_moments = metrics.style_moments(backbone, _load_image(args.style), layers)
    content_moments = metrics.content_moments(backbone, _load_image(args.content), layers)
    print(f"{'style gap':>10}{'cosine':>8}{'SSIM':>7}")
    for uri in args.images:
        image = resize(Picture(_load_image(uri), None), *content_moments.image.shape[:2]).rgb
        quality = metrics.measure(backbone, layers, image, content_moments, [style_moments], [1.0])
        print(f"{quality.held_out:10.3f}{quality.content_cosine:8.3f}{quality.luminance_ssim:7.3f}  {uri}")


def _load_image(uri: str) -> np.ndarray:
    """Return the image (H, W, 3) at the size at which quality is measured."""
    picture = codec.decode(files.read(uri), 10**9)
    rgb = flatten_on_white(picture.rgb, picture.alpha)
    return resize(Picture(rgb, None), *fit_size(rgb.shape[0], rgb.shape[1], metrics.COMPARISON_SIDE_PIXELS, upscale=False)).rgb
