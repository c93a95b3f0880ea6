"""Fuzz test of the manifest and picture readers: any bytes are read or refused, within limits of time and memory.

`make fuzz` runs this for FUZZ_SECONDS (60) from FUZZ_SEED (the clock's). An input that reaches new lines of the readers, ours
or Pillow's, is kept and mutated further. A finding is written to a file and ends the run; `python -m tests.fuzz FILE` repeats
it, and each finding becomes a test in `test_manifest`, `test_codec` or `test_guard`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import ExifTags, Image, ImageCms

from nst_tasks.errors import ManifestError, PictureError
from nst_tasks.images import codec
from nst_tasks.inputs import manifest
from nst_tasks.inputs.columns import COLUMNS
from nst_tasks.inputs.manifest_export import export_rejected, sanitize_manifest

MAX_PIXELS = 1_000_000
MAX_SECONDS = 5.0
MAX_MIB = 400
"""Limit of the growth of peak memory by one input; decoding a megapixel to float32 takes about 50."""

READERS = (
    *(f"/inputs/{name}.py" for name in ("manifest", "columns", "csv_text", "manifest_export")),
    *(f"/images/{name}.py" for name in ("codec", "guard")),
    "ImagePlugin.py",
    "ImageFile.py",
)
"""Files whose lines count as reached."""

Line = tuple[str, int]


def read_manifest(data: bytes) -> None:
    """Parse, sanitize and export a manifest, and check that the results agree."""
    with contextlib.suppress(ManifestError):
        result = manifest.parse(data, "/data/in")
        assert result.rows == len(result.pairs) + len(result.rejected)
        output = sanitize_manifest(data)
        assert sanitize_manifest(output) == output
        if result.rejected:
            copy = manifest.parse(export_rejected(result, "/data/in"), "/elsewhere")
            assert copy.rows == len(result.rejected)


def read_picture(data: bytes) -> None:
    """Decode a picture, a mask and metadata, and check that the picture has the size in its header."""
    with contextlib.suppress(PictureError):
        size = codec.read_size(data, MAX_PIXELS)
        picture = codec.decode(data, MAX_PIXELS)
        assert picture.rgb.shape == (*size, 3), f"{size} in the header, {picture.rgb.shape} decoded"
        assert picture.rgb.min() >= 0 and picture.rgb.max() <= 1
    with contextlib.suppress(PictureError):
        codec.decode_mask(data, MAX_PIXELS)
    with contextlib.suppress(PictureError):
        codec.read_metadata(data)


def encode_pictures() -> Iterator[bytes]:
    """Encode a small picture in every format and variant that the decoder knows."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifVersion] = b"0230"
    ramp = Image.radial_gradient("L").resize((24, 16))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"):
        image = ramp.convert("I").convert(mode) if mode == "I;16" else ramp.convert(mode)
        for format, options in (
            ("PNG", {"icc_profile": profile, "exif": exif}),
            ("JPEG", {"exif": exif, "comment": b"note"}),
            ("JPEG", {"progressive": True, "icc_profile": profile}),
            ("WEBP", {"exif": exif}),
            ("WEBP", {"lossless": True}),
            ("TIFF", {"exif": exif}),
            *(("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4")),
            ("TIFF", {"big_tiff": True}),
            ("BMP", {}),
            ("GIF", {"comment": b"note"}),
            *((name, {"save_all": True, "append_images": [image.transpose(3)]}) for name in ("GIF", "PNG", "WEBP", "TIFF")),
        ):
            file = io.BytesIO()
            with contextlib.suppress(Exception):  # not every format holds every mode
                image.save(file, format, **options)
                yield file.getvalue()


MANIFESTS = (
    b"content,style\ncat.jpg,oil.jpg\n",
    b"\xef\xbb\xbf" + ",".join(COLUMNS).encode() + b'\r\ncat.jpg,"a.jpg|b, c.jpg",x,1|2,painterly,512,9\r\n',
    b'id,content,style\n"x",s3://u:p@b/c.jpg?k,"a\nb|c"\n\n-1,=2,@3\n',
    "content;style\nä;ö\n".encode("utf-16"),
    b"content\tstyle\na\tb\n",
    b'problem,content,style,size\nwhy,a,b,9\n,,,\n\'=x,\'-1,+2,""""\n',
)


def mutate(data: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """Make one to eight changes: other bytes or numbers, or pieces cut, doubled, moved or copied from another input."""
    output = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at, other = chance.randrange(len(output) + 1), chance.randrange(len(output) + 1)
        first, last = sorted((at, other))
        match chance.randrange(8):
            case 0 if at < len(output):
                output[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(output):
                output[at] = chance.choice(b"\0\1\x7f\x80\xff,\"|\n\r'=:/@?")
            case 2:
                number = chance.choice((0, 1, 2, 16, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1))
                code = chance.choice(("<H", ">H", "<I", ">I"))
                output[at : at + struct.calcsize(code)] = struct.pack(code, number & 2 ** (8 * struct.calcsize(code)) - 1)
            case 3:
                del output[first : min(last, first + chance.randint(1, 64))]
            case 4:
                output[at:at] = output[first : min(last, first + 200)] * chance.choice((1, 1, 2, 50))
            case 5:
                del output[at:]
            case 6:
                piece = chance.choice(corpus)
                start = chance.randrange(len(piece) + 1)
                output[at:at] = piece[start : start + chance.randint(1, 200)]
            case _:
                output[at:at] = chance.randbytes(chance.randint(1, 8))
    result = bytes(output[:100_000])
    return correct_checksums(result) if result[:4] == b"\x89PNG" and chance.random() < 0.8 else result


def correct_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, without which a decoder would stop at once."""
    output, at = bytearray(data), 8
    while at + 12 <= len(output):
        end = at + 8 + int.from_bytes(output[at : at + 4], "big")
        output[end : end + 4] = struct.pack(">I", zlib.crc32(output[at + 4 : end]))[: max(len(output) - end, 0)]
        at = end + 4
    return bytes(output)


def trace_lines(read: Callable[[bytes], None], data: bytes) -> set[Line]:
    """Record the lines of the readers that an input reaches.

    Raises:
        AssertionError: a check fails, or the input takes too much time or memory. Others: errors that a reader lets through.
    """
    lines: set[Line] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.endswith(READERS):
            return None

        def trace_line(frame: FrameType, event: str, argument: object) -> Any:
            lines.add((name, frame.f_lineno))
            return trace_line

        return trace_line

    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    signal.alarm(60)  # against endless loops
    sys.settrace(trace)
    try:
        read(data)
    finally:
        sys.settrace(None)
        signal.alarm(0)
    seconds, growth = time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert seconds < MAX_SECONDS, f"{seconds:.1f} s of computing"
    assert growth < MAX_MIB, f"{growth:.0f} MiB of memory"
    return lines


def report(data: bytes, error: BaseException) -> None:
    """Write a finding to a file and say how to repeat it."""
    place = Path(tempfile.gettempdir()) / f"nst-fuzz-{hashlib.sha256(data).hexdigest()[:12]}"
    place.write_bytes(data)
    traceback.print_exception(error, file=sys.stdout)
    print(f"{type(error).__name__} of {len(data)} bytes {data[:60]!r}; repeat with: {sys.executable} -m tests.fuzz {place}")


def fuzz(seconds: float, seed: int) -> int:
    """Mutate inputs until the time is up; return 1 at the first finding, otherwise 0."""
    chance = random.Random(seed)
    corpora = {read_manifest: list(MANIFESTS), read_picture: list(encode_pictures())}
    known_lines: set[Line] = set()
    count, until = 0, time.monotonic() + seconds
    queue = [(read, data) for read, corpus in corpora.items() for data in corpus]
    seeds = len(queue)
    while queue or time.monotonic() < until:
        if queue:
            read, data = queue.pop()
        else:
            read = chance.choice((read_manifest, read_picture, read_picture))
            corpus = corpora[read]
            # one of the newest half of the time, as they reached new lines
            parent = chance.choice(corpus[-20:] if chance.random() < 0.5 else corpus)
            data = mutate(parent, corpus, chance)
        count += 1
        try:
            lines = trace_lines(read, data)
        except Exception as error:  # any at all is a finding
            report(data, error)
            print(f"seed {seed}, input {count}")
            return 1
        if not lines <= known_lines:
            known_lines |= lines
            if count > seeds:
                corpora[read].append(data)
    additions = sum(map(len, corpora.values())) - seeds
    print(f"seed {seed}: {count} inputs, {additions} kept, {len(known_lines)} lines reached, nothing found")
    return 0


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable()
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # libtiff prints its warnings there
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    if len(sys.argv) > 1:
        for read in (read_manifest, read_picture):
            print(read.__name__, len(trace_lines(read, Path(sys.argv[1]).read_bytes())), "lines")
        return 0
    return fuzz(float(os.environ.get("FUZZ_SECONDS", "60")), int(os.environ.get("FUZZ_SEED", str(time.time_ns() % 10**6))))


if __name__ == "__main__":
    sys.exit(main())
