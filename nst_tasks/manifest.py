"""Parse a CSV manifest into content x style pairs, and collect every problem of every row.

Pure: no I/O, standard library only, so that checking a manifest takes a moment. A problem of the file as a whole is raised
as one `ManifestError`; a problem of a row is data, one `Problem` per cell, and the other rows go on.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import math
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product, zip_longest
from typing import Any

from nst_tasks.core.method import INITS, MAX_STEPS, PRECISIONS, Precision
from nst_tasks.errors import ManifestError, redact, without_secrets
from nst_tasks.presets import PRESETS
from nst_tasks.recipe_file import is_file
from nst_tasks.recipes import MAX_SIZE, MIN_SIZE
from nst_tasks.source import FORMATS

MAX_SEED = 2**31 - 1
MAX_BYTES = 64 * 2**20
MAX_COLUMNS = 100
"""Columns of a header, unknown ones included; a bound because the closest known name is searched for each unknown one."""
MAX_ROWS = 100_000
MAX_CELL = 16_384
"""Characters of a cell: more than any path or URI needs, less than the limit of the CSV reader itself."""
MAX_STYLES = 32
"""Styles of one row; all of them are in memory at the same time."""
KEEP_COLOR = {
    "luminance": "luminance",
    "match": "match",
    **dict.fromkeys(("true", "yes", "1"), "luminance"),
    **dict.fromkeys(("false", "no", "0"), ""),
}
"""Accepted values of a `keep_color` cell and their meaning; see `Pair`."""

REQUIRED = ("content", "style")
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
    "format": f"of the result: {', '.join(FORMATS)}; png when empty",
    "problem": "ignored; nst writes the reason there in rejected.csv",
}
"""Every column that a manifest may have, in any order, with a description of its content."""


@dataclass(frozen=True)
class Pair:
    """A valid manifest row, starting on line `row` (the header is line 1).

    None leaves the choice to the run or its recipe. `init` is one of `INITS`; `init_picture` is the URI of an image to start
    from instead. `keep_color` is empty, `luminance` (the luminance alone is stylized) or `match` (the style takes the
    content's colors). `mask` is the URI of an image; None stylizes all pixels.
    """

    row: int
    id: str
    content: str
    styles: tuple[str, ...]
    style_weights: tuple[float, ...]
    recipe: str | None = None
    size: int | None = None
    steps: int | None = None
    seed: int = 0
    init: str | None = None
    init_picture: str | None = None
    content_weight: float | None = None
    style_weight: float | None = None
    tv_weight: float | None = None
    precision: Precision | None = None
    plateau: float | None = None
    keep_color: str = ""
    mask: str | None = None
    format: str = "png"

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """Column and URI of each image that the row names."""
        optional = [("init", self.init_picture), ("mask", self.mask)]
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
class Rejected:
    """The cells of a row with a problem, as submitted (but without apostrophes that escape formulas)."""

    row: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """All rows, valid or rejected, in the order of the file: `rows == len(pairs) + len(rejected)`."""

    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]
    rejected: tuple[Rejected, ...]
    header: tuple[str, ...]
    rows: int


def parse(
    data: bytes,
    folder: str,
    unusable: Mapping[str, Sequence[str]] | None = None,
    fault: Callable[[str], str | None] = lambda uri: None,
) -> Manifest:
    """Parse the bytes of a manifest into pairs, problems and rejected rows.

    A row whose `id` an earlier row already has is rejected, even if the earlier row is rejected too, because that one is
    expected to be corrected and submitted again.

    Args:
        data: The CSV, in UTF-8.
        folder: The absolute path or URI that relative URIs are resolved against.
        unusable: The problems of recipe files, by URI; a row that names such a file is rejected.
        fault: Returns why a manifest may not name a URI, as text that follows the URI in a message, or None if it may; a row
            that names a forbidden URI is rejected.

    Raises:
        ManifestError: The file as a whole is not a manifest; one line for each problem.
        ValueError: `folder` is relative.
    """
    if not _is_absolute(folder):
        raise ValueError(f"folder: {folder!r} is relative; pass an absolute path or a URI")
    header, table = _table(_text(data))
    pairs: list[Pair] = []
    problems: list[Problem] = []
    rejected: list[Rejected] = []
    owners: dict[str, int] = {}
    for row, cells in table:
        found = _read_row(row, header, cells, folder, owners, unusable or {}, fault)
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            problems += found
            rejected.append(Rejected(row, cells))
    return Manifest(tuple(pairs), tuple(problems), tuple(rejected), header, len(table))


def reasons(manifest: Manifest) -> Mapping[int, Sequence[str]]:
    """Return the problems of each rejected row: its line -> one sentence per problem."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for problem in manifest.problems:
        found[problem.row].append(str(problem))
    return found


def rejected_csv(manifest: Manifest, folder: str) -> bytes:
    """Return the rejected rows as a CSV manifest, to be corrected and submitted again from any folder.

    Relative URIs are made absolute, except styles below a folder with a | in its name, because | separates styles.
    The reasons go into a first column, `problem`, so that surplus cells at the end of a row keep their position. A reason
    begins with "row", never with a character that a spreadsheet takes for a formula.
    """
    told = reasons(manifest)

    def relocated(column: str, cell: str) -> str:
        is_place = column in _PICTURES or (column == "recipe" and is_file(cell.strip()))
        if not is_place or (column == "style" and "|" in folder) or (column == "init" and _is_init(cell)):
            return cell
        items = [item.strip() for item in (cell.split("|") if column == "style" else [cell])]
        if len(items) > MAX_STYLES:
            return cell  # already invalid; with absolute URIs it could become enormous
        return "|".join(_resolve(folder, item) if item else "" for item in items)

    rows = [["problem", *(name for name in manifest.header if name != "problem")]]
    for row in manifest.rejected:
        named_cells = zip_longest(manifest.header, row.cells, fillvalue="")
        cells = [relocated(name, cell) for name, cell in named_cells if name != "problem"]
        rows.append([" | ".join(told[row.row]), *cells])
    return _csv(rows)


def archived(data: bytes) -> bytes:
    """Return the copy of a manifest for the run's folder: formulas escaped, credentials and queries removed from URIs.

    The same bytes are returned if there is nothing to change.

    Raises:
        ManifestError: The bytes are not text.
    """
    given = list(csv.reader(io.StringIO(_text(data), newline=""), skipinitialspace=True))
    header = [cell.strip().lower() for cell in next((cells for cells in given if any(map(str.strip, cells))), [])]

    def kept(column: str, cell: str) -> str:
        items = cell.split("|") if column == "style" else [cell]
        return "|".join(map(without_secrets, items))

    fit = [
        [kept(column, _unescaped(cell)) for column, cell in zip_longest(header, cells, fillvalue="")][: len(cells)]
        for cells in given
    ]
    return data if [list(map(_escaped, cells)) for cells in fit] == given else _csv(fit)


def grid(contents: Sequence[str], styles: Sequence[str], recipe: str | None) -> bytes:
    """Return the manifest of every content with every style as CSV, duplicates removed, sorted.

    Raises:
        ManifestError: There is no content or no style, the recipe is unknown, or a cell cannot hold one of the names.
    """
    problems = ["no content picture is given"] * (not contents) + ["no style picture is given"] * (not styles)
    for uri in sorted({*contents, *styles}):
        if not uri or uri != uri.strip() or re.search("[\0\ud800-\udfff]", uri):
            problems.append(f"{_shown(uri)} cannot be a manifest's cell (outer spaces, or not UTF-8); rename the file")
        if "|" in uri and uri in styles:
            problems.append(f"{_shown(uri)} has a |, which separates styles; rename the file")
    if recipe is not None and recipe not in PRESETS and not is_file(recipe):
        problems.append(f"{_shown(recipe)} is not a recipe; {_nearest(recipe, PRESETS)}")
    if problems:
        raise ManifestError("\n".join(problems))

    overrides = {} if recipe is None else {"recipe": recipe}
    rows = [["id", *REQUIRED, *overrides]]
    taken: set[str] = set()
    copies: Counter[str] = Counter()
    for content, style in product(sorted({*contents}), sorted({*styles})):
        derived = identity = _derived_id(content, [style], overrides)
        while identity.lower() in taken:
            copies[derived.lower()] += 1
            identity = f"{derived}-{copies[derived.lower()] + 1}"
        taken.add(identity.lower())
        rows.append([identity, content, style, *overrides.values()])
    return _csv(rows)


# The file as a whole


_UTF16 = re.compile(rb"(?:[\t -~]\0){4}|(?:\0[\t -~]){4}")
"""UTF-16 text without a byte-order mark: every other byte of its first four characters is 0."""


def check_size(size: int) -> None:
    """Refuse a manifest of more than `MAX_BYTES` bytes.

    Raises:
        ManifestError: The size is above the limit.
    """
    if size > MAX_BYTES:
        raise ManifestError(f"{size} bytes are more than the {MAX_BYTES} that a manifest may have; split it")


def _text(data: bytes) -> str:
    check_size(len(data))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _UTF16.match(data):
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


def _table(text: str) -> tuple[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
    """Split CSV text into the column names, and the rows that are not blank, each with the line it starts on.

    Raises:
        ManifestError: The text is not CSV separated by commas, the header is wrong, or there are no rows or too many.
    """
    first_line = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        names = {cell.strip(' "').lower() for cell in first_line.split(separator)}
        if separator in first_line and names & {*REQUIRED}:
            raise ManifestError(f"the manifest's columns are separated by {name}; use commas")

    problems: list[str] = []
    table: list[tuple[int, tuple[str, ...]]] = []
    # newline="" leaves CR, LF and CRLF to the CSV reader; strict=True raises on a quote that is left open
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    start = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                table.append((start, tuple(map(_unescaped, cells))))
            if len(table) > MAX_ROWS + 1:
                raise ManifestError(f"the manifest has more than {MAX_ROWS} rows; split it")
            start = reader.line_num + 1
    except csv.Error as error:
        remedy = "look for a double quote that is left open, and double those inside a cell"
        problems.append(f"row {start} cannot be read as CSV: {error}; {remedy}")

    header = tuple(cell.strip().lower() for cell in table[0][1]) if table else ()
    if table:
        problems += _header_problems(header)
    if len(table) <= 1 and not problems:
        problems.append("the manifest has no rows; below the header, add one for each pair of pictures")
    if problems:
        raise ManifestError("\n".join(problems))
    return header, table[1:]


def _header_problems(header: Sequence[str]) -> Iterable[str]:
    if len(header) > MAX_COLUMNS:
        yield f"the header has {len(header)} columns, of which nst knows {len(COLUMNS)}; delete the others"
        return
    unknown = [name for name in header if name and name not in COLUMNS]
    for name in dict.fromkeys(unknown):
        yield f"column {_shown(name)} is not known; {_nearest(name, COLUMNS)}"
    for position, name in enumerate(header, start=1):
        if not name:
            yield f"column {position} has no name; name it or delete it"
    for name, count in Counter(header).items():
        if count > 1 and name in COLUMNS:
            yield f"column {name} is there {count} times; keep one"
    for name in REQUIRED:
        if name not in header:
            similar = difflib.get_close_matches(name, [word for word in unknown if len(word) <= 80], n=1)
            yield f"column {name} is missing; {f'is it the one named {_shown(similar[0])}?' if similar else 'add it'}"


# Cells: a reader takes a stripped cell and returns its value, or raises `_BadCell` with what follows the cell in a message


class _BadCell(Exception):
    pass


def _uri(cell: str) -> str:
    if not cell:
        raise _BadCell("names no picture; give a path or a URI")
    return cell


def _uris(cell: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in _uri(cell).split("|"))
    if not all(items):
        raise _BadCell("has an empty name beside a |; name a picture there or delete the |")
    if len(items) > MAX_STYLES:
        raise _BadCell(f"names {len(items)} styles, more than {MAX_STYLES}; leave some out")
    return items


def _is_init(cell: str) -> bool:
    """Return whether the cell is one of `INITS`; otherwise it names an image. A file named `noise` is written `./noise`."""
    return cell.strip().lower() in INITS


def _safe_id(cell: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", cell):
        raise _BadCell("is not safe; give up to 128 letters, digits, dots, - or _, beginning with a letter or digit")
    return cell


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _whole(cell: str, what: str, least: int, most: int) -> int:
    number, remedy = _number(cell), f"give {least} to {most} or leave it empty"
    if not number.is_integer():  # 512.0 is accepted: pandas writes whole numbers so in a column with gaps
        raise _BadCell(f"is not a whole number; {remedy}")
    if number < least:
        raise _BadCell(f"is below the smallest {what}, {least}; {remedy}")
    if number > most:
        raise _BadCell(f"is above the largest {what}, {most}; {remedy}")
    return int(number)


def _weight(cell: str) -> float:
    number = _number(cell)
    if not (math.isfinite(number) and number >= 0):
        fault = "not a number" if math.isnan(number) else "not finite" if math.isinf(number) else "negative"
        raise _BadCell(f"is {fault}; give a finite number of 0 or more, or leave the cell empty")
    return number


def _share(cell: str) -> float:
    number = _number(cell)
    if not 0 <= number < 1:  # not `number < 0 or number >= 1`, which would accept NaN
        raise _BadCell("is not a share; give a number from 0 to below 1, such as 0.01, or leave the cell empty")
    return number


def _weights(cell: str) -> tuple[float, ...]:
    try:
        values = [_weight(item) for item in cell.split("|")]
    except _BadCell as bad:
        raise _BadCell(f"has an item that {bad}") from None
    largest = max(values)
    if largest == 0:
        raise _BadCell("is all zeros; give one style or more a weight above 0")
    total = sum(value / largest for value in values)  # divided by the largest, so that the sum of huge weights stays finite
    return tuple(value / largest / total for value in values)


def _choice(cell: str, what: str, choices: Mapping[str, object]) -> object:
    if cell.lower() not in choices:
        raise _BadCell(f"is not {what}; {_nearest(cell, choices)}")
    return choices[cell.lower()]


_PICTURES = (*REQUIRED, "init", "mask")
_READERS: Mapping[str, Callable[[str], Any]] = {
    "content": _uri,
    "style": _uris,
    "id": _safe_id,
    "style_weights": _weights,
    "recipe": lambda cell: cell if is_file(cell) else _choice(cell, "a recipe", {name: name for name in PRESETS}),
    "size": partial(_whole, what="size", least=MIN_SIZE, most=MAX_SIZE),
    "steps": partial(_whole, what="number of steps", least=0, most=MAX_STEPS),
    "seed": partial(_whole, what="seed", least=0, most=MAX_SEED),
    "init": lambda cell: cell.lower() if _is_init(cell) else cell,
    "content_weight": _weight,
    "style_weight": _weight,
    "tv_weight": _weight,
    "precision": partial(_choice, what="a precision", choices={name: name for name in PRECISIONS}),
    "plateau": _share,
    "keep_color": partial(_choice, what="a way to keep colors", choices=KEEP_COLOR),
    "mask": _uri,
    "format": partial(_choice, what="a format to write", choices={name: name for name in FORMATS}),
}


def _read_row(
    row: int,
    header: Sequence[str],
    cells: Sequence[str],
    folder: str,
    owners: dict[str, int],
    unusable: Mapping[str, Sequence[str]],
    fault: Callable[[str], str | None],
) -> Pair | list[Problem]:
    """Return the row's pair, or all of its problems.

    Its id is added to `owners`, in lower case, for the rows below: on a file system that ignores case, two ids that differ
    in case only would share their output files.
    """
    texts = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    values: dict[str, Any] = {}
    problems: list[Problem] = []

    def refuse(column: str, cell: str, reason: object, kind: str = "") -> None:
        problems.append(Problem(row, column, _shown(cell), f"{kind}{_shown(cell)} {reason}"))

    for column, read in _READERS.items():
        text = texts.get(column, "")
        if len(text) > MAX_CELL:
            refuse(column, text, f"has {len(text)} characters, more than {MAX_CELL}; look for a double quote that is left open")
        elif text or column in REQUIRED:
            try:
                values[column] = read(text)
            except _BadCell as bad:
                refuse(column, text, bad)
    for column, uri in _named(values):
        if (reason := fault(_resolve(folder, uri))) is not None:
            refuse(column, uri, reason)
    if is_file(values.get("recipe", "")):
        values["recipe"] = _resolve(folder, values["recipe"])
        problems += [Problem(row, "recipe", _shown(texts["recipe"]), line) for line in unusable.get(values["recipe"], ())]
    count = len(values.get("style", ()))
    weights = values.get("style_weights", (1 / max(count, 1),) * count)
    if count and len(weights) != count:
        reason = f"does not give each style one weight ({len(weights)} for {count}); separate them by |"
        refuse("style_weights", texts["style_weights"], reason)
    if len(cells) > len(header):
        remedy = "quote a cell that holds a comma, or delete the spare one"
        refuse(str(len(header) + 1), cells[len(header)], f"is beyond the header's {len(header)} columns; {remedy}")

    overrides = {column: value for column, value in values.items() if column not in (*REQUIRED, "id")}
    identity = values.get("id") or ("" if problems else _derived_id(values["content"], values["style"], overrides))
    owner = owners.setdefault(identity.lower(), row) if identity else row
    if owner != row and "id" in values:
        refuse("id", identity, f"is also the id of row {owner} (capitals do not count); give another")
    elif owner != row:
        refuse("id", identity, f"is also row {owner}'s; add an id column and name each", kind="derived id ")
    if problems:
        return problems
    settings = {column: value for column, value in overrides.items() if column != "style_weights"}
    if "mask" in settings:
        settings["mask"] = _resolve(folder, settings["mask"])
    if "init" in settings and not _is_init(settings["init"]):
        settings["init_picture"] = _resolve(folder, settings.pop("init"))
    content, styles = _resolve(folder, values["content"]), tuple(_resolve(folder, uri) for uri in values["style"])
    return Pair(row, identity, content, styles, weights, **settings)


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the column and the URI of each file that a row names."""
    for column in ("content", "init", "mask", "recipe"):
        value = values.get(column, "")
        if value and not (column == "init" and _is_init(value)) and not (column == "recipe" and not is_file(value)):
            yield column, value
    for uri in values.get("style", ()):
        yield "style", uri


# Names and text


def _derived_id(content: str, styles: Sequence[str], overrides: Mapping[str, object]) -> str:
    """Derive an id from a row alone: `cat_starry`, or `cat_starry-3f2a9c` if the row has settings of its own."""
    identity = f"{_stem(content)[:56]}_{'-'.join(map(_stem, styles))[:56]}"
    if overrides:
        canonical = "\n".join(f"{column}={_as_named(column, overrides[column])!r}" for column in sorted(overrides))
        identity += "-" + hashlib.sha256(canonical.encode()).hexdigest()[:6]
    return identity  # at most 120 of 128 characters, so that `grid` can append a number


def _as_named(column: str, value: Any) -> object:
    """Return a setting as it enters a derived id: an image by its file name, because folders change and URLs may be signed."""
    if column in _PICTURES:
        return _stem(value)
    if column == "recipe" and is_file(value):
        return f"{_stem(value)}.toml"
    if column == "keep_color":
        return {"": False, "luminance": True}.get(value, value)  # a boolean once: old outputs keep their ids
    return value


def _stem(uri: str) -> str:
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


def _resolve(folder: str, uri: str) -> str:
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


def _nearest(word: str, names: Iterable[str]) -> str:
    names = list(names)
    similar = difflib.get_close_matches(word.lower()[:80], names, n=1)
    return f"did you mean {similar[0]}?" if similar else f"give one of {', '.join(names)}"


def _shown(cell: str) -> str:
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


_FORMULA = re.compile(r"'*(?:\s*[=+\-@]|[\t\r])")
"""Beginning of a cell that a spreadsheet takes for a formula, with or without apostrophes that escape it."""
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")


def _escaped(cell: str) -> str:
    """Put an apostrophe before a cell that a spreadsheet would take for a formula; a negative number is not one."""
    return f"'{cell}" if _FORMULA.match(cell) and not _PLAIN_NUMBER.fullmatch(cell) else cell


def _unescaped(cell: str) -> str:
    """Remove the apostrophe that `_escaped` puts before a cell."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    """Encode rows as CSV with LF, formulas escaped; unlike csv.writer, a lone CR is quoted, because it would end the row."""

    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if re.search(r'[,"\r\n]', cell) else cell

    return "".join(",".join(quoted(_escaped(cell)) for cell in row) + "\n" for row in rows).encode("utf-8")
