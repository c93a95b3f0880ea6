"""CSV bytes as text and back: encodings, size limit, and cells that a spreadsheet would take for formulas."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

from nst_tasks.errors import ManifestError

MAX_BYTES = 64 * 2**20


# The file as a whole


_UTF16_START = re.compile(rb"(?:[\t -~]\0){4}|(?:\0[\t -~]){4}")
"""UTF-16 text without a byte-order mark: every other byte of its first four characters is 0."""


def check_size(size: int) -> None:
    """Refuse a manifest of more than `MAX_BYTES` bytes.

    Raises:
        ManifestError: The size is above the limit.
    """
    if size > MAX_BYTES:
        raise ManifestError(f"{size} bytes are more than the {MAX_BYTES} that a manifest may have; split it")


def decode_csv(data: bytes) -> str:
    """Decode the bytes of a manifest as UTF-8, without a byte-order mark.

    Raises:
        ManifestError: They are too many, empty, a spreadsheet, or not UTF-8.
    """
    check_size(len(data))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _UTF16_START.match(data):
        raise ManifestError("the manifest is UTF-16; save it as UTF-8")
    if data.startswith(b"PK\x03\x04"):
        raise ManifestError("the manifest is a spreadsheet or another zip file; export it as CSV, in UTF-8")
    if (offset := data.find(b"\0")) >= 0:
        raise ManifestError(f"the manifest has a NUL byte at offset {offset}, so it is not text; save it as UTF-8 CSV")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        offset, line = error.start, data.count(b"\n", 0, error.start) + 1
        place = f"byte 0x{data[offset]:02x} at offset {offset}, line {line},"
        raise ManifestError(f"{place} is not UTF-8 (it may be Latin-1); save it as UTF-8") from error
    if not text.strip(" ,\t\r\n"):
        raise ManifestError("the manifest is empty; give a header with content and style, and a row for each pair")
    return text


_FORMULA_START = re.compile(r"'*(?:\s*[=+\-@]|[\t\r])")
"""Beginning of a cell that a spreadsheet takes for a formula, with or without apostrophes that escape it."""


_PLAIN_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")


def escape_formula(cell: str) -> str:
    """Put an apostrophe before a cell that a spreadsheet would take for a formula; a negative number is not one."""
    return f"'{cell}" if _FORMULA_START.match(cell) and not _PLAIN_NUMBER.fullmatch(cell) else cell


def unescape_formula(cell: str) -> str:
    """Remove the apostrophe that `escape_formula` puts before a cell."""
    return cell[1:] if cell[:1] == "'" and _FORMULA_START.match(cell) else cell


def encode_csv(rows: Iterable[Sequence[str]]) -> bytes:
    """Encode rows as CSV with LF, formulas escaped; unlike csv.writer, a lone CR is quoted, because it would end the row."""

    def quote(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if re.search(r'[,"\r\n]', cell) else cell

    return "".join(",".join(quote(escape_formula(cell)) for cell in row) + "\n" for row in rows).encode("utf-8")
