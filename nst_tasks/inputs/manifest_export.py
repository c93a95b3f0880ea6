"""Write manifests: rejected rows to correct, the archived copy of a run, and the grid of contents x styles."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product, zip_longest

from nst_tasks.errors import ManifestError, strip_secrets, suggest_name
from nst_tasks.inputs.columns import COLUMNS, MAX_STYLES, REQUIRED_COLUMNS, Column, format_cell, split_cell
from nst_tasks.inputs.csv_text import decode_csv, encode_csv, escape_formula, unescape_formula
from nst_tasks.inputs.manifest import Manifest, derive_id, group_problems_by_row, resolve_uri
from nst_tasks.inputs.presets import PRESETS
from nst_tasks.inputs.recipe_file import is_recipe_file


def export_rejected(manifest: Manifest, folder: str, columns: Mapping[str, Column] = COLUMNS) -> bytes:
    """Return the rejected rows as a CSV manifest, to be corrected and submitted again from any folder.

    Relative URIs are made absolute, except styles below a folder with a | in its name, because | separates styles.
    The reasons go into a first column, `problem`, so that surplus cells at the end of a row keep their position. A reason
    begins with "row", never with a character that a spreadsheet takes for a formula.
    """
    problems_by_row = group_problems_by_row(manifest)

    def relocate(name: str, cell: str) -> str:
        if name not in columns or not columns[name].names_file(cell) or (name == "style" and "|" in folder):
            return cell
        items = [item.strip() for item in split_cell(name, cell)]
        if len(items) > MAX_STYLES:
            return cell  # already invalid; with absolute URIs it could become enormous
        return "|".join(resolve_uri(folder, item) if item else "" for item in items)

    rows = [["problem", *(name for name in manifest.header if name != "problem")]]
    for row in manifest.rejected:
        named_cells = zip_longest(manifest.header, row.cells, fillvalue="")
        cells = [relocate(name, cell) for name, cell in named_cells if name != "problem"]
        rows.append([" | ".join(problems_by_row[row.row]), *cells])
    return encode_csv(rows)


def sanitize_manifest(data: bytes) -> bytes:
    """Return the copy of a manifest for the run's folder: formulas escaped, credentials and queries removed from URIs.

    The same bytes are returned if there is nothing to change.

    Raises:
        ManifestError: The bytes are not text.
    """
    rows = list(csv.reader(io.StringIO(decode_csv(data), newline=""), skipinitialspace=True))
    header = [cell.strip().lower() for cell in next((cells for cells in rows if any(map(str.strip, cells))), [])]

    def remove_secrets(column: str, cell: str) -> str:
        return "|".join(map(strip_secrets, split_cell(column, cell)))

    sanitized = [
        [remove_secrets(column, unescape_formula(cell)) for column, cell in zip_longest(header, cells, fillvalue="")][
            : len(cells)
        ]
        for cells in rows
    ]
    return data if [list(map(escape_formula, cells)) for cells in sanitized] == rows else encode_csv(sanitized)


def build_grid(contents: Sequence[str], styles: Sequence[str], recipe: str | None) -> bytes:
    """Return the manifest of every content with every style as CSV, duplicates removed, sorted.

    Raises:
        ManifestError: There is no content or no style, the recipe is unknown, or a cell cannot hold one of the names.
    """
    problems = ["no content picture is given"] * (not contents) + ["no style picture is given"] * (not styles)
    for uri in sorted({*contents, *styles}):
        if not uri or uri != uri.strip() or re.search("[\0\ud800-\udfff]", uri):
            problems.append(f"{format_cell(uri)} cannot be a manifest's cell (outer spaces, or not UTF-8); rename the file")
        if "|" in uri and uri in styles:
            problems.append(f"{format_cell(uri)} has a |, which separates styles; rename the file")
    if recipe is not None and recipe not in PRESETS and not is_recipe_file(recipe):
        problems.append(f"{format_cell(recipe)} is not a recipe; {suggest_name(recipe, PRESETS)}")
    if problems:
        raise ManifestError("\n".join(problems))

    settings = {} if recipe is None else {"recipe": recipe}
    rows = [["id", *REQUIRED_COLUMNS, *settings]]
    used_ids: set[str] = set()
    copy_counts: Counter[str] = Counter()
    for content, style in product(sorted({*contents}), sorted({*styles})):
        base_id = row_id = derive_id(content, [style], settings)
        while row_id.lower() in used_ids:
            copy_counts[base_id.lower()] += 1
            row_id = f"{base_id}-{copy_counts[base_id.lower()] + 1}"
        used_ids.add(row_id.lower())
        rows.append([row_id, content, style, *settings.values()])
    return encode_csv(rows)
