"""Convert between image files and upright sRGB pixels, float32 in [0, 1].

`decode` applies the EXIF orientation, converts an embedded ICC profile to sRGB, separates alpha and accepts 1 to 16 bit
gray, palettes, CMYK and float TIFF; of an animation it takes the first frame. All color arithmetic is on the encoded (gamma)
values, on which the networks were trained. Every error of Pillow becomes a `PictureError`.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from nst_tasks import structure
from nst_tasks.errors import NstError, PictureError
from nst_tasks.source import FORMATS

_READERS: tuple[type[ImageFile.ImageFile], ...] = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transpose that makes the image upright; from 5 on, width and height are swapped."""

_REC601 = np.array([0.299, 0.587, 0.114], np.float32)
_INVISIBLE = 1 / 510
"""Half an 8-bit step: a smaller alpha is written as 0, and a smaller mask value changes no written pixel."""

MAX_ASPECT = 100
"""Largest ratio of an image's longer side to its shorter one."""

_MAX_EXIF = 2**24
"""Largest EXIF block in bytes that is parsed: no camera writes more, and parsing takes several times as much memory."""

_FLAT = 1 / 255**2
"""Square of an 8-bit step: a smaller variance is indistinguishable from rounding."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright image, float32 in [0, 1]: `rgb` (H, W, 3) in sRGB, `alpha` (H, W) or None if opaque."""

    rgb: np.ndarray
    alpha: np.ndarray | None = None


def check_size(size: int, max_pixels: int) -> None:
    """Refuse a file larger than an image of `max_pixels` needs: 4 bytes per pixel and 16 MiB of metadata.

    Raises:
        PictureError: The file is larger.
    """
    most = 4 * max_pixels + 2**24
    if size > most:
        raise PictureError(f"{size} bytes are above the limit of {most}; make it smaller or raise NST_MAX_MEGAPIXELS")


def probe(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Return an image's displayed (height, width) in pixels from its header alone.

    Raises:
        PictureError: The format is unknown, the header is damaged, the sides are too unequal, the structure is refused by
            `structure.check`, or there are more than `max_pixels` pixels.
    """
    with _translated():
        image = _open(data, max_pixels)
        width, height = image.size
        return (width, height) if _orientation(image, data) >= 5 else (height, width)


def decode(data: bytes, max_pixels: int) -> Picture:
    """Decode an image file to upright sRGB: rgb (H, W, 3), alpha (H, W) or None, float32 in [0, 1].

    Raises:
        PictureError: As `probe`, or the pixels are damaged, truncated or outside their format's range.
    """
    with _translated():
        image = _open(data, max_pixels)
        turn = _UPRIGHT.get(_orientation(image, data))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Only the TIFF reader checks Pillow's own pixel limit again while loading, unless memory is already allocated.
            stored = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
            image.im = Image.new(image.mode, stored, None).im
        image.load()
        rgb, alpha = _planes(image if turn is None else image.transpose(turn))
    return Picture(rgb, None if alpha is None or alpha.min() >= 1 else alpha)


def mask(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode a mask from an image file: luminance times alpha, (H, W) float32 in [0, 1]; 1 is stylized, 0 is not.

    Raises:
        PictureError: As `decode`, or the mask is black or transparent everywhere.
    """
    picture = decode(data, max_pixels)
    luma = np.clip(luminance(picture.rgb), 0, 1)
    found: np.ndarray = luma if picture.alpha is None else luma * picture.alpha
    if found.max() < _INVISIBLE:
        raise PictureError("the mask is black or transparent all over, so nothing would be stylized; paint white what is to be")
    return found


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask (H, W) to (height, width), float32 in [0, 1]; return the same array if it has that size.

    The antialiasing kernel is a triangle: the ripples of Lanczos would stylize black areas beside an edge.
    """
    if mask.shape == (height, width):
        return mask
    resampled = _resampled(mask[..., None], height, width, Image.Resampling.BILINEAR)[..., 0]
    clipped: np.ndarray = np.clip(resampled, 0, 1)  # removes rounding errors
    return clipped


def composite(stylized: np.ndarray, content: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Blend two images (H, W, 3) by a mask (H, W) in [0, 1]: (H, W, 3) float32.

    `mask * stylized + (1 - mask) * content`; where the mask is 1 or 0, pixels are bit-identical to `stylized` or `content`.
    """
    share = mask.astype(np.float32)[..., None]  # (H, W, 1)
    mixed: np.ndarray = share * stylized + (1 - share) * content
    return mixed.astype(np.float32)


def fit(height: int, width: int, size: int, upscale: bool) -> tuple[int, int]:
    """Return the (height, width) in pixels with longest side `size` and the same aspect; enlarge only if `upscale`."""
    longest = max(height, width)
    if size >= longest and not upscale:
        return height, width
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def same_proportions(height: int, width: int, like_height: int, like_width: int) -> bool:
    """Return whether two sizes in pixels have the same aspect, within 1 % or within a pixel of rounding of either image."""
    one, other = width * like_height, height * like_width
    return abs(one - other) <= max(0.01 * max(one, other), height, width, like_height, like_width)


def resize(picture: Picture, height: int, width: int) -> Picture:
    """Resize a picture to (height, width) by antialiased Lanczos in float32; return the same one if it has that size.

    Colors are weighted by alpha, so that invisible pixels do not bleed into visible ones.
    """
    if picture.rgb.shape[:2] == (height, width):
        return picture
    rgb, alpha = _lanczos(picture.rgb, height, width), None
    if picture.alpha is not None:
        cover = _lanczos(picture.alpha[..., None], height, width)  # (height, width, 1)
        weighted = _lanczos(picture.rgb * picture.alpha[..., None], height, width)
        rgb = np.where(cover > _INVISIBLE, weighted / np.maximum(cover, _INVISIBLE), rgb)
        alpha = np.clip(cover[..., 0], 0, 1)
    return Picture(np.clip(rgb, 0, 1), alpha)


def encode(rgb: np.ndarray, alpha: np.ndarray | None, format: str, text: Mapping[str, str]) -> bytes:
    """Encode an image as a file with 8 bits per channel; the same input gives the same bytes.

    Args:
        rgb: Colors (H, W, 3), float in [0, 1].
        alpha: Opacity (H, W), float in [0, 1], or None; jpg is flattened on white.
        format: One of `FORMATS`.
        text: Metadata. PNG holds it as text chunks (keys of 1 to 79 Latin-1 characters), JPEG as a JSON comment, WebP as a
            JSON EXIF ImageDescription.

    Raises:
        PictureError: The format cannot hold the image, for instance a WebP side above 16383 pixels.
        ValueError: `format` is not in `FORMATS`.
    """
    if format not in FORMATS:
        raise ValueError(f"format: {format!r} is none of {', '.join(FORMATS)}")
    image = _to_pillow(on_white(rgb, alpha), None) if format == "jpg" else _to_pillow(rgb, alpha)
    note = json.dumps(dict(text), sort_keys=True)  # ASCII: readable in whatever encoding a reader assumes
    file = io.BytesIO()
    try:
        if format == "png":
            chunks = PngImagePlugin.PngInfo()
            for key, value in sorted(text.items()):
                chunks.add_text(key, value)
            image.save(file, "PNG", pnginfo=chunks, compress_type=zlib.Z_RLE)  # as small as Pillow's default, in half the time
        elif format == "jpg":
            image.save(file, "JPEG", quality=95, subsampling=0, comment=note.encode() if text else b"")
        else:
            exif = Image.Exif()
            exif[ExifTags.Base.ImageDescription] = note
            image.save(file, "WEBP", quality=95, exif=exif.tobytes() if text else b"")
    except (OSError, ValueError) as exc:
        raise PictureError(f"{image.width} x {image.height} pixels cannot be written as {format}: {exc}") from exc
    return file.getvalue()


def read_text(data: bytes) -> dict[str, str]:
    """Read the metadata that `encode` wrote into an image file; empty if there is none.

    Raises:
        PictureError: `data` is not an image.
    """
    with _translated():
        image = _open(data, None)
        if isinstance(image, PngImagePlugin.PngImageFile):
            # `image.text` would decode all pixels to reach text after them; `encode` writes it before them.
            return {key: str(value) for key, value in image.png.im_text.items()} if image.png else {}
        try:
            note = image.info["comment"] if "comment" in image.info else image.getexif()[ExifTags.Base.ImageDescription]
            found = json.loads(note)
        except (KeyError, ValueError, TypeError):
            return {}  # not written by `encode`
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Return the Rec. 601 luma Y = 0.299 R + 0.587 G + 0.114 B: (H, W, 3) in [0, 1] -> (H, W) float32."""
    return rgb.astype(np.float32) @ _REC601


def with_luminance(rgb: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """Replace an image's luma and keep its YIQ chroma: (H, W, 3) and (H, W) -> (H, W, 3) float32 in [0, 1].

    This is the luminance-only transfer of Gatys et al. 2016 (arXiv 1606.05897). In YIQ each of R, G, B is Y plus a linear
    function of I and Q, so a new Y shifts all three channels by the same amount. Where the shifted color would leave [0, 1],
    I and Q are scaled down together by the least that suffices: this preserves hue and luma, clipping each channel would not.
    """
    luma = np.clip(luma, 0, 1).astype(np.float32)
    chroma = rgb - luminance(rgb)[..., None]  # (H, W, 3)
    above, below = (np.maximum(extreme, 1e-12) for extreme in (chroma.max(axis=-1), -chroma.min(axis=-1)))
    scale = np.minimum(1, np.minimum((1 - luma) / above, luma / below))
    shifted: np.ndarray = np.clip(luma[..., None] + scale[..., None] * chroma, 0, 1)  # removes rounding errors
    return shifted.astype(np.float32)


def match_color(style: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Map the style's colors so that their mean m and covariance K equal the content's.

    `K_content^1/2 K_style^-1/2 (x - m_style) + m_content`, for rgb (H, W, 3) in [0, 1] of any two sizes -> the style's shape,
    float32. This is the color matching of Gatys et al. 2016 (arXiv 1606.05897) with symmetric roots, which, unlike Cholesky
    factors, treat R, G and B alike. Along axes whose standard deviation is below an 8-bit step, we divide by a step instead,
    so that rounding is not amplified: a gray style becomes shades of one color, a flat one the content's mean. The result is
    not clipped to [0, 1]; clipping it for display makes the statistics inexact.
    """
    mean, covariance, centred = _color_statistics(style)
    like_mean, like_covariance, _ = _color_statistics(content)
    variances, axes = np.linalg.eigh(covariance)
    whitening = axes / np.sqrt(np.maximum(variances, _FLAT)) @ axes.T
    variances, axes = np.linalg.eigh(like_covariance)
    coloring = axes * np.sqrt(np.maximum(variances, 0)) @ axes.T
    matched: np.ndarray = centred @ (coloring @ whitening).T.astype(np.float32) + like_mean.astype(np.float32)
    return matched.reshape(style.shape)


def _color_statistics(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean (3,) and covariance (3, 3) of the colors of (H, W, 3), float64, and the centered colors (H W, 3), float32."""
    colors = rgb.reshape(-1, 3).astype(np.float32)
    mean = colors.mean(axis=0, dtype=np.float64)
    centred = colors - mean.astype(np.float32)
    return mean, (centred.T @ centred).astype(np.float64) / len(centred), centred


def match_luminance(luma: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Match the mean and standard deviation of a luma (H, W) to those of another of any size: (H, W) float32, not clipped.

    `sd(like) / sd(luma) * (luma - mean(luma)) + mean(like)`, after arXiv 1606.05897; a flat luma is only shifted.
    """
    spread = luma.std(dtype=np.float64)
    scale = like.std(dtype=np.float64) / spread if spread > 0 else 1.0
    matched: np.ndarray = scale * (luma - luma.mean(dtype=np.float64)) + like.mean(dtype=np.float64)
    return matched.astype(np.float32)


def strip(pictures: Sequence[Picture | np.ndarray], height: int, gap: int) -> bytes:
    """Encode images side by side as a JPEG strip, each `height` pixels high, `gap` white pixels apart.

    Each is a `Picture` or rgb (H, W, 3) in [0, 1]; one wider than three times its height is cropped to its middle.
    """
    parts = []
    for entry in pictures:
        rgb = entry if isinstance(entry, np.ndarray) else on_white(entry.rgb, entry.alpha)
        width = min(rgb.shape[1], 3 * rgb.shape[0])
        left = (rgb.shape[1] - width) // 2
        seen = _to_pillow(rgb[:, left : left + width], None)  # 8 bits resize in a third of the time of float32
        parts.append(seen.resize((max(1, round(width * height / rgb.shape[0])), height), Image.Resampling.LANCZOS))
    strip = Image.new("RGB", (sum(part.width for part in parts) + gap * (len(parts) - 1), height), "white")
    left = 0
    for part in parts:
        strip.paste(part, (left, 0))
        left += part.width + gap
    return _jpeg(strip, quality=85)


def shrunk(strip: bytes, height: int, max_pixels: int) -> bytes:
    """Shrink a strip to a JPEG at most `height` pixels high; return the same bytes if it is one already.

    Raises:
        PictureError: The strip is neither a JPEG nor a WebP (the format of older strips), is damaged, or has more than
            `max_pixels` pixels.
    """
    with _translated():
        image: Image.Image = _open(strip, max_pixels)
        if image.format not in ("JPEG", "WEBP"):
            raise PictureError(f"a strip is a JPEG or a WebP, this is a {image.format}")
        if image.height <= height:
            return strip if image.format == "JPEG" else _jpeg(image.convert("RGB"))
        size = max(1, round(image.width * height / image.height)), height
        enough = max(1, size[0] - 1), max(1, size[1] - 1)  # `size` less what rounding may have added
        image.draft("RGB", enough)  # decodes a JPEG at 1/2, 1/4 or 1/8, if that is still large enough
        return _jpeg(image.convert("RGB").resize(size, Image.Resampling.HAMMING))


def _jpeg(image: Image.Image, quality: int = 75) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)  # a tenth of the time of WebP, for 1.5 times the bytes
    return file.getvalue()


@contextmanager
def _translated() -> Iterator[None]:
    """Translate the errors of Pillow into `PictureError`; damaged bytes raise nearly any class, even MemoryError.

    Raises:
        PictureError: Pillow raised an error.
    """
    try:
        yield
    except NstError:
        raise
    except Exception as exc:
        remedy = "make it smaller" if isinstance(exc, (Image.DecompressionBombError, MemoryError)) else "check the file"
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise PictureError(f"the picture is damaged, truncated or of an unsupported kind: {reason}; {remedy}") from exc


def _open(data: bytes, max_pixels: int | None) -> ImageFile.ImageFile:
    """Open an image, check its structure and size, and decode no pixel.

    `Image.open` would also compare the size with `Image.MAX_IMAGE_PIXELS`, warn above it and raise above twice that. This
    limit and the warning filters are global to the process, in which other threads decode meanwhile, so neither can be
    changed temporarily. Hence we call Pillow's readers ourselves, as `Image.open` does, and apply only the caller's limit.
    Pillow's own limit remains where a reader allocates at once: WebP above 179 megapixels, GIF frames off the canvas.

    Args:
        data: The bytes of the file.
        max_pixels: The largest number of pixels, or None to skip all checks of structure and size.

    Raises:
        PictureError: The file is empty, of an unknown format, too large, too narrow, or refused by `structure.check`.
    """
    if not data:
        raise PictureError("not a picture: the file is empty, 0 bytes; check the file")
    if max_pixels is not None:
        structure.check(data, max_pixels)
    for reader in _READERS:
        accept = Image.OPEN[reader.format or ""][1]
        if accept is not None and accept(data[:16]) is True:
            image = reader(io.BytesIO(data))
            break
    else:
        raise PictureError("not a picture: the bytes are no PNG, JPEG, WebP, TIFF, BMP or GIF; check the file")
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        raise PictureError(
            f"{pixels / 1e6:.6g} megapixels ({image.width} x {image.height}) is above the limit of "
            f"{max_pixels / 1e6:.6g} megapixels; make it smaller or raise NST_MAX_MEGAPIXELS"
        )
    if max_pixels is not None and max(image.size) > MAX_ASPECT * min(image.size):
        raise PictureError(
            f"{image.width} x {image.height} pixels are too narrow, one side is more than {MAX_ASPECT} times the other; crop it"
        )
    return image


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the EXIF orientation that is still to be applied, 1 (upright) to 8; 1 if the EXIF block is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow rotates a TIFF on load, and reports the rotated size before
    if image.format == "PNG":
        # PngImageFile.getexif would decode all pixels, because an eXIf chunk may follow them: walk the chunks instead.
        image.info.setdefault("exif", structure.png_chunk(data, b"eXIf") or b"")
    if len(image.info.get("exif", b"")) > _MAX_EXIF:
        return 1
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001, as in `_translated`
        return 1
    return value if value in _UPRIGHT else 1


def _planes(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert a loaded, upright image of any mode to rgb (H, W, 3) in sRGB and alpha (H, W) or None, float32 in [0, 1]."""
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        gray, alpha = _deep_gray(image)
        # Pillow applies profiles to 8 bits only, so the profile becomes a curve of 256 points: (256, 3).
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        curve = np.asarray(_to_srgb(ramp, profile))[0] / 255
        channels = [np.interp(gray, np.arange(256) / 255, curve[:, c]).astype(np.float32) for c in range(3)]
        return np.stack(channels, axis=-1), alpha
    gray_like = image.mode in ("1", "L", "LA", "La")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if gray_like else "RGBA")
        alpha = _unit(image.getchannel("A"))
    if image.mode != "CMYK":
        image = image.convert("L" if gray_like else "RGB")
    return _unit(_to_srgb(image, profile)), alpha


def _deep_gray(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert a 12-bit, 16-bit or float gray image to gray (H, W) and alpha (H, W) or None, float32 in [0, 1].

    Raises:
        PictureError: A value is NaN or outside the format's range.
    """
    stored = np.asarray(image)  # (H, W) uint16 of either byte order, int32 or float32
    tags = getattr(image, "tag_v2", {})
    white = 1 if image.mode == "F" else 65535
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        white = 4095
    low, high = float(stored.min()), float(stored.max())
    if not (low >= 0 and high <= white):  # negated, so that NaN is refused too
        raise PictureError(f"gray values from {low:g} to {high:g} leave 0..{white}; save it with 8 or 16 bits")
    gray = stored.astype(np.float32) / np.float32(white)
    if image.mode != "F" and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        gray = 1 - gray  # WhiteIsZero, which Pillow applies up to 8 bits only
    hidden = image.info.get("transparency")  # the one gray value that a PNG declares transparent
    return gray, None if hidden is None else (stored != hidden).astype(np.float32)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an L, RGB or CMYK image to RGB in sRGB; ignore a profile that is broken or of another color space."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(source.profile.xcolor_space.strip(), "")
            if mode == image.mode or (image.mode, mode) == ("L", "RGB"):
                transform = ImageCms.buildTransform(
                    source,
                    ImageCms.createProfile("sRGB"),
                    mode,
                    "RGB",
                    ImageCms.Intent.RELATIVE_COLORIMETRIC,
                    ImageCms.Flags.BLACKPOINTCOMPENSATION,
                )
                return transform.apply(image.convert(mode))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return image.convert("RGB")


def _unit(image: Image.Image) -> np.ndarray:
    """Convert 8-bit channels to float32 in [0, 1]."""
    return np.asarray(image, np.float32) / np.float32(255)


def _to_pillow(rgb: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """Convert rgb (H, W, 3) and alpha (H, W) or None, in [0, 1], to an 8-bit RGB or RGBA image."""
    planes = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], axis=-1)
    return Image.fromarray(np.rint(np.clip(planes, 0, 1) * 255).astype(np.uint8))


def on_white(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Composite rgb (H, W, 3) with alpha (H, W) or None over white: (H, W, 3)."""
    return rgb if alpha is None else rgb * alpha[..., None] + (1 - alpha[..., None])


def _lanczos(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    return _resampled(planes, height, width, Image.Resampling.LANCZOS)


def _resampled(planes: np.ndarray, height: int, width: int, kernel: Image.Resampling) -> np.ndarray:
    """Resample each channel of (H, W, C) float32 to (height, width, C), not clipped."""
    channels = (Image.fromarray(np.ascontiguousarray(planes[..., c], np.float32)) for c in range(planes.shape[-1]))
    return np.stack([np.asarray(c.resize((width, height), kernel)) for c in channels], axis=-1)
