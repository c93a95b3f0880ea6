"""Reject image files that are disproportionately expensive to decode, before a decoder sees them.

The number of pixels does not bound the cost: a JPEG may repeat them in many scans, a TIFF may put one pixel into a tile of
gigabytes, and a PNG or GIF may have millions of empty parts. Pure; each check is linear in the file size and stops early.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator

from nst_tasks.errors import PictureError

MAX_PARTS = 100_000
"""Largest number of PNG chunks, or of GIF blocks before the first frame; the largest real PNG has about fifty thousand."""
MAX_JPEG_SCANS = 100
"""Largest number of scans in a JPEG; a progressive one has about ten."""
MAX_TIFF_VALUES = 500_000
"""Largest number of values in one numeric TIFF tag; as many tiles of 16 x 16 make 128 megapixels."""


def check(data: bytes, max_pixels: int) -> None:
    """Refuse a file whose structure makes a decoder compute or allocate out of proportion.

    Damaged files pass: the decoder reports them.

    Raises:
        PictureError: The file has too many chunks, blocks, scans or values, or a tile of more than `max_pixels` pixels.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_count(_iterate_png_chunks(data), MAX_PARTS, "chunks")
    elif data.startswith(b"\xff\xd8\xff"):
        _check_count(_iterate_jpeg_scans(data), MAX_JPEG_SCANS, "scans")
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_count(_iterate_gif_blocks(data), MAX_PARTS, "blocks before its first frame")
    elif data[:2] in (b"II", b"MM"):
        for is_big in {data[2:3] == b"+", b"+" in data[2:4]}:  # decoders differ in how they detect a BigTIFF
            _check_tiff(data, is_big, max_pixels)


def find_png_chunk(data: bytes, kind: bytes) -> bytes | None:
    """Return the content of a PNG's last chunk of a kind, such as `eXIf`, or None if it has no such chunk."""
    content = None
    for at, length in _iterate_png_chunks(data):
        if data[at + 4 : at + 8] == kind:
            content = data[at + 8 : at + 8 + length]
    return content


def _check_count(parts: Iterator[object], limit: int, noun: str) -> None:
    """Refuse a file that has too many parts.

    Raises:
        PictureError: There are more than `limit` parts.
    """
    for number, _ in enumerate(parts):
        if number >= limit:
            raise PictureError(f"the picture has more than {limit} {noun}; open it and save it anew")


def _iterate_png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the offset of each PNG chunk and the length of its content, in bytes."""
    at = 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield at, length
        at += 12 + length


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd9\xff]")
"""Start of a JPEG segment; inside a scan's coded pixels, 0xFF is always followed by 0 or a restart marker."""


def _iterate_jpeg_scans(data: bytes) -> Iterator[int]:
    """Yield the offset of each scan of a JPEG."""
    at = 2
    while marker := _JPEG_MARKER.search(data, at):
        at = marker.end()
        if marker[0] == b"\xff\xda":
            yield at
        if at + 2 <= len(data):
            at += int.from_bytes(data[at : at + 2], "big")


def _iterate_gif_blocks(data: bytes) -> Iterator[int]:
    """Yield the offset of each extension block and sub-block before a GIF's first frame."""
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at : at + 1] == b"!":
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += data[at] + 1
        yield at
        at += 1


_TIFF_BYTE_TYPES = (1, 2, 6, 7)
"""TIFF types of bytes and text, which decoders read as one string; of other types each value becomes a Python object."""
_TIFF_INTEGER_FORMATS = {**dict.fromkeys((1, 6), "B"), **dict.fromkeys((3, 8), "H"), **dict.fromkeys((4, 9, 13), "I")}
"""TIFF integer types of up to 32 bits -> `struct` format characters."""
_TIFF_TILE_SIDE_TAGS = (322, 323)
_TIFF_DIRECTORY_TAGS = (34665, 34853, 40965)
"""TIFF tags that point to further directories and are read with an image: EXIF, GPS, interoperability."""


def _check_tiff(data: bytes, is_big: bool, max_pixels: int) -> None:
    """Refuse a TIFF or BigTIFF whose first directory, or one that it points to, has too many values or too large a tile.

    Raises:
        PictureError: A numeric tag has more than `MAX_TIFF_VALUES` values, or a tile more than `max_pixels` pixels.
    """
    order = "<" if data[:2] == b"II" else ">"
    count_struct, entry_struct, offset_struct = (
        struct.Struct(order + code) for code in (("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I"))
    )
    start = 8 if is_big else 4
    pending = [offset_struct.unpack_from(data, start)[0]] if len(data) >= start + offset_struct.size else []
    seen: set[int] = set()
    while pending:
        at = pending.pop()
        if at in seen or at + count_struct.size > len(data):
            continue
        seen.add(at)
        (count,) = count_struct.unpack_from(data, at)
        at += count_struct.size
        tile = dict.fromkeys(_TIFF_TILE_SIDE_TAGS, 0)
        for number in range(min(count, (len(data) - at) // entry_struct.size)):
            tag, kind, values, inline_value = entry_struct.unpack_from(data, at + number * entry_struct.size)
            if values > MAX_TIFF_VALUES and kind not in _TIFF_BYTE_TYPES:
                raise PictureError(f"the picture has {values} values in its tag {tag}; open it and save it anew")
            if kind in _TIFF_INTEGER_FORMATS:
                (value,) = struct.unpack_from(order + _TIFF_INTEGER_FORMATS[kind], inline_value)
                if tag in tile:
                    tile[tag] = max(tile[tag], value)
                elif tag in _TIFF_DIRECTORY_TAGS:
                    pending.append(value)
        if (pixels := math.prod(tile.values())) > max_pixels:
            raise PictureError(
                f"a tile of {pixels / 1e6:.6g} megapixels is above the limit of {max_pixels / 1e6:.6g} megapixels; "
                "save it in smaller tiles or raise NST_MAX_MEGAPIXELS"
            )
