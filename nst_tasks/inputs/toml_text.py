"""TOML bytes as tables: encodings, and the line and column of what is not TOML."""

from __future__ import annotations

import codecs
import tomllib
from typing import Any

from nst_tasks.errors import SettingsError


def decode_toml(data: bytes) -> dict[str, Any]:
    """Return the tables in the bytes of a recipe file.

    Raises:
        SettingsError: They are not UTF-8 or not TOML; the message has the line and column.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SettingsError("the recipe is UTF-16; save it as UTF-8")
    try:
        source = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        start = error.start
        line, column = data.count(b"\n", 0, start) + 1, start - data.rfind(b"\n", 0, start)
        place = f"line {line}, column {column}"
        raise SettingsError(f"{place}: byte 0x{data[start]:02x} is not UTF-8 (it may be Latin-1); save it as UTF-8") from error
    try:
        return tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).removesuffix(")").rpartition(" (at ")
        if not place.startswith("line"):
            place = f"line {source.count(chr(10)) + 1}, column {len(source) - source.rfind(chr(10))}"
        remedy = "look for a text without quotes, or for a key or table that is there twice"
        raise SettingsError(f"{place}: {shorten(reason)}; {remedy}") from error
    except RecursionError:
        raise SettingsError("its tables or lists are nested too deeply; a recipe has tables in tables at most") from None
    except ValueError as error:  # Python's limit on the digits of an integer
        raise SettingsError("it has a number of thousands of digits; write a shorter one") from error


def shorten(line: str) -> str:
    """Return at most 80 characters of a line, for a message."""
    return line if len(line) <= 80 else line[:79] + "…"
