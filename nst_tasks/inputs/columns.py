"""Manifest columns: one record for each, with the reader of its cells, its description and its use.

docs/architecture.md shows how to add one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from nst_tasks.core.method import INITS, MAX_SIZE, MAX_STEPS, MIN_SIZE, PRECISIONS
from nst_tasks.errors import redact, suggest_name
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


def _read_init(cell: str) -> str:
    """Return a word in lower case, or a URI as it is; a file named `noise` is written `./noise`."""
    return cell.lower() if cell.lower() in INITS else cell


def _read_recipe(cell: str) -> str:
    return cell if is_recipe_file(cell) else _read_choice(cell, "a recipe", PRESETS)


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


def _read_choice(cell: str, name: str, choices: Collection[str]) -> str:
    if cell.lower() not in choices:
        raise CellError(f"is not {name}; {suggest_name(cell, choices)}")
    return cell.lower()


def _read_keep_color(cell: str) -> str:
    return KEEP_COLOR_VALUES[_read_choice(cell, "a way to keep colors", KEEP_COLOR_VALUES)]


# The table


Kind = Literal["required", "id", "recipe", "override", "image", "setting", "ignored"]
"""Use of a column's values.

`required`: the images that every row names; an empty cell is a problem.
`id`: the name of the row's outputs; may be derived.
`recipe`: the name of a preset, or the URI of a recipe file; the field `recipe` of `Pair`.
`override`: a value in place of the recipe's; the field of `Overrides` of the column's name.
`image`: the URI of an optional image; the field of `Pair` of the column's name.
`setting`: anything else; the field of `Pair` of the column's name.
`ignored`: never read.
"""


@dataclass(frozen=True)
class Column:
    """One column of a manifest.

    `read` returns the value of a stripped cell, or raises `CellError`. `help` describes the cells, in Markdown. A cell of an
    image column may hold one of `words` in place of a URI; a word is an override.
    """

    name: str
    read: Callable[[str], Any]
    help: str
    kind: Kind
    words: tuple[str, ...] = ()

    def names_file(self, cell: str) -> bool:
        """Return whether a cell of this column holds a URI, not a word or a preset's name."""
        if self.kind == "recipe":
            return is_recipe_file(cell.strip())
        return self.kind in ("required", "image") and cell.strip().lower() not in self.words


def _list_choices(names: Collection[str]) -> str:
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} or {last}"


COLUMNS: Mapping[str, Column] = {
    column.name: column
    for column in (
        Column("content", _read_uri, "the picture to stylize; required", "required"),
        Column("style", _read_uris, "the style picture; several are separated by `|`; required", "required"),
        Column(
            "id",
            _read_id,
            "name of the result, `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`, unique; derived when empty, see [ids](#ids)",
            "id",
        ),
        Column(
            "style_weights",
            _read_weights,
            "one weight for each style, separated by `|`, 0 or more; equal weights when empty",
            "setting",
        ),
        Column("recipe", _read_recipe, "a recipe's name, or a TOML file; the run's recipe when empty", "recipe"),
        Column(
            "size",
            partial(_read_integer, name="size", minimum=MIN_SIZE, maximum=MAX_SIZE),
            f"longest side of the result in pixels, {MIN_SIZE} to {MAX_SIZE}; the run's, or else the recipe's, when empty",
            "override",
        ),
        Column(
            "steps",
            partial(_read_integer, name="number of steps", minimum=0, maximum=MAX_STEPS),
            f"optimization steps at full size, 0 to {MAX_STEPS}; the run's, or else the recipe's, when empty",
            "override",
        ),
        Column(
            "seed",
            partial(_read_integer, name="seed", minimum=0, maximum=MAX_SEED),
            f"seed of the initial noise, 0 to {MAX_SEED}; 0 when empty",
            "setting",
        ),
        Column(
            "init",
            _read_init,
            f"initial image: {_list_choices(INITS)}, or a picture framed as the content, of any size; the recipe's when empty",
            "image",
            words=INITS,
        ),
        Column("content_weight", _read_weight, "weight of the content loss, 0 or more; the recipe's when empty", "override"),
        Column("style_weight", _read_weight, "weight of the style loss, 0 or more; the recipe's when empty", "override"),
        Column("tv_weight", _read_weight, "weight of the total variation, 0 or more; the recipe's when empty", "override"),
        Column(
            "precision",
            partial(_read_choice, name="a precision", choices=PRECISIONS),
            f"{_list_choices(PRECISIONS)}; the run's, or else the recipe's, when empty",
            "override",
        ),
        Column(
            "plateau",
            _read_fraction,
            "share of the loss, 0 to below 1: a level ends once 20 steps gain no more than this; 0 never; "
            "the run's, or else the recipe's, when empty",
            "override",
        ),
        Column(
            "keep_color",
            _read_keep_color,
            "`luminance` (or `true`, `yes`, `1`) stylizes the luminance alone and keeps the content's chroma; "
            "`match` first transfers the content's colors to the style; empty, `false`, `no` or `0` takes the style's colors",
            "setting",
        ),
        Column(
            "mask",
            _read_uri,
            "a picture framed as the content, of any size: white is stylized, black stays the content, gray mixes; "
            "its alpha multiplies; everything is stylized when empty",
            "image",
        ),
        Column(
            "format",
            partial(_read_choice, name="a format to write", choices=OUTPUT_FORMATS),
            f"format of the result: {_list_choices(OUTPUT_FORMATS)}; `png` when empty",
            "setting",
        ),
        Column("problem", str, "ignored; nst writes the reason there in `rejected.csv`", "ignored"),
    )
}
"""Every column that a manifest may have, in the order in which the cells of a row are read; a header may have any order."""


def list_columns(kind: Kind, columns: Mapping[str, Column] = COLUMNS) -> tuple[str, ...]:
    """Return the names of the columns of one kind."""
    return tuple(name for name, column in columns.items() if column.kind == kind)


REQUIRED_COLUMNS = list_columns("required")


IMAGE_COLUMNS = list_columns("image")
"""Columns of optional images."""


def split_cell(column: str, cell: str) -> list[str]:
    """Return the items of a cell; in columns other than `style`, a | is part of a file's name."""
    return cell.split("|") if column == "style" else [cell]


# Text


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
