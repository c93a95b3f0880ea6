"""Bytes <-> float32 pixels: whatever a camera, a browser or a scanner wrote becomes upright sRGB in [0, 1].

`decode` applies the EXIF orientation, converts an embedded ICC profile to sRGB, keeps alpha apart and takes 1 to 16 bit
gray, palettes, CMYK and float TIFF; of an animation it takes the first frame. All work on colour happens on the encoded
(gamma) values, as the networks were trained on them. Every complaint of Pillow leaves here as a `PictureError`.
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
"""EXIF orientation -> what makes the picture upright; from 5 on, width and height change places."""

_REC601 = np.array([0.299, 0.587, 0.114], np.float32)
_INVISIBLE = 1 / 510
"""Below half an 8-bit step, alpha is written as 0, and a mask changes no written pixel."""

MAX_ASPECT = 100
"""The longer side of a picture over the shorter one."""

_MAX_EXIF = 2**24
"""Bytes; more is no camera's, and its values take several times as much memory."""

_FLAT = 1 / 255**2
"""The variance of a deviation by an 8-bit step; less than that is not told from rounding."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright picture, float32 in [0, 1]: `rgb` (H, W, 3) in sRGB, `alpha` (H, W) or None when opaque."""

    rgb: np.ndarray
    alpha: np.ndarray | None = None


def check_size(size: int, max_pixels: int) -> None:
    """Refuse a file of more bytes than a picture of `max_pixels` needs: 4 a pixel and 16 MiB for what else it holds.

    Raises:
        PictureError: it is larger.
    """
    most = 4 * max_pixels + 2**24
    if size > most:
        raise PictureError(f"{size} bytes are above the limit of {most}; make it smaller or raise NST_MAX_MEGAPIXELS")


def probe(data: bytes, max_pixels: int) -> tuple[int, int]:
    """The displayed (height, width) in pixels, read from the header alone.

    Raises:
        PictureError: not a picture of a known format, a damaged header, or more than `max_pixels` pixels.
    """
    with _translated():
        image = _open(data, max_pixels)
        width, height = image.size
        return (width, height) if _orientation(image, data) >= 5 else (height, width)


def decode(data: bytes, max_pixels: int) -> Picture:
    """The picture in `data`, upright and in sRGB: rgb (H, W, 3), alpha (H, W) or None, float32 in [0, 1].

    Raises:
        PictureError: as `probe`; besides, the pixels are damaged or truncated, or lie outside their format's range.
    """
    with _translated():
        image = _open(data, max_pixels)
        turn = _UPRIGHT.get(_orientation(image, data))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # TIFF alone checks Pillow's own limit again while loading, unless its memory is there already.
            stored = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
            image.im = Image.new(image.mode, stored, None).im
        image.load()
        rgb, alpha = _planes(image if turn is None else image.transpose(turn))
    return Picture(rgb, None if alpha is None or alpha.min() >= 1 else alpha)


def mask(data: bytes, max_pixels: int) -> np.ndarray:
    """The mask in the picture `data`: its luminance times its alpha, (H, W) float32 in [0, 1]; 1 is stylized, 0 is not.

    Raises:
        PictureError: as `decode`; besides, it is black all over.
    """
    picture = decode(data, max_pixels)
    luma = np.clip(luminance(picture.rgb), 0, 1)
    found: np.ndarray = luma if picture.alpha is None else luma * picture.alpha
    if found.max() < _INVISIBLE:
        raise PictureError("the mask is black or transparent all over, so nothing would be stylized; paint white what is to be")
    return found


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask (H, W) at (height, width), float32 in [0, 1]; the same mask when it has that size.

    Antialiased with a triangle, not with Lanczos, whose ripples would stylize what is black beside an edge.
    """
    if mask.shape == (height, width):
        return mask
    resampled = _resampled(mask[..., None], height, width, Image.Resampling.BILINEAR)[..., 0]
    clipped: np.ndarray = np.clip(resampled, 0, 1)  # of the rounding
    return clipped


def composite(stylized: np.ndarray, content: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`mask * stylized + (1 - mask) * content`, of (H, W, 3) and a mask (H, W) in [0, 1] -> (H, W, 3) float32.

    Where the mask is 0 or 1 the pixels are those of the one or the other, bit for bit.
    """
    share = mask.astype(np.float32)[..., None]  # (H, W, 1)
    mixed: np.ndarray = share * stylized + (1 - share) * content
    return mixed.astype(np.float32)


def fit(height: int, width: int, size: int, upscale: bool) -> tuple[int, int]:
    """(height, width) in pixels with the longest side `size` and the aspect kept; never enlarged unless `upscale`."""
    longest = max(height, width)
    if size >= longest and not upscale:
        return height, width
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def same_proportions(height: int, width: int, like_height: int, like_width: int) -> bool:
    """Whether two sizes in pixels have the same aspect, within 1 % or within a pixel of rounding on either picture."""
    one, other = width * like_height, height * like_width
    return abs(one - other) <= max(0.01 * max(one, other), height, width, like_height, like_width)


def resize(picture: Picture, height: int, width: int) -> Picture:
    """The picture at (height, width) by antialiased Lanczos in float32; the same picture when it has that size.

    Colours are weighted by alpha, so that what is invisible does not bleed into what is seen.
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
    """The picture as a file of one of `FORMATS`, the same bytes for the same input; `text` travels as metadata.

    rgb (H, W, 3) and alpha (H, W) or None, float in [0, 1], become 8 bits with rounding; jpg is flattened on white.
    PNG holds `text` as text chunks (keys of 1 to 79 Latin-1 characters); JPEG as a JSON comment, WebP as a JSON EXIF
    ImageDescription.

    Raises:
        PictureError: the format cannot hold it, for instance a WebP side above 16383 pixels.
        ValueError: `format` is none of `FORMATS`.
    """
    if format not in FORMATS:
        raise ValueError(f"format: {format!r} is none of {', '.join(FORMATS)}")
    image = _to_pillow(on_white(rgb, alpha), None) if format == "jpg" else _to_pillow(rgb, alpha)
    note = json.dumps(dict(text), sort_keys=True)  # ASCII: readable whatever a reader takes the encoding for
    file = io.BytesIO()
    try:
        if format == "png":
            chunks = PngImagePlugin.PngInfo()
            for key, value in sorted(text.items()):
                chunks.add_text(key, value)
            image.save(file, "PNG", pnginfo=chunks, compress_type=zlib.Z_RLE)  # as small as Pillow's own, in half the time
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
    """The metadata that `encode` put into a file; empty where there is none.

    Raises:
        PictureError: `data` is no picture.
    """
    with _translated():
        image = _open(data, None)
        if isinstance(image, PngImagePlugin.PngImageFile):
            # `image.text` would decode all pixels, to reach text after them; `encode` writes it before.
            return {key: str(value) for key, value in image.png.im_text.items()} if image.png else {}
        try:
            note = image.info["comment"] if "comment" in image.info else image.getexif()[ExifTags.Base.ImageDescription]
            found = json.loads(note)
        except (KeyError, ValueError, TypeError):
            return {}  # somebody else's file
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Rec. 601 luma Y = 0.299 R + 0.587 G + 0.114 B, of (H, W, 3) in [0, 1] -> (H, W) float32."""
    return rgb.astype(np.float32) @ _REC601


def with_luminance(rgb: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """The picture's own YIQ chroma under another luma: (H, W, 3) and (H, W) -> (H, W, 3) float32 in [0, 1].

    This is the luminance-only transfer of Gatys et al. 2016 (arXiv 1606.05897). In YIQ each of R, G, B is Y plus a function
    linear in I and Q alone, so a new Y is one shift of all three channels. Where the shifted color would leave [0, 1], I and Q
    are scaled down together, as little as it takes: hue and luma stay, which clipping each channel would change both.
    """
    luma = np.clip(luma, 0, 1).astype(np.float32)
    chroma = rgb - luminance(rgb)[..., None]  # (H, W, 3)
    above, below = (np.maximum(extreme, 1e-12) for extreme in (chroma.max(axis=-1), -chroma.min(axis=-1)))
    scale = np.minimum(1, np.minimum((1 - luma) / above, luma / below))
    shifted: np.ndarray = np.clip(luma[..., None] + scale[..., None] * chroma, 0, 1)  # of the rounding
    return shifted.astype(np.float32)


def match_color(style: np.ndarray, content: np.ndarray) -> np.ndarray:
    """The style's colors mapped so that their mean m and covariance K are the content's: (h, w, 3) float32, not clipped.

    `K_content^1/2 K_style^-1/2 (x - m_style) + m_content` of rgb (H, W, 3) in [0, 1], any two sizes. This is the color matching
    of Gatys et al. 2016 (arXiv 1606.05897) with symmetric roots, which, unlike Cholesky factors, treat R, G and B alike.
    Along axes on which the style's colors deviate by less than an 8-bit step, we divide by a step, so that no rounding is
    blown up: a gray style becomes shades of one color, a flat one the content's mean. Some colors leave [0, 1]: whoever shows
    them clips them, at the price of exact statistics.
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
    """Mean (3,) and covariance (3, 3) of the colors of (H, W, 3), float64, and the centred colors (H W, 3) float32."""
    colors = rgb.reshape(-1, 3).astype(np.float32)
    mean = colors.mean(axis=0, dtype=np.float64)
    centred = colors - mean.astype(np.float32)
    return mean, (centred.T @ centred).astype(np.float64) / len(centred), centred


def match_luminance(luma: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`luma` (H, W) with the mean and standard deviation of `like` (any size): float32, not clipped.

    sd(like) / sd(luma) * (luma - mean(luma)) + mean(like), after arXiv 1606.05897; a flat luma is only shifted.
    """
    spread = luma.std(dtype=np.float64)
    scale = like.std(dtype=np.float64) / spread if spread > 0 else 1.0
    matched: np.ndarray = scale * (luma - luma.mean(dtype=np.float64)) + like.mean(dtype=np.float64)
    return matched.astype(np.float32)


def strip(pictures: Sequence[Picture | np.ndarray], height: int, gap: int) -> bytes:
    """A small JPEG with the pictures side by side, each `height` pixels high, `gap` white pixels apart.

    Each is a `Picture` or rgb (H, W, 3) in [0, 1]; one wider than three times its height shows its middle.
    """
    parts = []
    for entry in pictures:
        rgb = entry if isinstance(entry, np.ndarray) else on_white(entry.rgb, entry.alpha)
        width = min(rgb.shape[1], 3 * rgb.shape[0])
        left = (rgb.shape[1] - width) // 2
        seen = _to_pillow(rgb[:, left : left + width], None)  # of 8 bits, which take a third of the time to resize
        parts.append(seen.resize((max(1, round(width * height / rgb.shape[0])), height), Image.Resampling.LANCZOS))
    strip = Image.new("RGB", (sum(part.width for part in parts) + gap * (len(parts) - 1), height), "white")
    left = 0
    for part in parts:
        strip.paste(part, (left, 0))
        left += part.width + gap
    return _jpeg(strip, quality=85)


def shrunk(strip: bytes, height: int, max_pixels: int) -> bytes:
    """A strip as a JPEG that is at most `height` pixels high: the same bytes if it is one.

    Raises:
        PictureError: it is neither a JPEG nor a WebP, as older strips are; it is damaged, or has more than `max_pixels`.
    """
    with _translated():
        image: Image.Image = _open(strip, max_pixels)
        if image.format not in ("JPEG", "WEBP"):
            raise PictureError(f"a strip is a JPEG or a WebP, this is a {image.format}")
        if image.height <= height:
            return strip if image.format == "JPEG" else _jpeg(image.convert("RGB"))
        size = max(1, round(image.width * height / image.height)), height
        enough = max(1, size[0] - 1), max(1, size[1] - 1)  # but for the rounding
        image.draft("RGB", enough)  # a JPEG is decoded at a half, or less, where that is
        return _jpeg(image.convert("RGB").resize(size, Image.Resampling.HAMMING))


def _jpeg(image: Image.Image, quality: int = 75) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)  # in a tenth of the time of a WebP, for half as many bytes again
    return file.getvalue()


@contextmanager
def _translated() -> Iterator[None]:
    """Turns what Pillow raises into PictureError: on damaged bytes that is nearly any class, MemoryError included."""
    try:
        yield
    except NstError:
        raise
    except Exception as exc:
        remedy = "make it smaller" if isinstance(exc, (Image.DecompressionBombError, MemoryError)) else "check the file"
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise PictureError(f"the picture is damaged, truncated or of an unsupported kind: {reason}; {remedy}") from exc


def _open(data: bytes, max_pixels: int | None) -> ImageFile.ImageFile:
    """The header of a picture, its size checked, no pixel decoded.

    `Image.open` would measure it against `Image.MAX_IMAGE_PIXELS` too, warn above and raise above twice that. That
    limit and the warning filters belong to the whole process, and other threads decode meanwhile, so neither can be
    changed for a while. Hence we call Pillow's readers ourselves, as `Image.open` does, and apply the caller's limit
    alone. Pillow's own remains where a reader allocates at once: WebP above 179 megapixels, GIF frames off the canvas.
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
    """The EXIF orientation still to be applied, 1 (upright) to 8; a damaged EXIF says nothing."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF when it loads it, and tells the turned size from the start
    if image.format == "PNG":
        # PngImageFile.getexif would decode all pixels, for an eXIf chunk may follow them: step over the chunks instead.
        image.info.setdefault("exif", structure.png_chunk(data, b"eXIf") or b"")
    if len(image.info.get("exif", b"")) > _MAX_EXIF:
        return 1
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001, as in `_translated`
        return 1
    return value if value in _UPRIGHT else 1


def _planes(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """A loaded, upright image of any mode -> rgb (H, W, 3) sRGB and alpha (H, W) or None, float32 in [0, 1]."""
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        gray, alpha = _deep_gray(image)
        # Pillow manages the colours of 8 bits only, so the profile becomes a curve of 256 points: (256, 3).
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
    """A gray image of 12 or 16 bits or of floats -> gray (H, W) float32 in [0, 1] and alpha (H, W) or None."""
    stored = np.asarray(image)  # (H, W) uint16 of either byte order, int32 or float32
    tags = getattr(image, "tag_v2", {})
    white = 1 if image.mode == "F" else 65535
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        white = 4095
    low, high = float(stored.min()), float(stored.max())
    if not (low >= 0 and high <= white):  # so written, it refuses NaN too
        raise PictureError(f"gray values from {low:g} to {high:g} leave 0..{white}; save it with 8 or 16 bits")
    gray = stored.astype(np.float32) / np.float32(white)
    if image.mode != "F" and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        gray = 1 - gray  # WhiteIsZero, which Pillow heeds up to 8 bits
    hidden = image.info.get("transparency")  # the one gray value that a PNG declares transparent
    return gray, None if hidden is None else (stored != hidden).astype(np.float32)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An L, RGB or CMYK image -> RGB in sRGB; a broken profile, or one of another colour space, counts as absent."""
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
    """8-bit channels -> float32 in [0, 1]."""
    return np.asarray(image, np.float32) / np.float32(255)


def _to_pillow(rgb: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """rgb (H, W, 3) and alpha (H, W) or None in [0, 1] -> an 8-bit RGB or RGBA image."""
    planes = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], axis=-1)
    return Image.fromarray(np.rint(np.clip(planes, 0, 1) * 255).astype(np.uint8))


def on_white(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """The picture as seen on white paper: (H, W, 3)."""
    return rgb if alpha is None else rgb * alpha[..., None] + (1 - alpha[..., None])


def _lanczos(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    return _resampled(planes, height, width, Image.Resampling.LANCZOS)


def _resampled(planes: np.ndarray, height: int, width: int, kernel: Image.Resampling) -> np.ndarray:
    """Each channel of (H, W, C) float32 to (height, width, C), not clipped."""
    channels = (Image.fromarray(np.ascontiguousarray(planes[..., c], np.float32)) for c in range(planes.shape[-1]))
    return np.stack([np.asarray(c.resize((width, height), kernel)) for c in channels], axis=-1)
