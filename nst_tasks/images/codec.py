"""Decode image files to upright float32 sRGB in [0, 1], and encode results as PNG, JPEG or WebP.

`decode` applies the EXIF orientation, converts an embedded ICC profile to sRGB, keeps alpha apart and accepts 1 to 16 bit gray,
palettes, CMYK and float TIFF; of an animation it takes the first frame. All color arithmetic uses encoded (gamma) values, as
the networks were trained on them. Every error of Pillow is raised as a `PictureError`.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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

from nst_tasks.errors import NstError, PictureError
from nst_tasks.images import guard
from nst_tasks.images.color import luminance
from nst_tasks.images.picture import MIN_VISIBLE_ALPHA, OUTPUT_FORMATS, Picture, flatten_on_white

_PILLOW_READERS: tuple[type[ImageFile.ImageFile], ...] = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
)


_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transpose that makes the image upright; from 5 on, width and height are swapped."""


MAX_ASPECT_RATIO = 100
"""Largest ratio of an image's longer side to its shorter one."""


_MAX_EXIF_BYTES = 2**24
"""Largest EXIF block in bytes that is parsed: no camera writes more, and parsing takes several times as much memory."""


def check_file_size(file_bytes: int, max_pixels: int) -> None:
    """Refuse a file larger than an image of `max_pixels` needs: 4 bytes per pixel and 16 MiB of metadata.

    Raises:
        PictureError: The file is larger.
    """
    max_bytes = 4 * max_pixels + 2**24
    if file_bytes > max_bytes:
        raise PictureError(
            f"{file_bytes} bytes are above the limit of {max_bytes}; make it smaller or raise NST_MAX_MEGAPIXELS"
        )


def read_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Return an image's displayed (height, width) in pixels from its header alone.

    Raises:
        PictureError: The format is unknown, the header is damaged, the sides are too unequal, the structure is refused by
            `images.guard.check`, or there are more than `max_pixels` pixels.
    """
    with translate_pillow_errors():
        image = open_header(data, max_pixels)
        width, height = image.size
        return (width, height) if _read_orientation(image, data) >= 5 else (height, width)


def decode(data: bytes, max_pixels: int) -> Picture:
    """Decode an image file to upright sRGB: rgb (H, W, 3), alpha (H, W) or None, float32 in [0, 1].

    Raises:
        PictureError: As `read_size`, or the pixels are damaged, truncated or outside their format's range.
    """
    with translate_pillow_errors():
        image = open_header(data, max_pixels)
        transpose = _TRANSPOSE_BY_ORIENTATION.get(_read_orientation(image, data))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Only the TIFF reader checks Pillow's own pixel limit again while loading, unless memory is already allocated.
            stored = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
            image.im = Image.new(image.mode, stored, None).im
        image.load()
        rgb, alpha = _to_rgb_and_alpha(image if transpose is None else image.transpose(transpose))
    return Picture(rgb, None if alpha is None or alpha.min() >= 1 else alpha)


def decode_mask(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode a mask from an image file: luminance times alpha, (H, W) float32 in [0, 1]; 1 is stylized, 0 is not.

    Raises:
        PictureError: As `decode`, or the mask is black or transparent everywhere.
    """
    picture = decode(data, max_pixels)
    luma = np.clip(luminance(picture.rgb), 0, 1)
    values: np.ndarray = luma if picture.alpha is None else luma * picture.alpha
    if values.max() < MIN_VISIBLE_ALPHA:
        raise PictureError("the mask is black or transparent all over, so nothing would be stylized; paint white what is to be")
    return values


def encode(rgb: np.ndarray, alpha: np.ndarray | None, format: str, metadata: Mapping[str, str]) -> bytes:
    """Encode an image as a file with 8 bits per channel; the same input gives the same bytes.

    Args:
        rgb: Colors (H, W, 3), float in [0, 1].
        alpha: Opacity (H, W), float in [0, 1], or None; jpg is flattened on white.
        format: One of `OUTPUT_FORMATS`.
        metadata: Metadata. PNG holds it as text chunks (keys of 1 to 79 Latin-1 characters), JPEG as a JSON comment, WebP as a
            JSON EXIF ImageDescription.

    Raises:
        PictureError: The format cannot hold the image, for instance a WebP side above 16383 pixels.
        ValueError: `format` is not in `OUTPUT_FORMATS`.
    """
    if format not in OUTPUT_FORMATS:
        raise ValueError(f"format: {format!r} is none of {', '.join(OUTPUT_FORMATS)}")
    image = to_pillow(flatten_on_white(rgb, alpha), None) if format == "jpg" else to_pillow(rgb, alpha)
    metadata_json = json.dumps(dict(metadata), sort_keys=True)  # ASCII: readable in whatever encoding a reader assumes
    file = io.BytesIO()
    try:
        if format == "png":
            chunks = PngImagePlugin.PngInfo()
            for key, value in sorted(metadata.items()):
                chunks.add_text(key, value)
            image.save(file, "PNG", pnginfo=chunks, compress_type=zlib.Z_RLE)  # as small as Pillow's default, in half the time
        elif format == "jpg":
            image.save(file, "JPEG", quality=95, subsampling=0, comment=metadata_json.encode() if metadata else b"")
        else:
            exif = Image.Exif()
            exif[ExifTags.Base.ImageDescription] = metadata_json
            image.save(file, "WEBP", quality=95, exif=exif.tobytes() if metadata else b"")
    except (OSError, ValueError) as exc:
        raise PictureError(f"{image.width} x {image.height} pixels cannot be written as {format}: {exc}") from exc
    return file.getvalue()


def read_metadata(data: bytes) -> dict[str, str]:
    """Read the metadata that `encode` wrote into an image file; empty if there is none.

    Raises:
        PictureError: `data` is not an image.
    """
    with translate_pillow_errors():
        image = open_header(data, None)
        if isinstance(image, PngImagePlugin.PngImageFile):
            # `image.text` would decode all pixels to reach text after them; `encode` writes it before them.
            return {key: str(value) for key, value in image.png.im_text.items()} if image.png else {}
        try:
            metadata_json = (
                image.info["comment"] if "comment" in image.info else image.getexif()[ExifTags.Base.ImageDescription]
            )
            metadata = json.loads(metadata_json)
        except (KeyError, ValueError, TypeError):
            return {}  # not written by `encode`
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


@contextmanager
def translate_pillow_errors() -> Iterator[None]:
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


def open_header(data: bytes, max_pixels: int | None) -> ImageFile.ImageFile:
    """Open an image, check its structure and size, and decode no pixel.

    `Image.open` would also compare the size with `Image.MAX_IMAGE_PIXELS`, warn above it and raise above twice that. This
    limit and the warning filters are global to the process, in which other threads decode meanwhile, so neither can be
    changed temporarily. Hence we call Pillow's readers ourselves, as `Image.open` does, and apply only the caller's limit.
    Pillow's own limit remains where a reader allocates at once: WebP above 179 megapixels, GIF frames off the canvas.

    Args:
        data: The bytes of the file.
        max_pixels: The largest number of pixels, or None to skip all checks of structure and size.

    Raises:
        PictureError: The file is empty, of an unknown format, too large, too narrow, or refused by `images.guard.check`.
    """
    if not data:
        raise PictureError("not a picture: the file is empty, 0 bytes; check the file")
    if max_pixels is not None:
        guard.check(data, max_pixels)
    for reader in _PILLOW_READERS:
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
    if max_pixels is not None and max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise PictureError(
            f"{image.width} x {image.height} pixels are too narrow, "
            f"one side is more than {MAX_ASPECT_RATIO} times the other; crop it"
        )
    return image


def _read_orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the EXIF orientation that is still to be applied, 1 (upright) to 8; 1 if the EXIF block is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow rotates a TIFF on load, and reports the rotated size before
    if image.format == "PNG":
        # PngImageFile.getexif would decode all pixels, because an eXIf chunk may follow them: walk the chunks instead.
        image.info.setdefault("exif", guard.find_png_chunk(data, b"eXIf") or b"")
    if len(image.info.get("exif", b"")) > _MAX_EXIF_BYTES:
        return 1
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001, as in `translate_pillow_errors`
        return 1
    return value if value in _TRANSPOSE_BY_ORIENTATION else 1


def _to_rgb_and_alpha(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert a loaded, upright image of any mode to rgb (H, W, 3) in sRGB and alpha (H, W) or None, float32 in [0, 1]."""
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        gray, alpha = _to_gray_and_alpha(image)
        # Pillow applies profiles to 8 bits only, so the profile becomes a curve of 256 points: (256, 3).
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        curve = np.asarray(_to_srgb(ramp, profile))[0] / 255
        channels = [np.interp(gray, np.arange(256) / 255, curve[:, c]).astype(np.float32) for c in range(3)]
        return np.stack(channels, axis=-1), alpha
    gray_like = image.mode in ("1", "L", "LA", "La")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if gray_like else "RGBA")
        alpha = _to_unit_range(image.getchannel("A"))
    if image.mode != "CMYK":
        image = image.convert("L" if gray_like else "RGB")
    return _to_unit_range(_to_srgb(image, profile)), alpha


def _to_gray_and_alpha(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
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
    transparent_value = image.info.get("transparency")  # the one gray value that a PNG declares transparent
    return gray, None if transparent_value is None else (stored != transparent_value).astype(np.float32)


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


def _to_unit_range(image: Image.Image) -> np.ndarray:
    """Convert 8-bit channels to float32 in [0, 1]."""
    return np.asarray(image, np.float32) / np.float32(255)


def to_pillow(rgb: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """Convert rgb (H, W, 3) and alpha (H, W) or None, in [0, 1], to an 8-bit RGB or RGBA image."""
    planes = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], axis=-1)
    return Image.fromarray(np.rint(np.clip(planes, 0, 1) * 255).astype(np.uint8))
