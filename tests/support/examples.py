"""Cells of the example manifest that has every column, for tests of each column."""

from __future__ import annotations

import csv
from importlib import resources


def example_cells() -> dict[str, list[str]]:
    """Collect the cells of each column that are not empty."""
    rows = [*csv.DictReader(resources.files("manifests").joinpath("every-column.csv").read_text().splitlines())]
    return {column: [row[column] for row in rows if row[column]] for column in rows[0]}
