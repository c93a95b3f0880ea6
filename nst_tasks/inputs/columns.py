"""Manifest columns: how the text of each cell is read and what it means."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from nst_tasks.core.method import INITS, MAX_SIZE, MAX_STEPS, MIN_SIZE, PRECISIONS
from nst_tasks.errors import redact
from nst_tasks.images.picture import OUTPUT_FORMATS
from nst_tasks.inputs.presets import PRESETS
from nst_tasks.inputs.recipe_file import is_recipe_file

MAX_SEED = 2**31 - 1


MAX_CELL_CHARS = 16_384
"""Characters of a cell: more than any path or URI needs, less than the limit of the CSV reader itself."""


MAX_STYLES = 32
"""Styles of one row; all of them are in memory at the same time."""


KEEP_COLOR_VALUES = {
    "luminance": "luminance",
    "match": "match",
    **dict.fromkeys(("true", "yes", "1"), "luminance"),
    **dict.fromkeys(("false", "no", "0"), ""),
}
"""Accepted values of a `keep_color` cell and their meaning; see `Pair`."""


REQUIRED_COLUMNS = ("content", "style")


COLUMNS: Mapping[str, str] = {
    "content": "the picture to stylize: a URI, or a path relative to the manifest's folder; required",
    "style": "the picture whose style it takes, several separated by |; required",
    "id": "names the outputs: letters, digits, . _ -, unique; derived from the two names when empty",
    "style_weights": "how much each style counts, 0 or more, separated by |; equal when empty",
    "recipe": f"one of {', '.join(PRESETS)}, or a recipe's TOML file; the run's when empty",
    "size": f"the result's longest side in pixels, {MIN_SIZE} to {MAX_SIZE}; the recipe's when empty",
    "steps": f"optimization steps at full size, 0 to {MAX_STEPS}; the recipe's when empty",
    "seed": f"of the initial noise, 0 to {MAX_SEED}; 0 when empty",
    "init": f"what to start from: {', '.join(INITS)}, or a picture of the content's proportions; the recipe's when empty",
    "content_weight": "weight of the content loss, 0 or more; the recipe's when empty",
    "style_weight": "weight of the style loss, 0 or more; the recipe's when empty",
    "tv_weight": "weight of the total variation, 0 or more; the recipe's when empty",
    "precision": "of the network: float32, mixed (with bfloat16) or auto (mixed where that is fast); the recipe's when empty",
    "plateau": "a level ends once its loss falls by less than this share in 20 steps; 0 never; the recipe's when empty",
    "keep_color": "luminance (or true, yes, 1): the luminance alone is stylized; match: the style takes the content's colors; "
    "false, no, 0 or empty: the style's colors",
    "mask": "a picture of the content's proportions: white is stylized, black stays the content; all is stylized when empty",
    "format": f"of the result: {', '.join(OUTPUT_FORMATS)}; png when empty",
    "problem": "ignored; nst writes the reason there in rejected.csv",
}
"""Every column that a manifest may have, in any order, with a description of its content."""


# Cells: a reader takes a stripped cell and returns its value, or raises `CellError` with what follows the cell in a message


class CellError(Exception):
    """A cell that cannot be read; the text follows the value in the message."""


def _read_uri(cell: str) -> str:
    if not cell:
        raise CellError("names no picture; give a path or a URI")
    return cell


def _read_uris(cell: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in _read_uri(cell).split("|"))
    if not all(items):
        raise CellError("has an empty name beside a |; name a picture there or delete the |")
    if len(items) > MAX_STYLES:
        raise CellError(f"names {len(items)} styles, more than {MAX_STYLES}; leave some out")
    return items


def is_init(cell: str) -> bool:
    """Return whether the cell is one of `INITS`; otherwise it names an image. A file named `noise` is written `./noise`."""
    return cell.strip().lower() in INITS


def _read_id(cell: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", cell):
        raise CellError("is not safe; give up to 128 letters, digits, dots, - or _, beginning with a letter or digit")
    return cell


def _parse_float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _read_integer(cell: str, name: str, minimum: int, maximum: int) -> int:
    number, remedy = _parse_float(cell), f"give {minimum} to {maximum} or leave it empty"
    if not number.is_integer():  # 512.0 is accepted: pandas writes whole numbers so in a column with gaps
        raise CellError(f"is not a whole number; {remedy}")
    if number < minimum:
        raise CellError(f"is below the smallest {name}, {minimum}; {remedy}")
    if number > maximum:
        raise CellError(f"is above the largest {name}, {maximum}; {remedy}")
    return int(number)


def _read_weight(cell: str) -> float:
    number = _parse_float(cell)
    if not (math.isfinite(number) and number >= 0):
        fault = "not a number" if math.isnan(number) else "not finite" if math.isinf(number) else "negative"
        raise CellError(f"is {fault}; give a finite number of 0 or more, or leave the cell empty")
    return number


def _read_fraction(cell: str) -> float:
    number = _parse_float(cell)
    if not 0 <= number < 1:  # not `number < 0 or number >= 1`, which would accept NaN
        raise CellError("is not a share; give a number from 0 to below 1, such as 0.01, or leave the cell empty")
    return number


def _read_weights(cell: str) -> tuple[float, ...]:
    try:
        values = [_read_weight(item) for item in cell.split("|")]
    except CellError as bad:
        raise CellError(f"has an item that {bad}") from None
    largest = max(values)
    if largest == 0:
        raise CellError("is all zeros; give one style or more a weight above 0")
    total = sum(value / largest for value in values)  # divided by the largest, so that the sum of huge weights stays finite
    return tuple(value / largest / total for value in values)


def _read_choice(cell: str, name: str, choices: Mapping[str, object]) -> object:
    if cell.lower() not in choices:
        raise CellError(f"is not {name}; {suggest_name(cell, choices)}")
    return choices[cell.lower()]


IMAGE_COLUMNS = (*REQUIRED_COLUMNS, "init", "mask")


CELL_READERS: Mapping[str, Callable[[str], Any]] = {
    "content": _read_uri,
    "style": _read_uris,
    "id": _read_id,
    "style_weights": _read_weights,
    "recipe": lambda cell: cell if is_recipe_file(cell) else _read_choice(cell, "a recipe", {name: name for name in PRESETS}),
    "size": partial(_read_integer, name="size", minimum=MIN_SIZE, maximum=MAX_SIZE),
    "steps": partial(_read_integer, name="number of steps", minimum=0, maximum=MAX_STEPS),
    "seed": partial(_read_integer, name="seed", minimum=0, maximum=MAX_SEED),
    "init": lambda cell: cell.lower() if is_init(cell) else cell,
    "content_weight": _read_weight,
    "style_weight": _read_weight,
    "tv_weight": _read_weight,
    "precision": partial(_read_choice, name="a precision", choices={name: name for name in PRECISIONS}),
    "plateau": _read_fraction,
    "keep_color": partial(_read_choice, name="a way to keep colors", choices=KEEP_COLOR_VALUES),
    "mask": _read_uri,
    "format": partial(_read_choice, name="a format to write", choices={name: name for name in OUTPUT_FORMATS}),
}


def suggest_name(word: str, names: Iterable[str]) -> str:
    """Return a remedy for a misspelt word: the most similar name, or else all names."""
    names = list(names)
    similar = difflib.get_close_matches(word.lower()[:80], names, n=1)
    return f"did you mean {similar[0]}?" if similar else f"give one of {', '.join(names)}"


def format_cell(cell: str) -> str:
    """Format a cell for a message: at most 80 characters, no control character, password or query (it may be a signature)."""
    if not cell:
        return "an empty cell"
    if "://" in cell:  # | separates several URIs, but in a single one it may be part of the password
        text = redact(cell) if cell.count("://") == 1 else "|".join(map(redact, cell.split("|")))
    else:
        before, at, after = cell.partition("?")[0].rpartition("@")
        text = f"***@{after}" if ":" in before else before + at + after
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:81])
    return text if len(text) <= 80 else text[:79] + "…"
