"""Parse a manifest: CSV bytes to pairs, with every problem of every row found at once.

Pure, no I/O, standard library only, so that checking a manifest takes a moment. A fault of the whole file is raised as one
`ManifestError`; a fault of a row is data, one `Problem` for each cell, and the other rows go on.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nst_tasks.errors import ManifestError, suggest_name
from nst_tasks.inputs.columns import (
    COLUMNS,
    IMAGE_COLUMNS,
    MAX_CELL_CHARS,
    CellError,
    Column,
    format_cell,
    list_columns,
)
from nst_tasks.inputs.csv_text import decode_csv, unescape_formula
from nst_tasks.inputs.recipe import Overrides

MAX_COLUMNS = 100
"""Columns of a header, unknown ones included; a bound because the closest known name is searched for each unknown one."""


MAX_ROWS = 100_000


@dataclass(frozen=True)
class Pair:
    """A valid manifest row, starting on line `row` (the header is line 1).

    `recipe` is the name of a preset or the URI of a recipe file; None leaves it to the run. `init` and `mask` are URIs of
    images: the image to start from if it is not the one that the recipe names, and the mask; None stylizes all pixels.
    `keep_color` is empty, `luminance` (the luminance alone is stylized) or `match` (the style takes the content's colors).
    """

    row: int
    id: str
    content: str
    styles: tuple[str, ...]
    style_weights: tuple[float, ...]
    recipe: str | None = None
    overrides: Overrides = Overrides()
    init: str | None = None
    mask: str | None = None
    seed: int = 0
    keep_color: str = ""
    format: str = "png"

    @property
    def image_uris(self) -> list[tuple[str, str]]:
        """Column and URI of each image that the row names."""
        optional = ((column, getattr(self, column)) for column in IMAGE_COLUMNS)
        return [
            ("content", self.content),
            *(("style", uri) for uri in self.styles),
            *((column, uri) for column, uri in optional if uri is not None),
        ]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of one cell and its remedy; `value` is safe to print: short, and without secrets."""

    row: int
    column: str
    value: str
    message: str

    def __str__(self) -> str:
        return f"row {self.row}, column {self.column}: {self.message}"


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """The cells of a row with a problem, as submitted (but without apostrophes that escape formulas)."""

    row: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """All rows, valid or rejected, in the order of the file: `rows == len(pairs) + len(rejected)`."""

    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]
    rejected: tuple[RejectedRow, ...]
    header: tuple[str, ...]
    rows: int


def parse(
    data: bytes,
    folder: str,
    recipe_problems: Mapping[str, Sequence[str]] | None = None,
    find_uri_problem: Callable[[str], str | None] = lambda uri: None,
    columns: Mapping[str, Column] = COLUMNS,
) -> Manifest:
    """Parse the bytes of a manifest into pairs, problems and rejected rows.

    A row whose `id` an earlier row already has is rejected, even if the earlier row is rejected too, because that one is
    expected to be corrected and submitted again.

    Args:
        data: The CSV, in UTF-8.
        folder: The absolute path or URI that relative URIs are resolved against.
        recipe_problems: The problems of recipe files, by URI; a row that names such a file is rejected.
        find_uri_problem: Returns why a manifest may not name a URI, as text that follows the URI in a message, or None;
            a row that names a forbidden URI is rejected.
        columns: The columns that the manifest may have, by name.

    Raises:
        ManifestError: The file as a whole is not a manifest; one line for each problem.
        ValueError: `folder` is relative.
    """
    if not _is_absolute(folder):
        raise ValueError(f"folder: {folder!r} is relative; pass an absolute path or a URI")
    header, table = _read_table(decode_csv(data), columns)
    context = _Context(columns, header, folder, recipe_problems or {}, find_uri_problem)
    pairs: list[Pair] = []
    problems: list[Problem] = []
    rejected: list[RejectedRow] = []
    row_by_id: dict[str, int] = {}
    for row, cells in table:
        result = _read_row(context, row, cells, row_by_id)
        if isinstance(result, Pair):
            pairs.append(result)
        else:
            problems += result
            rejected.append(RejectedRow(row, cells))
    return Manifest(tuple(pairs), tuple(problems), tuple(rejected), header, len(table))


def group_problems_by_row(manifest: Manifest) -> Mapping[int, Sequence[str]]:
    """Return the problems of each rejected row: its line -> one sentence per problem."""
    problems_by_row: defaultdict[int, list[str]] = defaultdict(list)
    for problem in manifest.problems:
        problems_by_row[problem.row].append(str(problem))
    return problems_by_row


def _read_table(text: str, columns: Mapping[str, Column]) -> tuple[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
    """Split CSV text into the column names, and the rows that are not blank, each with the line it starts on.

    Raises:
        ManifestError: The text is not CSV separated by commas, the header is wrong, or there are no rows or too many.
    """
    first_line = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        names = {cell.strip(' "').lower() for cell in first_line.split(separator)}
        if separator in first_line and names & {*list_columns("required", columns)}:
            raise ManifestError(f"the manifest's columns are separated by {name}; use commas")

    problems: list[str] = []
    table: list[tuple[int, tuple[str, ...]]] = []
    # newline="" leaves CR, LF and CRLF to the CSV reader; strict=True raises on a quote that is left open
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    start = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                table.append((start, tuple(map(unescape_formula, cells))))
            if len(table) > MAX_ROWS + 1:
                raise ManifestError(f"the manifest has more than {MAX_ROWS} rows; split it")
            start = reader.line_num + 1
    except csv.Error as error:
        remedy = "look for a double quote that is left open, and double those inside a cell"
        problems.append(f"row {start} cannot be read as CSV: {error}; {remedy}")

    header = tuple(cell.strip().lower() for cell in table[0][1]) if table else ()
    if table:
        problems += _find_header_problems(header, columns)
    if len(table) <= 1 and not problems:
        problems.append("the manifest has no rows; below the header, add one for each pair of pictures")
    if problems:
        raise ManifestError("\n".join(problems))
    return header, table[1:]


def _find_header_problems(header: Sequence[str], columns: Mapping[str, Column]) -> Iterable[str]:
    if len(header) > MAX_COLUMNS:
        yield f"the header has {len(header)} columns, of which nst knows {len(columns)}; delete the others"
        return
    unknown = [name for name in header if name and name not in columns]
    for name in dict.fromkeys(unknown):
        yield f"column {format_cell(name)} is not known; {suggest_name(name, columns)}"
    for position, name in enumerate(header, start=1):
        if not name:
            yield f"column {position} has no name; name it or delete it"
    for name, count in Counter(header).items():
        if count > 1 and name in columns:
            yield f"column {name} is there {count} times; keep one"
    for name in list_columns("required", columns):
        if name not in header:
            similar = difflib.get_close_matches(name, [word for word in unknown if len(word) <= 80], n=1)
            yield f"column {name} is missing; {f'is it the one named {format_cell(similar[0])}?' if similar else 'add it'}"


@dataclass(frozen=True)
class _Context:
    """Everything that the reading of a row depends on, except its cells and the ids of the rows above."""

    columns: Mapping[str, Column]
    header: Sequence[str]
    folder: str
    recipe_problems: Mapping[str, Sequence[str]]
    find_uri_problem: Callable[[str], str | None]


def _read_row(context: _Context, row: int, cells: Sequence[str], row_by_id: dict[str, int]) -> Pair | list[Problem]:
    """Return the row's pair, or all of its problems.

    Its id is added to `row_by_id`, in lower case, for the rows below: on a file system that ignores case, two ids that differ
    in case only would share their output files.
    """
    problems: list[Problem] = []

    def refuse(column: str, cell: str, reason: object, prefix: str = "") -> None:
        problems.append(Problem(row, column, format_cell(cell), f"{prefix}{format_cell(cell)} {reason}"))

    columns, header, folder = context.columns, context.header, context.folder
    texts = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    values = _read_cells(texts, columns, refuse)
    for name, uri in _iter_named_uris(values, columns):
        if (reason := context.find_uri_problem(resolve_uri(folder, uri))) is not None:
            refuse(name, uri, reason)
    if "recipe" in values and columns["recipe"].names_file(values["recipe"]):
        values["recipe"] = resolve_uri(folder, values["recipe"])
        lines = context.recipe_problems.get(values["recipe"], ())
        problems += [Problem(row, "recipe", format_cell(texts["recipe"]), line) for line in lines]
    count = len(values.get("style", ()))
    weights = values.get("style_weights", (1 / max(count, 1),) * count)
    if count and len(weights) != count:
        reason = f"does not give each style one weight ({len(weights)} for {count}); separate them by |"
        refuse("style_weights", texts["style_weights"], reason)
    if len(cells) > len(header):
        remedy = "quote a cell that holds a comma, or delete the spare one"
        refuse(str(len(header) + 1), cells[len(header)], f"is beyond the header's {len(header)} columns; {remedy}")

    settings = {name: value for name, value in values.items() if columns[name].kind not in ("required", "id")}
    row_id = values.get("id") or ("" if problems else derive_id(values["content"], values["style"], settings, columns))
    owner_row = row_by_id.setdefault(row_id.lower(), row) if row_id else row
    if owner_row != row and "id" in values:
        refuse("id", row_id, f"is also the id of row {owner_row} (capitals do not count); give another")
    elif owner_row != row:
        refuse("id", row_id, f"is also row {owner_row}'s; add an id column and name each", prefix="derived id ")
    if problems:
        return problems
    overrides: dict[str, Any] = {}
    fields: dict[str, Any] = {"style_weights": weights}
    for name, value in settings.items():
        column = columns[name]
        if column.kind == "override" or value in column.words:
            overrides[name] = value
        else:
            fields[name] = resolve_uri(folder, value) if column.names_file(value) else value
    content, styles = resolve_uri(folder, values["content"]), tuple(resolve_uri(folder, uri) for uri in values["style"])
    return Pair(row, row_id, content, styles, overrides=Overrides(**overrides), **fields)


def _read_cells(
    texts: Mapping[str, str], columns: Mapping[str, Column], refuse: Callable[[str, str, object], None]
) -> dict[str, Any]:
    """Return the values of a row's cells by column; one that cannot be read is refused and left out, and so is an empty one."""
    values: dict[str, Any] = {}
    for name, column in columns.items():
        text = texts.get(name, "")
        if column.kind == "ignored" or not (text or column.kind == "required"):
            continue
        if len(text) > MAX_CELL_CHARS:
            fault = f"has {len(text)} characters, more than {MAX_CELL_CHARS}"
            refuse(name, text, f"{fault}; look for a double quote that is left open")
            continue
        try:
            values[name] = column.read(text)
        except CellError as bad:
            refuse(name, text, bad)
    return values


def _iter_named_uris(values: Mapping[str, Any], columns: Mapping[str, Column]) -> Iterator[tuple[str, str]]:
    """Yield the column and the URI of each file that a row names, columns in alphabetical order."""
    for name in sorted(values):
        items = values[name] if isinstance(values[name], tuple) else (values[name],)
        for item in items:
            if columns[name].names_file(item):
                yield name, item


# Names and text


def derive_id(
    content: str, styles: Sequence[str], settings: Mapping[str, object], columns: Mapping[str, Column] = COLUMNS
) -> str:
    """Derive an id from a row alone: `cat_starry`, or `cat_starry-3f2a9c` if the row has settings of its own."""
    row_id = f"{_extract_stem(content)[:56]}_{'-'.join(map(_extract_stem, styles))[:56]}"
    if settings:
        canonical = "\n".join(f"{name}={_canonicalize_setting(columns[name], settings[name])!r}" for name in sorted(settings))
        row_id += "-" + hashlib.sha256(canonical.encode()).hexdigest()[:6]
    return row_id  # at most 120 of 128 characters, so that `build_grid` can append a number


def _canonicalize_setting(column: Column, value: Any) -> object:
    """Return a setting as it enters a derived id: a file by its name, because folders change and URLs may be signed."""
    if column.names_file(value):
        return _extract_stem(value) + (".toml" if column.kind == "recipe" else "")
    if column.name == "keep_color":
        return {"": False, "luminance": True}.get(value, value)  # a boolean once: old outputs keep their ids
    return value


def _extract_stem(uri: str) -> str:
    """Return the file name without extension, in characters that are safe in an id, and without password or query."""
    before, scheme, path = uri.partition("://")
    if not scheme:
        path = before
    else:
        path = re.split("[?#]" if before in ("http", "https") else "[?]", path)[0]
        path = path if "/" in path else path.rpartition("@")[2]
    stem = posixpath.splitext(path.rstrip("/").rpartition("/")[2])[0]
    latin = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]", "-", latin).lstrip("._-") or "picture"


def _is_absolute(uri: str) -> bool:
    return "://" in uri or uri.startswith("/")


def resolve_uri(folder: str, uri: str) -> str:
    """Resolve `uri` against `folder`; `..` is removed on object stores, which lack it, and kept on disk for symbolic links."""
    if _is_absolute(uri):
        return uri
    joined = folder + ("" if folder.endswith("/") else "/") + uri
    scheme, mark, path = joined.partition("://")
    if not mark:
        return joined
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[max(len(parts) - 1, 1) :]  # index 0 is the bucket, which is never removed
        elif part != ".":
            parts.append(part)
    return scheme + mark + "/".join(parts)
