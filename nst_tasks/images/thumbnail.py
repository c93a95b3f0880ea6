"""Small JPEG strips that show content, styles and result side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from nst_tasks.errors import PictureError
from nst_tasks.images.codec import open_header, to_pillow, translate_pillow_errors
from nst_tasks.images.picture import Picture, flatten_on_white


def encode_strip(pictures: Sequence[Picture | np.ndarray], height: int, gap: int) -> bytes:
    """Encode images side by side as a JPEG strip, each `height` pixels high, `gap` white pixels apart.

    Each is a `Picture` or rgb (H, W, 3) in [0, 1]; one wider than three times its height is cropped to its middle.
    """
    parts = []
    for picture in pictures:
        rgb = picture if isinstance(picture, np.ndarray) else flatten_on_white(picture.rgb, picture.alpha)
        width = min(rgb.shape[1], 3 * rgb.shape[0])
        left = (rgb.shape[1] - width) // 2
        cropped = to_pillow(rgb[:, left : left + width], None)  # 8 bits resize in a third of the time of float32
        parts.append(cropped.resize((max(1, round(width * height / rgb.shape[0])), height), Image.Resampling.LANCZOS))
    canvas = Image.new("RGB", (sum(part.width for part in parts) + gap * (len(parts) - 1), height), "white")
    left = 0
    for part in parts:
        canvas.paste(part, (left, 0))
        left += part.width + gap
    return _encode_jpeg(canvas, quality=85)


def shrink_strip(strip: bytes, height: int, max_pixels: int) -> bytes:
    """Shrink a strip to a JPEG at most `height` pixels high; return the same bytes if it is one already.

    Raises:
        PictureError: The strip is neither a JPEG nor a WebP (the format of older strips), is damaged, or has more than
            `max_pixels` pixels.
    """
    with translate_pillow_errors():
        image: Image.Image = open_header(strip, max_pixels)
        if image.format not in ("JPEG", "WEBP"):
            raise PictureError(f"a strip is a JPEG or a WebP, this is a {image.format}")
        if image.height <= height:
            return strip if image.format == "JPEG" else _encode_jpeg(image.convert("RGB"))
        size = max(1, round(image.width * height / image.height)), height
        draft_size = max(1, size[0] - 1), max(1, size[1] - 1)  # `size` less what rounding may have added
        image.draft("RGB", draft_size)  # decodes a JPEG at 1/2, 1/4 or 1/8, if that is still large enough
        return _encode_jpeg(image.convert("RGB").resize(size, Image.Resampling.HAMMING))


def _encode_jpeg(image: Image.Image, quality: int = 75) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)  # a tenth of the time of WebP, for 1.5 times the bytes
    return file.getvalue()
