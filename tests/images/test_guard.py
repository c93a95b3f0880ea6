"""Files that cost a decoder far more than their pixels, built in memory and refused before decoding."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nst_tasks.errors import PictureError
from nst_tasks.images import guard
from nst_tasks.images.codec import decode, read_size

LIMIT = 1_000_000


def get_refusal(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        read_size(data, LIMIT)
    with pytest.raises(PictureError):
        decode(data, LIMIT)
    return str(caught.value)


def encode_picture(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def write_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("name", [b"tEXt", b"teSt", b"IDAT"])
def test_png_of_too_many_chunks_is_refused(name: bytes) -> None:
    data = encode_picture("PNG")
    at = data.index(b"IDAT") - 4
    spare = guard.MAX_PARTS - len(list(guard._iterate_png_chunks(data)))
    guard.check(data[:at] + write_chunk(name, b"") * spare + data[at:], LIMIT)
    many_chunks = data[:at] + write_chunk(name, b"") * (spare + 1) + data[at:]
    assert get_refusal(many_chunks) == "the picture has more than 100000 chunks; open it and save it anew"


def test_last_chunk_of_a_kind_counts() -> None:
    data = encode_picture("PNG")
    assert guard.find_png_chunk(data + write_chunk(b"eXIf", b"one") + write_chunk(b"eXIf", b"two"), b"eXIf") == b"two"
    assert guard.find_png_chunk(data, b"eXIf") is None


@pytest.mark.parametrize("is_progressive", [True, False])
def test_jpeg_of_too_many_scans_is_refused(is_progressive: bool) -> None:
    data = encode_picture("JPEG", progressive=is_progressive)
    scans = len(list(guard._iterate_jpeg_scans(data)))
    assert scans == (10 if is_progressive else 1)
    scan = data[data.rindex(b"\xff\xda") : -2]
    guard.check(data[:-2] + scan * (100 - scans) + data[-2:], LIMIT)
    endless = data[:-2] + scan * (101 - scans) + data[-2:]
    assert get_refusal(endless) == "the picture has more than 100 scans; open it and save it anew"


def test_a_jpegs_thumbnails_and_comments_are_no_scans() -> None:
    data = encode_picture("JPEG", comment=b"\xff\xda\0\0" * 2000, exif=b"Exif\0\0" + b"\xff\xda\0\0" * 2000)
    assert len(list(guard._iterate_jpeg_scans(data))) == 1
    assert read_size(data, LIMIT) == (40, 50)


@pytest.mark.parametrize("block", [b"!\xfe\x01a\0", b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"])
def test_gif_of_too_many_blocks_is_refused(block: bytes) -> None:
    data = encode_picture("GIF")
    at = 13 + 3 * 256
    assert read_size(data[:at] + block * 1000 + data[at:], LIMIT) == (40, 50)
    many_blocks = data[:at] + block * 100_001 + data[at:]
    assert (
        get_refusal(many_blocks) == "the picture has more than 100000 blocks before its first frame; open it and save it anew"
    )


def test_a_gifs_frames_are_not_counted() -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in range(200)]
    assert read_size(encode_picture("GIF", save_all=True, append_images=frames * 10), LIMIT) == (40, 50)


def write_tiff(*tags: tuple[int, int, int, int], order: str = "<", is_big: bool = False, tail: bytes = b"") -> bytes:
    """Write a TIFF of 16 x 16 gray pixels in one strip, with these tags (number, type, count, value)."""
    pixels = bytes(256)
    head, entry = ("Q", "HHQ") if is_big else ("H", "HHI")
    width = 8 if is_big else 4
    plain = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1), (279, 4, 1, 256)]
    own = {tag for tag, *_ in tags}
    entries = sorted([*tags, *(tag for tag in plain if tag[0] not in own)])
    start = (16 if is_big else 8) + struct.calcsize("=" + head) + len(entries) * (20 if is_big else 12) + width
    if 273 not in own:
        entries = sorted([*entries, (273, 4, 1, start + (20 if is_big else 12))])
    mark = b"II" if order == "<" else b"MM"
    data = mark + struct.pack(order + ("HHHQ" if is_big else "HI"), *((43, 8, 0, 16) if is_big else (42, 8)))
    data += struct.pack(order + head, len(entries))
    for tag, kind, count, value in entries:
        code = {3: "H", 4: "I", 1: "B"}[kind]
        data += struct.pack(order + entry, tag, kind, count) + struct.pack(order + code, value).ljust(width, b"\0")
    return data + bytes(width) + pixels + tail


@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True), (">", True)])
def test_tiff_with_a_huge_tile_is_refused(order: str, is_big: bool) -> None:
    for width, height in ((30000, 30000), (16, 62501)):
        data = write_tiff((322, 4, 1, width), (323, 4, 1, height), (324, 4, 1, 8), (325, 4, 1, 8), order=order, is_big=is_big)
        sentence = f"a tile of {width * height / 1e6:g} megapixels is above the limit of 1 megapixels; save it in smaller tiles"
        assert get_refusal(data).startswith(sentence)
    guard.check(write_tiff((322, 4, 1, 1000), (323, 3, 1, 1000), order=order, is_big=is_big), LIMIT)


@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True), (">", True)])
def test_tiff_with_too_many_values_is_refused(order: str, is_big: bool) -> None:
    many_values = write_tiff((273, 4, 500_001, 8), order=order, is_big=is_big)
    assert get_refusal(many_values) == "the picture has 500001 values in its tag 273; open it and save it anew"
    guard.check(write_tiff((273, 4, 500_000, 8), order=order, is_big=is_big), LIMIT)
    guard.check(write_tiff((37724, 1, 2_000_000, 8), order=order, is_big=is_big), LIMIT)  # layers, as bytes
    plain = write_tiff(order=order, is_big=is_big)
    assert is_big or decode(plain, LIMIT).rgb.shape == (16, 16, 3)


@pytest.mark.parametrize("pointer", [34665, 34853, 40965])
def test_tiff_directories_are_followed_without_loops(pointer: int) -> None:
    plain = write_tiff((pointer, 4, 1, 0))
    inside = struct.pack("<HHHII", 1, 42000, 4, 500_001, 8) + bytes(4)
    assert "500001 values in its tag 42000" in get_refusal(write_tiff((pointer, 4, 1, len(plain)), tail=inside))
    circle = struct.pack("<HHHII", 1, pointer, 4, 1, len(plain)) + bytes(4)
    guard.check(write_tiff((pointer, 4, 1, len(plain)), tail=circle), LIMIT)


@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+"]),
    st.binary(),
)
def test_any_bytes_are_walked_without_an_error(magic: bytes, tail: bytes) -> None:
    try:
        guard.check(magic + tail, LIMIT)
    except PictureError as error:
        assert "; " in str(error)
