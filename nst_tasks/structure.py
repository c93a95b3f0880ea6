"""What a picture's file is made of, walked before a decoder sees it: what would cost far more than its pixels is refused.

The number of pixels says little about that: a JPEG may draw them over and over, scan by scan, a TIFF put one pixel into a tile
of gigabytes, and a PNG or GIF have millions of parts of nothing. Pure; each walk is linear in the file and stops early.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator

from nst_tasks.errors import PictureError

MOST_PARTS = 100_000
"""Chunks of a PNG, blocks before a GIF's first frame: some fifty thousand make the largest PNG."""
MOST_SCANS = 100
"""Of a JPEG: a progressive one has about ten."""
MOST_VALUES = 500_000
"""Of one TIFF tag that holds numbers: as many tiles of 16 x 16 make 128 megapixels."""


def check(data: bytes, max_pixels: int) -> None:
    """Refuse a file whose structure makes a decoder work or allocate out of proportion; damage is left to the decoder to find.

    Raises:
        PictureError: too many chunks, blocks, scans or values, or a tile of more than `max_pixels` pixels.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _count(_png_chunks(data), MOST_PARTS, "chunks")
    elif data.startswith(b"\xff\xd8\xff"):
        _count(_jpeg_scans(data), MOST_SCANS, "scans")
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _count(_gif_blocks(data), MOST_PARTS, "blocks before its first frame")
    elif data[:2] in (b"II", b"MM"):
        for is_big in {data[2:3] == b"+", b"+" in data[2:4]}:  # decoders differ in what makes a BigTIFF
            _check_tiff(data, is_big, max_pixels)


def png_chunk(data: bytes, kind: bytes) -> bytes | None:
    """The content of a PNG's last chunk of this kind; None where there is none."""
    found = None
    for at, length in _png_chunks(data):
        if data[at + 4 : at + 8] == kind:
            found = data[at + 8 : at + 8 + length]
    return found


def _count(parts: Iterator[object], most: int, what: str) -> None:
    for number, _ in enumerate(parts):
        if number >= most:
            raise PictureError(f"the picture has more than {most} {what}; open it and save it anew")


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each chunk begins, and the length of its content."""
    at = 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield at, length
        at += 12 + length


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd9\xff]")
"""What begins a segment, also after the coded pixels of a scan, in which \xff is followed by 0 or a restart."""


def _jpeg_scans(data: bytes) -> Iterator[int]:
    at = 2
    while marker := _JPEG_MARKER.search(data, at):
        at = marker.end()
        if marker[0] == b"\xff\xda":
            yield at
        if at + 2 <= len(data):
            at += int.from_bytes(data[at : at + 2], "big")


def _gif_blocks(data: bytes) -> Iterator[int]:
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at : at + 1] == b"!":
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += data[at] + 1
        yield at
        at += 1


_BYTES = (1, 2, 6, 7)
"""TIFF's types of bytes and text, which stay what they are; of numbers, each becomes an object."""
_WHOLE = {**dict.fromkeys((1, 6), "B"), **dict.fromkeys((3, 8), "H"), **dict.fromkeys((4, 9, 13), "I")}
"""Its types of whole numbers up to 32 bits, with `struct`'s codes."""
_TILE_SIDES = (322, 323)
_DIRECTORIES = (34665, 34853, 40965)
"""Tags that point to further directories, those that are read with a picture: EXIF, GPS, interoperability."""


def _check_tiff(data: bytes, is_big: bool, max_pixels: int) -> None:
    order = "<" if data[:2] == b"II" else ">"
    head, entry, pointer = (struct.Struct(order + code) for code in (("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")))
    start = 8 if is_big else 4
    waiting = [pointer.unpack_from(data, start)[0]] if len(data) >= start + pointer.size else []
    seen: set[int] = set()
    while waiting:
        at = waiting.pop()
        if at in seen or at + head.size > len(data):
            continue
        seen.add(at)
        (count,) = head.unpack_from(data, at)
        at += head.size
        tile = dict.fromkeys(_TILE_SIDES, 0)
        for number in range(min(count, (len(data) - at) // entry.size)):
            tag, kind, values, inside = entry.unpack_from(data, at + number * entry.size)
            if values > MOST_VALUES and kind not in _BYTES:
                raise PictureError(f"the picture has {values} values in its tag {tag}; open it and save it anew")
            if kind in _WHOLE:
                (value,) = struct.unpack_from(order + _WHOLE[kind], inside)
                if tag in tile:
                    tile[tag] = max(tile[tag], value)
                elif tag in _DIRECTORIES:
                    waiting.append(value)
        if (pixels := math.prod(tile.values())) > max_pixels:
            raise PictureError(
                f"a tile of {pixels / 1e6:.6g} megapixels is above the limit of {max_pixels / 1e6:.6g} megapixels; "
                "save it in smaller tiles or raise NST_MAX_MEGAPIXELS"
            )
