"""Pictures of every format and pixel type, built in memory, with expected pixels computed by hand."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile
from skimage.data import chelsea

from nst_tasks.errors import PictureError
from nst_tasks.images import codec
from nst_tasks.images.codec import decode, encode, read_metadata, read_size
from nst_tasks.images.color import luminance, match_color, match_luminance, replace_luminance
from nst_tasks.images.picture import OUTPUT_FORMATS, Picture
from nst_tasks.images.resize import composite, fit_size, has_same_aspect, resize, resize_mask
from nst_tasks.images.thumbnail import encode_strip, shrink_strip

LIMIT = 1_000_000
GRAYS = (0, 1, 257, 32768, 65534, 65535)


def encode_image(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def make_noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def make_flat(rgb: tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> Image.Image:
    return Image.new(mode, size, rgb)


def write_png(width: int, height: int, depth: int, kind: int, *chunks: tuple[bytes, bytes], rows: bytes = b"") -> bytes:
    """Write a PNG by hand; `rows` are filter byte plus samples, row after row."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def write_tiff(width: int, height: int, bits: int, photometric: int, pixels: bytes) -> bytes:
    """Write a little-endian, uncompressed gray TIFF of one strip by hand."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (277, 1), (278, height)]
    tags += [(273, 8 + 2 + 9 * 12 + 4), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def write_icc(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Write an ICC profile by hand (ICC.1:2001-04): 128 bytes of header, the tag table, the tags."""
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", at + len(body), 0x02400000, b"scnr", space, pcs, b"acsp") + encode_xyz(
        0.9642, 1.0, 0.8249
    )
    return head[:128].ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def encode_xyz(*values: float) -> bytes:
    return struct.pack(">3i", *(round(value * 65536) for value in values))


def encode_gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142))
"""XYZ of sRGB's red, green and blue, adapted to D50."""


def make_matrix_profile(red: int, green: int, blue: int, power: float) -> bytes:
    """Write an RGB profile whose channels are sRGB's primaries in the order given."""
    tags = {name: encode_gamma(power) for name in (b"rTRC", b"gTRC", b"bTRC")}
    for name, index in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue)):
        tags[name] = b"XYZ " + bytes(4) + encode_xyz(*SRGB_PRIMARIES[index])
    return write_icc(b"RGB ", b"XYZ ", tags)


def make_ink_profile() -> bytes:
    """Write a CMYK profile in which only black ink prints, L* = 100 (1 - K), and C, M, Y leave the paper white."""
    identity = bytes(range(256))
    grid = b"".join(bytes((0 if corner & 1 else 255, 128, 128)) for corner in range(16))  # K runs fastest
    unit = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + unit + 4 * identity + grid + 3 * identity
    return write_icc(b"CMYK", b"Lab ", {b"A2B0": lut})


def read_color(data: bytes) -> list[int]:
    """Return the one color of a flat picture, in 8-bit steps."""
    rgb = decode(data, LIMIT).rgb
    assert np.ptp(rgb, axis=(0, 1)).max() < 2 / 255
    return np.rint(rgb[1, 1] * 255).astype(int).tolist()


# Reading: kinds of pixels


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP"])
def test_lossless_formats_give_their_bytes_over_255(format):
    pixels = make_noise(5, 7)
    picture = decode(encode_image(Image.fromarray(pixels), format, **({"lossless": True} if format == "WEBP" else {})), LIMIT)
    assert picture.rgb.dtype == np.float32
    assert picture.alpha is None
    np.testing.assert_array_equal(picture.rgb, pixels.astype(np.float32) / np.float32(255))


def test_jpeg_is_read():
    assert (
        np.abs(np.subtract(read_color(encode_image(make_flat((200, 100, 50)), "JPEG", quality=95)), (200, 100, 50))).max() <= 2
    )


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_gray_and_one_bit(format):
    assert read_color(encode_image(make_flat((77,), "L"), format)) == [77, 77, 77]
    rgb = decode(encode_image(Image.fromarray(np.array([[True, False]])), format), LIMIT).rgb
    np.testing.assert_array_equal(rgb, [[[1, 1, 1], [0, 0, 0]]])


def make_palette_picture() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    image = image.convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "BMP"])
def test_palette(format):
    picture = decode(encode_image(make_palette_picture(), format), LIMIT)
    np.testing.assert_array_equal(picture.rgb, [np.eye(3)])
    assert picture.alpha is None


def test_palette_with_transparency():
    half = encode_image(make_palette_picture(), "PNG", transparency=bytes((255, 0, 51)))
    np.testing.assert_allclose(decode(half, LIMIT).alpha, [[1, 0, 0.2]])
    np.testing.assert_array_equal(decode(half, LIMIT).rgb, [np.eye(3)])
    gif = encode_image(make_palette_picture(), "GIF", transparency=1)
    np.testing.assert_array_equal(decode(gif, LIMIT).alpha, [[1, 0, 1]])


def test_one_transparent_gray_or_colour():
    gray = encode_image(Image.fromarray(np.array([[10, 20]], np.uint8)), "PNG", transparency=10)
    np.testing.assert_array_equal(decode(gray, LIMIT).alpha, [[0, 1]])
    colour = encode_image(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), "PNG", transparency=(4, 5, 6))
    np.testing.assert_array_equal(decode(colour, LIMIT).alpha, [[1, 0]])
    deep = write_png(2, 1, 16, 0, (b"tRNS", struct.pack(">H", 258)), rows=b"\0" + struct.pack(">2H", 257, 258))
    np.testing.assert_array_equal(decode(deep, LIMIT).alpha, [[1, 0]])


@pytest.mark.parametrize(
    ("mode", "format"),
    [("LA", "PNG"), ("LA", "TIFF"), ("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP")],  # WebP has no gray
)
def test_alpha_is_separate_from_color(mode, format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = make_noise(4, 5, len(mode))
    picture = decode(encode_image(Image.fromarray(pixels, mode), format, **options), LIMIT)
    np.testing.assert_array_equal(picture.alpha, pixels[..., -1].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(np.rint(picture.rgb * 255), np.broadcast_to(pixels[..., :-1], (4, 5, 3)))


def test_opaque_alpha_is_dropped():
    assert decode(encode_image(make_flat((1, 2, 3, 255), "RGBA"), "PNG"), LIMIT).alpha is None


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "rgb"), [((0, 255, 255, 0), [255, 0, 0]), ((0, 0, 0, 0), [255] * 3), ((0, 0, 0, 255), [0] * 3)]
)
def test_cmyk(ink, rgb, format):
    # Pillow writes CMYK JPEGs as Adobe does, inverted; reading them the other way round would make white black.
    assert np.abs(np.subtract(read_color(encode_image(make_flat(ink, "CMYK"), format)), rgb)).max() <= 2


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(format):
    data = encode_image(Image.fromarray(np.array([GRAYS], np.uint16)), format)
    expected = np.repeat(np.array([GRAYS], np.float32)[..., None] / 65535, 3, axis=-1)
    np.testing.assert_allclose(decode(data, LIMIT).rgb, expected, atol=1e-7)


def test_deep_gray_tiff_variants_are_decoded():
    big = encode_image(Image.fromarray(np.array([GRAYS], ">u2")), "TIFF")
    assert big[:2] == b"MM"
    np.testing.assert_allclose(decode(big, LIMIT).rgb[0, :, 0], np.array(GRAYS) / 65535, atol=1e-7)
    inverted_gray = write_tiff(3, 1, 16, 0, struct.pack("<3H", 0, 13107, 65535))
    np.testing.assert_allclose(decode(inverted_gray, LIMIT).rgb[0, :, 0], [1, 0.8, 0], atol=1e-7)
    twelve = write_tiff(2, 1, 12, 1, bytes((0xFF, 0xF3, 0x33)))  # 4095 and 819
    np.testing.assert_allclose(decode(twelve, LIMIT).rgb[0, :, 0], [1, 0.2], atol=1e-7)


def test_integer_and_float_gray():
    integer = encode_image(Image.fromarray(np.array([[0, 13107, 65535]], np.int32)), "TIFF")
    np.testing.assert_allclose(decode(integer, LIMIT).rgb[0, :, 0], [0, 0.2, 1], atol=1e-7)
    real = encode_image(Image.fromarray(np.array([[0, 0.3, 1]], np.float32)), "TIFF")
    np.testing.assert_allclose(decode(real, LIMIT).rgb[0, :, 2], [0, 0.3, 1], atol=1e-7)


@pytest.mark.parametrize(
    "values",
    [np.array([[0, 70000]], np.int32), np.array([[-1, 5]], np.int32)]
    + [np.array([[0, bad]], np.float32) for bad in (255, -0.1, np.nan, np.inf)],
)
def test_gray_out_of_range_is_refused(values):
    with pytest.raises(PictureError, match=r"^gray values from .* leave 0\.\.(1|65535); save it"):
        decode(encode_image(Image.fromarray(values), "TIFF"), LIMIT)


def test_sixteen_bit_colour():
    data = write_png(2, 1, 16, 2, rows=b"\0" + struct.pack(">6H", 65535, 0, 0x8080, 0x4040, 0xC0C0, 257))
    np.testing.assert_allclose(decode(data, LIMIT).rgb, np.array([[[255, 0, 128], [64, 192, 1]]]) / 255, atol=1e-6)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_is_decoded(format):
    frames = [make_flat((255, 0, 0)), make_flat((0, 0, 255)), make_flat((0, 255, 0))]
    options = {"lossless": True} if format == "WEBP" else {}
    assert read_color(encode_image(frames[0], format, save_all=True, append_images=frames[1:], **options)) == [255, 0, 0]


# Reading: orientation

UPRIGHT = np.kron(np.array([[0, 80, 160], [255, 200, 40]], np.uint8), np.ones((16, 16), np.uint8))
"""Six flat squares of 16 pixels: no two turns look the same, and JPEG's blocks fall on them."""

STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}
"""EXIF orientation -> the pixels as stored. 6 means: turn by 90 degrees clockwise to show."""


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_gives_the_same_upright_picture(orientation, format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation])).convert("RGB")
    data = encode_image(image, format, exif=exif)
    assert read_size(data, LIMIT) == UPRIGHT.shape
    rgb = decode(data, LIMIT).rgb
    assert rgb.shape == (32, 48, 3)
    assert np.abs(rgb[..., 1] * 255 - UPRIGHT).max() <= 4


def test_png_orientation_after_the_pixels_is_read():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    plain = encode_image(make_flat((1, 2, 3), size=(5, 2)), "PNG")
    body = b"eXIf" + exif.tobytes()[6:]
    late = plain[:-12] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + plain[-12:]
    assert read_size(late, LIMIT) == decode(late, LIMIT).rgb.shape[:2] == (5, 2)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns while it opens the file
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage of some length"])
def test_a_damaged_exif_means_upright(exif):
    data = encode_image(make_flat((9, 9, 9), size=(6, 4)), "JPEG", exif=exif)
    assert read_size(data, LIMIT) == decode(data, LIMIT).rgb.shape[:2] == (4, 6)


# Reading: colour profiles


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_icc_profile_with_swapped_primaries_swaps_colors(format):
    options = {"quality": 100} if format in ("JPEG", "WEBP") else {}
    data = encode_image(make_flat((255, 0, 0)), format, icc_profile=make_matrix_profile(1, 0, 2, 2.2), **options)
    assert np.abs(np.subtract(read_color(data), (0, 255, 0))).max() <= 2


def test_a_linear_profile_brightens_to_the_srgb_curve():
    # sRGB of linear 51 / 255 = 0.2 is 1.055 * 0.2 ** (1 / 2.4) - 0.055 = 0.4845 = 124 / 255.
    linear = make_matrix_profile(0, 1, 2, 1.0)
    for image in (
        make_flat((51, 51, 51)),
        make_flat((51,), "L"),
        make_flat((51, 51, 51, 128), "RGBA"),
        make_flat((51,), "L").convert("P"),
    ):
        assert np.abs(np.subtract(read_color(encode_image(image, "PNG", icc_profile=linear)), 124)).max() <= 1


def test_alpha_passes_a_profile_untouched():
    picture = decode(
        encode_image(make_flat((51, 51, 51, 128), "RGBA"), "PNG", icc_profile=make_matrix_profile(0, 1, 2, 1.0)), LIMIT
    )
    np.testing.assert_allclose(picture.alpha, 128 / 255)


def test_a_gray_profile_at_eight_and_sixteen_bits():
    linear = write_icc(
        b"GRAY", b"XYZ ", {b"kTRC": encode_gamma(1.0), b"wtpt": b"XYZ " + bytes(4) + encode_xyz(0.9642, 1, 0.8249)}
    )
    assert np.abs(np.subtract(read_color(encode_image(make_flat((51,), "L"), "PNG", icc_profile=linear)), 124)).max() <= 1
    assert np.abs(np.subtract(read_color(encode_image(make_flat((51, 9), "LA"), "PNG", icc_profile=linear)), 124)).max() <= 1
    ramp = np.array([[13107, 13107 + 128]], np.uint16)  # half an 8-bit step apart: still distinct
    rgb = decode(encode_image(Image.fromarray(ramp), "PNG", icc_profile=linear), LIMIT).rgb
    assert abs(rgb[0, 0, 0] - 124 / 255) < 1 / 255
    assert 0 < rgb[0, 1, 0] - rgb[0, 0, 0] < 1.5 / 255


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_a_cmyk_profile(format):
    data = encode_image(make_flat((255, 0, 0, 128), "CMYK"), format, icc_profile=make_ink_profile())
    # L* = 100 (1 - 128 / 255) = 49.8, a luminance of 0.1825, sRGB 118; cyan does not print. Without: 0, 127, 127.
    assert np.abs(np.subtract(read_color(data), 118)).max() <= 3


@pytest.mark.parametrize(
    "profile",
    [b"garbage", b"\0" * 200, make_matrix_profile(1, 0, 2, 2.2)[:150], make_ink_profile(), write_icc(b"RGB ", b"XYZ ", {})],
    ids=["garbage", "zeros", "cut", "other space", "no tags"],
)
def test_a_broken_or_foreign_profile_counts_as_srgb(profile):
    assert read_color(encode_image(make_flat((200, 100, 50)), "PNG", icc_profile=profile)) == [200, 100, 50]


def test_an_srgb_profile_changes_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (
        np.abs(np.subtract(read_color(encode_image(make_flat((200, 100, 50)), "PNG", icc_profile=srgb)), (200, 100, 50))).max()
        <= 1
    )


# Refusals


@pytest.mark.parametrize("read", [read_size, decode])
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not a picture: the file is empty, 0 bytes; check the file"),
        (b"<svg/>", "not a picture: the bytes are no PNG, JPEG, WebP, TIFF, BMP or GIF; check the file"),
        (encode_image(make_flat((1, 2, 3)), "PPM"), "not a picture: the bytes are no PNG"),
        (encode_image(make_flat((1, 2, 3)), "ICO"), "not a picture: the bytes are no PNG"),
        *(
            (encode_image(make_flat((1, 2, 3)), format), "not a picture: the bytes are no PNG")
            for format in ("EPS", "PDF", "TGA", "ICNS", "DDS")
        ),
        (b"PK\x03\x04" + encode_image(make_flat((1, 2, 3)), "PNG"), "not a picture: the bytes are no PNG"),
        (b"\n" + encode_image(make_flat((1, 2, 3)), "PNG"), "not a picture: the bytes are no PNG"),
    ],
    ids=["empty", "text", "ppm", "ico", "eps", "pdf", "tga", "icns", "dds", "zip before it", "newline before it"],
)
def test_other_files_are_refused(data, sentence, read):
    with pytest.raises(PictureError, match="^" + sentence):
        read(data, LIMIT)


def test_bytes_after_the_picture_are_ignored():
    """A polyglot is read as the picture that it begins with, and none of its bytes go into a result."""
    data = encode_image(make_flat((0, 51, 255)), "PNG") + b"PK\x03\x04<script>alert(1)</script>"
    picture = decode(data, LIMIT)
    assert read_color(data) == [0, 51, 255]
    assert b"script" not in encode(picture.rgb, picture.alpha, "png", {})


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_text_that_decompresses_to_megabytes_is_refused(kind):
    body = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[kind] + zlib.compress(bytes(20_000_000))
    with pytest.raises(PictureError, match="too large .*; check the file"):
        read_size(write_png(4, 3, 8, 2, (kind, body)), LIMIT)


def test_oversized_exif_is_ignored():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for spare, size in ((0, (6, 4)), (2**24, (4, 6))):
        assert read_size(write_png(6, 4, 8, 2, (b"eXIf", exif.tobytes()[6:] + bytes(spare))), LIMIT) == size


def test_file_size_is_limited_by_its_pixels():
    codec.check_file_size(4 * LIMIT + 2**24, LIMIT)
    with pytest.raises(PictureError, match="^20777217 bytes are above the limit of 20777216; make it smaller or raise NST_MAX"):
        codec.check_file_size(4 * LIMIT + 2**24 + 1, LIMIT)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_image_is_refused_or_read(format):
    data = encode_image(Image.fromarray(make_noise(40, 40)), format)
    for length in (*range(200), len(data) // 2):
        for read in (read_size, decode):
            try:
                read(data[:length], LIMIT)
            except PictureError as error:
                assert str(error).endswith(("check the file", "make it smaller"))
    with pytest.raises(PictureError, match="^the picture is damaged, truncated or of an unsupported kind: .*; check"):
        decode(data[: len(data) // 2], LIMIT)
    with pytest.raises(PictureError):
        read_size(data[:18], LIMIT)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_flipped_bytes_raise_nothing_but_picture_errors(format):
    data = encode_image(Image.fromarray(make_noise(12, 12)), format)
    random = np.random.default_rng(1)
    for _ in range(150):
        copy = bytearray(data)
        for at in random.integers(0, min(len(data), 300), 3):
            copy[at] = random.integers(256)
        with suppress(PictureError):
            decode(bytes(copy), LIMIT)


@pytest.mark.parametrize("read", [read_size, decode])
def test_a_bomb_is_refused_by_its_header(read):
    bomb = write_png(40000, 30000, 8, 2)
    sentence = (
        r"^1200 megapixels \(40000 x 30000\) is above the limit of 100 megapixels; "
        "make it smaller or raise NST_MAX_MEGAPIXELS$"
    )
    with pytest.raises(PictureError, match=sentence):
        read(bomb, 100_000_000)


def test_the_limit_is_inclusive():
    data = encode_image(make_flat((1, 2, 3), size=(20, 10)), "PNG")
    assert read_size(data, 200) == decode(data, 200).rgb.shape[:2] == (10, 20)
    for read in (read_size, decode):
        with pytest.raises(PictureError, match="0.0002 megapixels .20 x 10. is above the limit of 0.000199"):
            read(data, 199)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_size_and_metadata_are_read_without_decoding(format, monkeypatch):
    loads = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loads.append(image))
    data = encode_image(make_flat((1, 2, 3)), format)
    assert (read_size(data, LIMIT), read_metadata(data), loads) == ((3, 4), {}, [])


def test_size_of_pictures_too_large_to_decode_is_read():
    assert read_size(write_png(40000, 30000, 8, 2), 2_000_000_000) == (30000, 40000)  # above both of Pillow's own limits


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("own", [10, 250], ids=["error", "warning"])
def test_pillows_own_limit_does_not_apply(format, own, monkeypatch):
    data = encode_image(make_flat((0, 0, 0), size=(20, 15)), format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", own)
    assert read_size(data, LIMIT) == (15, 20)
    assert read_color(data) == [0, 0, 0]
    assert own == Image.MAX_IMAGE_PIXELS


def test_webp_above_pillows_own_limit_is_one_sentence(monkeypatch):
    data = encode_image(make_flat((0, 0, 0), size=(20, 15)), "WEBP")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match=r"300 pixels.* exceeds limit of 20 .*make it smaller$"):
        decode(data, LIMIT)


# Masks


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_mask_is_white_where_to_stylize(format):
    halves = np.kron(np.array([[0, 255]], np.uint8), np.ones((16, 16), np.uint8))
    mask = codec.decode_mask(encode_image(Image.fromarray(halves), format), LIMIT)
    assert mask.dtype == np.float32
    assert mask.shape == (16, 32)
    np.testing.assert_array_equal(mask, halves / 255)


def test_a_masks_gray_is_luminance_and_keeps_sixteen_bits():
    np.testing.assert_allclose(codec.decode_mask(encode_image(make_flat((255, 0, 0)), "PNG"), LIMIT), 0.299, atol=1e-6)
    deep = codec.decode_mask(encode_image(Image.fromarray(np.array([GRAYS], np.uint16)), "PNG"), LIMIT)
    np.testing.assert_allclose(deep, np.array([GRAYS]) / 65535, atol=1e-7)
    assert deep.max() == 1
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert codec.decode_mask(encode_image(make_flat((9, 9, 9), size=(6, 4)), "PNG", exif=exif), LIMIT).shape == (6, 4)


def test_a_masks_alpha_multiplies():
    pixels = np.array([[[255, 255], [255, 51], [102, 127], [255, 0]]], np.uint8)
    np.testing.assert_allclose(
        codec.decode_mask(encode_image(Image.fromarray(pixels, "LA"), "PNG"), LIMIT),
        [[1, 0.2, 0.4 * 127 / 255, 0]],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "image",
    [make_flat((0, 0, 0)), make_flat((255, 255, 255, 0), "RGBA"), Image.fromarray(np.full((3, 4), 127, np.uint16))],
    ids=["black", "transparent", "half an 8-bit step"],
)
def test_a_mask_with_nothing_to_stylize_is_refused(image):
    with pytest.raises(PictureError, match="^the mask is black or transparent all over, so nothing would be stylized; paint"):
        codec.decode_mask(encode_image(image, "PNG"), LIMIT)


def test_faint_mask_is_accepted():
    assert codec.decode_mask(encode_image(make_flat((1, 1, 1)), "PNG"), LIMIT).max() > 0


def test_mask_bytes_are_checked():
    with pytest.raises(PictureError, match="^not a picture"):
        codec.decode_mask(b"no picture", LIMIT)
    with pytest.raises(PictureError, match="is above the limit"):
        codec.decode_mask(encode_image(make_flat((255, 255, 255)), "PNG"), 11)


@pytest.mark.parametrize("size", [(16, 16), (7, 9), (64, 64), (130, 50)])
def test_resized_mask_has_no_ripples(size):
    half = np.zeros((32, 32), np.float32)
    half[:, 16:] = 1
    mask = resize_mask(half, *size)
    assert (mask.shape, mask.dtype) == (size, np.float32)
    assert mask.min() == 0 and mask.max() == 1
    assert (np.diff(mask, axis=1) >= 0).all()  # Lanczos would rise and fall again on either side of the edge
    np.testing.assert_array_equal(mask[:, : size[1] // 2 - 1 - size[1] // 32], 0)


def test_shrunk_mask_is_averaged():
    lines = np.tile(np.array([0, 1], np.float32), (64, 32))
    np.testing.assert_allclose(resize_mask(lines, 8, 8)[2:-2, 2:-2], 0.5, atol=0.02)  # nearest: 0 or 1
    assert resize_mask(lines, 64, 64) is lines


def test_composite_blends_by_the_mask():
    random = np.random.default_rng(0)
    stylized, content = random.random((2, 4, 6, 3), np.float32) / 3
    mask = np.zeros((4, 6), np.float32)
    mask[:, 2:4], mask[:, 4:] = 0.25, 1
    output = composite(stylized, content, mask)
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output[:, :2], content[:, :2])
    np.testing.assert_array_equal(output[:, 4:], stylized[:, 4:])
    np.testing.assert_allclose(output[:, 2:4], 0.25 * stylized[:, 2:4] + 0.75 * content[:, 2:4], atol=1e-6)


# Sizes


@pytest.mark.parametrize(
    ("size", "like", "expected"),
    [
        ((300, 400), (300, 400), True),
        ((30, 40), (3000, 4000), True),
        ((400, 300), (300, 400), False),
        ((1000, 1000), (1000, 1009), True),
        ((1000, 1000), (1000, 1011), False),
        ((1009, 1000), (1000, 1000), True),
        ((1011, 1000), (1000, 1000), False),
        ((33, 50), (667, 1000), True),  # 33.35 rounded: 1.06 % off
        ((34, 50), (667, 1000), True),  # rounded up: 1.9 % off
        ((32, 50), (667, 1000), False),
        ((667, 1000), (33, 50), True),  # also where the mask is the larger one
        ((667, 1000), (35, 50), False),
        ((1, 512), (1, 60000), True),
        ((1, 1), (3000, 4000), True),
        ((3, 4), (3000, 8000), False),
    ],
)
def test_same_aspect_within_a_percent_or_a_pixel(size, like, expected):
    assert has_same_aspect(*size, *like) is expected


@pytest.mark.parametrize("size", [64, 100, 333])
def test_fitted_size_keeps_the_proportions(size):
    for height in range(size, 700, 13):
        assert has_same_aspect(*fit_size(height, 701, size, False), height, 701)
        assert has_same_aspect(height, 701, *fit_size(height, 701, size, False))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((300, 400, 200, False), (150, 200)),
        ((400, 300, 200, False), (200, 150)),
        ((30, 40, 200, False), (30, 40)),
        ((30, 40, 200, True), (150, 200)),
        ((1, 60000, 512, False), (1, 512)),
        ((60000, 1, 512, True), (512, 1)),
        ((2, 3, 2, False), (1, 2)),
        ((512, 512, 512, False), (512, 512)),
    ],
)
def test_fit_size(arguments, expected):
    assert fit_size(*arguments) == expected


@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (101, 1)])
@pytest.mark.parametrize("read", [read_size, decode])
def test_extreme_aspect_is_refused(size, read):
    sentence = f"^{size[0]} x {size[1]} pixels are too narrow, one side is more than 100 times the other; crop it$"
    with pytest.raises(PictureError, match=sentence):
        read(encode_image(Image.new("RGB", size), "PNG"), LIMIT)


def test_the_narrowest_picture_passes_through():
    picture = decode(encode_image(Image.new("RGB", (6000, 60), (0, 51, 255)), "PNG"), LIMIT)
    small = resize(picture, *fit_size(60, 6000, 100, False))
    assert small.rgb.shape == (1, 100, 3)
    np.testing.assert_allclose(small.rgb[0, 50], [0, 0.2, 1], atol=1e-6)


def test_resize_to_the_same_size_is_the_same_picture():
    picture = Picture(np.zeros((3, 4, 3), np.float32))
    assert resize(picture, 3, 4) is picture


def test_resize_averages_and_stays_in_range():
    board = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)
    small = resize(Picture(np.stack([board] * 3, axis=-1)), 8, 8).rgb
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, 0.5, atol=0.02)  # without antialiasing: 0 or 1
    edge = np.repeat(np.repeat(np.array([[0, 1]], np.float32), 4, axis=1), 8, axis=0)
    large = resize(Picture(np.stack([edge] * 3, axis=-1)), 32, 32).rgb
    assert large.min() == 0 and large.max() == 1  # Lanczos alone overshoots
    assert len(np.unique(large)) > 5


def test_resize_ignores_the_color_of_transparent_pixels():
    # White beside transparent black: without weights the edge would turn gray.
    rgb, alpha = np.zeros((16, 16, 3), np.float32), np.zeros((16, 16), np.float32)
    rgb[:, :7], alpha[:, :7] = 1, 1
    small = resize(Picture(rgb, alpha), 8, 8)
    assert small.alpha is not None and 0.2 < small.alpha[4, 3] < 0.8
    np.testing.assert_allclose(small.rgb[small.alpha > 0.01], 1, atol=1e-4)
    assert small.alpha.min() == 0 and small.alpha.max() == 1
    assert small.rgb.dtype == small.alpha.dtype == np.float32


# Writing

TEXT = {"pair": "cafe-1", "recipe": '{"steps": 60}', "title": "Göteborg – 東京"}


@pytest.mark.parametrize("format", OUTPUT_FORMATS)
def test_round_trip_and_determinism(format):
    y, x = np.mgrid[0:32, 0:48].astype(np.float32) / 48
    rgb = np.stack([x, y, 1 - x], axis=-1)
    data = encode(rgb, None, format, TEXT)
    assert data == encode(rgb.copy(), None, format, dict(reversed(TEXT.items())))
    assert read_size(data, LIMIT) == (32, 48)
    difference = np.abs(decode(data, LIMIT).rgb - rgb)
    assert difference.max() < {"png": 0.5001, "jpg": 6, "webp": 16}[format] / 255
    assert difference.mean() < {"png": 0.5, "jpg": 1.5, "webp": 3}[format] / 255


@pytest.mark.parametrize("format", OUTPUT_FORMATS)
def test_metadata_round_trip(format):
    rgb = np.zeros((4, 4, 3), np.float32)
    assert read_metadata(encode(rgb, None, format, TEXT)) == TEXT
    assert read_metadata(encode(rgb, None, format, {})) == {}


def test_png_metadata_is_in_plain_text_chunks():
    data = encode(np.zeros((4, 4, 3), np.float32), None, "png", TEXT)
    assert b"tEXtpair\0cafe-1" in data
    assert Image.open(io.BytesIO(data)).info["title"] == TEXT["title"]


@pytest.mark.parametrize(
    "data",
    [encode_image(make_flat((1, 2, 3)), f) for f in ("JPEG", "WEBP", "GIF", "BMP", "TIFF", "PNG")]
    + [encode_image(make_flat((1, 2, 3)), "JPEG", comment=note) for note in (b"hello", b"[1]", b"\xff\xfe")],
)
def test_foreign_picture_has_no_metadata(data):
    assert read_metadata(data) == {}


def test_read_metadata_refuses_other_files():
    with pytest.raises(PictureError):
        read_metadata(b"hello")


@pytest.mark.parametrize("format", ["png", "webp"])
def test_alpha_round_trip(format):
    rgb, alpha = np.full((8, 8, 3), 0.2, np.float32), np.full((8, 8), 0.6, np.float32)
    back = decode(encode(rgb, alpha, format, {}), LIMIT)
    np.testing.assert_allclose(back.alpha, 0.6, atol=1e-6)
    np.testing.assert_allclose(back.rgb, 0.2, atol=3 / 255)


def test_jpg_is_flattened_on_white():
    rgb, alpha = np.zeros((8, 8, 3), np.float32), np.full((8, 8), 0.2, np.float32)
    np.testing.assert_allclose(decode(encode(rgb, alpha, "jpg", {}), LIMIT).rgb, 0.8, atol=2 / 255)


def test_values_are_rounded_and_clipped():
    rgb = np.array([[[-1, 0.4 / 255, 0.6 / 255], [254.4 / 255, 254.6 / 255, 9]]], np.float32)
    back = np.rint(decode(encode(rgb, None, "png", {}), LIMIT).rgb * 255)
    np.testing.assert_array_equal(back, [[[0, 0, 1], [254, 255, 255]]])


def test_png_is_nearly_as_small_as_pillows():
    photograph = chelsea()[:200, :200]
    ours = encode(photograph / np.float32(255.0), None, "png", {})
    assert len(ours) < 1.02 * len(encode_image(Image.fromarray(photograph), "PNG"))


def test_jpg_keeps_full_colour_resolution():
    assert Image.open(io.BytesIO(encode(np.zeros((8, 8, 3)), None, "jpg", {}))).layer[0][1:3] == (1, 1)


def test_encode_refuses_unknown_formats_and_long_webps():
    with pytest.raises(ValueError, match="format: 'gif' is none of png, jpg, webp"):
        encode(np.zeros((2, 2, 3)), None, "gif", {})
    with pytest.raises(PictureError, match="^20000 x 1 pixels cannot be written as webp"):
        encode(np.zeros((1, 20000, 3), np.float32), None, "webp", {})


# Luminance


def test_luminance_of_the_primaries():
    rgb = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]], np.float32)
    np.testing.assert_allclose(luminance(rgb), [[0.299, 0.587, 0.114, 1]], atol=1e-6)


TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def test_replaced_luminance_keeps_the_chroma():
    rgb = np.full((1, 1, 3), 0.4, np.float32) + np.array([0.1, 0, -0.1], np.float32)
    output = replace_luminance(rgb, luminance(rgb) + 0.25)
    assert output.dtype == np.float32
    np.testing.assert_allclose(TO_YIQ @ (output - rgb)[0, 0], [0.25, 0, 0], atol=1e-4)
    np.testing.assert_allclose(replace_luminance(rgb, luminance(rgb)), rgb, atol=1e-7)


def test_replaced_luminance_keeps_hue_within_range():
    random = np.random.default_rng(0)
    rgb, luma = random.random((50, 50, 3), np.float32), random.random((50, 50), np.float32)
    output = replace_luminance(rgb, luma)
    assert output.min() >= 0 and output.max() <= 1
    np.testing.assert_allclose(luminance(output), luma, atol=1e-6)
    old, new = (rgb @ TO_YIQ.T)[..., 1:], (output @ TO_YIQ.T)[..., 1:]
    scale = (old * new).sum(axis=-1) / (old**2).sum(axis=-1)
    np.testing.assert_allclose(new, scale[..., None] * old, atol=1e-4)  # I and Q in proportion: the same hue
    assert scale.min() >= -1e-5 and scale.max() <= 1 + 1e-4
    plain_shift = rgb + (luma - luminance(rgb))[..., None]
    within = (plain_shift >= 0).all(axis=-1) & (plain_shift <= 1).all(axis=-1)
    assert 0.2 < within.mean() < 0.8
    np.testing.assert_allclose(output[within], plain_shift[within], atol=1e-6)
    # the chroma shrinks no more than necessary, so one channel is at its bound
    margins = np.minimum(output.min(axis=-1), 1 - output.max(axis=-1))[~within]
    np.testing.assert_allclose(margins, 0, atol=1e-5)


def test_replaced_luminance_by_hand_and_at_the_ends():
    red = np.array([[[1, 0, 0]]], np.float32)
    # Y + 0.701 k = 1 with Y = 0.5
    np.testing.assert_allclose(replace_luminance(red, np.full((1, 1), 0.5)), [[[1, 0.2867, 0.2867]]], atol=1e-4)
    np.testing.assert_allclose(replace_luminance(red, np.full((1, 1), 0.1)), [[[0.1 / 0.299, 0, 0]]], atol=1e-5)
    for rgb in (red, np.zeros((1, 1, 3), np.float32), np.ones((1, 1, 3), np.float32)):
        np.testing.assert_array_equal(replace_luminance(rgb, np.full((1, 1), 5.0)), 1)
        np.testing.assert_array_equal(replace_luminance(rgb, np.full((1, 1), -5.0)), 0)


def test_match_luminance_matches_mean_and_deviation():
    like = np.array([[0.1, 0.3], [0.1, 0.3]], np.float32)  # mean 0.2, deviation 0.1
    np.testing.assert_allclose(match_luminance(np.array([[0.0, 1.0, 1.0, 0.0]]), like), [[0.1, 0.3, 0.3, 0.1]])
    np.testing.assert_allclose(match_luminance(np.full((2, 2), 0.9, np.float32), like), 0.2, atol=1e-6)


# Color


def draw_colors(height: int, width: int, mean: list[float], deviations: list[float], seed: int = 0) -> np.ndarray:
    """Draw normal colors about a mean, with these deviations along three axes other than R, G, B."""
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.standard_normal((3, 3)))
    return (random.standard_normal((height, width, 3)) * deviations @ axes.T + mean).astype(np.float32)


def compute_statistics(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = rgb.reshape(-1, 3).astype(np.float64)
    return pixels.mean(axis=0), np.cov(pixels.T, bias=True)


CONTENT = draw_colors(30, 40, [0.4, 0.5, 0.6], [0.2, 0.1, 0.02], seed=1)
STYLE = draw_colors(50, 20, [0.7, 0.3, 0.2], [0.25, 0.05, 0.01], seed=2)


def test_match_color_matches_mean_and_covariance():
    output = match_color(STYLE, CONTENT)
    assert (output.shape, output.dtype) == (STYLE.shape, np.float32)
    for value, expected in zip(compute_statistics(output), compute_statistics(CONTENT), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)


def test_match_color_is_one_affine_map_by_the_symmetric_roots():
    from scipy import linalg

    (mean, covariance), (like_mean, like_covariance) = compute_statistics(STYLE), compute_statistics(CONTENT)
    matrix = linalg.sqrtm(like_covariance) @ np.linalg.inv(linalg.sqrtm(covariance))
    expected = (STYLE - mean) @ matrix.T + like_mean
    np.testing.assert_allclose(match_color(STYLE, CONTENT), expected, atol=1e-5)


def test_match_color_is_independent_of_channel_order():
    """The result does not depend on the order of the channels, as it would with Cholesky factors."""
    order = [2, 0, 1]
    permuted_result = match_color(STYLE[..., order], CONTENT[..., order])
    np.testing.assert_allclose(permuted_result, match_color(STYLE, CONTENT)[..., order], atol=1e-5)


def test_match_color_of_equals_is_the_identity():
    np.testing.assert_allclose(match_color(CONTENT, CONTENT), CONTENT, atol=1e-5)
    gray = np.repeat(CONTENT[..., :1], 3, axis=-1)
    np.testing.assert_allclose(match_color(gray, gray), gray, atol=1e-5)
    constant = np.full((4, 5, 3), 0.3, np.float32)
    np.testing.assert_allclose(match_color(constant, constant), constant, atol=1e-6)


def test_match_color_of_a_gray_style_is_shades_of_one_color():
    gray = np.repeat(STYLE[..., :1], 3, axis=-1)
    output = match_color(gray, CONTENT)
    mean, covariance = compute_statistics(output)
    np.testing.assert_allclose(mean, compute_statistics(CONTENT)[0], atol=1e-5)
    assert np.linalg.eigvalsh(covariance)[1] < 1e-8
    assert np.trace(covariance) <= np.trace(compute_statistics(CONTENT)[1])


def test_match_color_does_not_amplify_rounding():
    random = np.random.default_rng(0)
    flat_style = 0.6 + random.uniform(-0.5, 0.5, (40, 40, 3)) / 255
    output = match_color(flat_style.astype(np.float32), CONTENT)
    np.testing.assert_allclose(output.mean(axis=(0, 1)), CONTENT.mean(axis=(0, 1)), atol=1e-5)
    assert np.abs(output - output.mean(axis=(0, 1))).max() < 0.15  # by at most 0.2 / (1 / 255) times
    constant = match_color(np.full((40, 40, 3), 0.6, np.float32), CONTENT)
    np.testing.assert_allclose(constant, np.broadcast_to(CONTENT.mean(axis=(0, 1)), constant.shape), atol=1e-5)


def test_match_color_to_a_gray_or_flat_content_is_gray_or_flat():
    gray = np.repeat(CONTENT[..., :1], 3, axis=-1)
    output = match_color(STYLE, gray)
    np.testing.assert_allclose(np.ptp(output, axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(output.std(), gray.std(), atol=1e-4)
    np.testing.assert_allclose(match_color(STYLE, np.full((4, 5, 3), 0.3, np.float32)), 0.3, atol=1e-5)


# Strip


def test_strip_shows_pictures_side_by_side():
    red = np.zeros((10, 20, 3), np.float32)
    red[..., 0] = 1
    clear = Picture(np.zeros((40, 40, 3), np.float32), np.zeros((40, 40), np.float32))  # shows as white
    wide = np.zeros((10, 900, 3), np.float32)
    wide[:, 435:465, 2] = 1  # blue in its middle, three times its height; black outside
    data = encode_strip([red, clear, wide], 48, 8)
    assert data[:3] == b"\xff\xd8\xff" and len(data) < 5000
    rgb = decode(data, LIMIT).rgb
    assert rgb.shape == (48, 96 + 8 + 48 + 8 + 144, 3)
    np.testing.assert_allclose(rgb[24, 48], [1, 0, 0], atol=0.05)
    np.testing.assert_allclose(rgb[24, 100:156], 1, atol=0.1)
    np.testing.assert_allclose(rgb[24, 172:292], np.broadcast_to([0, 0, 1], (120, 3)), atol=0.1)


def test_strip_accepts_extreme_aspects():
    rows = [np.zeros((1, 60000, 3), np.float32), np.zeros((60000, 1, 3), np.float32)]
    assert read_size(encode_strip(rows, 32, 4), LIMIT) == (32, 96 + 4 + 1)


def test_only_strips_are_shrunk_to_a_height():
    picture = np.random.default_rng(0).random((30, 90, 3), np.float32)
    strip = encode_strip([picture], 64, 4)
    small = shrink_strip(strip, 32, LIMIT)
    assert read_size(small, LIMIT) == (32, 96) and len(small) < len(strip) / 2
    assert shrink_strip(strip, 64, LIMIT) == strip
    for data in (codec.encode(picture, None, "png", {}), strip[:300], b"RIFF", b"secret"):
        with pytest.raises(PictureError):
            shrink_strip(data, 32, LIMIT)
    with pytest.raises(PictureError, match="above the limit"):
        shrink_strip(strip, 32, 1000)


@pytest.mark.parametrize("height", [256, 255, 254, 192, 320])
def test_a_shrunk_strip_shows_the_same(height: int) -> None:
    ramp = np.linspace(0, 1, 3 * height, dtype=np.float32).reshape(-1, 3).mean(axis=1)
    rows = [np.broadcast_to(channel[..., None], (height, height, 3)) for channel in np.broadcast_arrays(ramp, ramp[:, None])]
    small = decode(shrink_strip(encode_strip(rows, height, 4), 128, LIMIT), LIMIT).rgb
    expected = decode(encode_strip(rows, 128, 4), LIMIT).rgb
    assert small.shape[0] == 128 and abs(small.shape[1] - expected.shape[1]) <= 2
    half = small.shape[1] // 2 - 6
    np.testing.assert_allclose(small[8:-8, 8:half], expected[8:-8, 8:half], atol=0.03)
    np.testing.assert_allclose(small[8:-8, -half:-8], expected[8:-8, -half:-8], atol=0.03)


def test_webp_strip_of_older_versions_is_shrunk() -> None:
    strip = codec.encode(np.full((160, 480, 3), 0.5, np.float32), None, "webp", {})
    for height in (160, 128):
        data = shrink_strip(strip, height, LIMIT)
        assert data[:3] == b"\xff\xd8\xff" and read_size(data, LIMIT)[0] == height
        np.testing.assert_allclose(decode(data, LIMIT).rgb, 0.5, atol=0.03)
