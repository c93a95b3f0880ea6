"""The table of columns: one record there is enough to add a column."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from nst_tasks.errors import ManifestError
from nst_tasks.inputs.columns import COLUMNS, REQUIRED_COLUMNS, CellError, Column
from nst_tasks.inputs.manifest import Pair, parse
from nst_tasks.inputs.manifest_export import export_rejected
from nst_tasks.inputs.recipe import Overrides
from tests.support.examples import example_cells

FOLDER = "/data/in"
PLAIN = b"content,style\ncat.jpg,a.jpg|b.jpg\n"
CELLS = {**example_cells(), "problem": ["none"]}


def read_weather(cell: str) -> str:
    if cell not in ("sun", "rain"):
        raise CellError("is no weather; give sun or rain")
    return cell


WEATHER = Column("weather", read_weather, "`sun` or `rain`", "setting")
DEPTH = Column("depth", str, "a picture of distances", "image", words=("flat",))
WITH_NEW = {**COLUMNS, "weather": WEATHER, "depth": DEPTH}


def test_the_example_has_every_column() -> None:
    assert {*CELLS} == {*COLUMNS}


@pytest.mark.parametrize("name", sorted({*COLUMNS} - {*REQUIRED_COLUMNS}))
def test_column_is_defined_only_by_its_record(name: str) -> None:
    rows = "".join(f"cat.jpg,a.jpg|b.jpg,{cell}\n" for cell in dict.fromkeys(CELLS[name]))
    data = f"content,style,{name}\n{rows}".encode()
    other_columns = {other: column for other, column in COLUMNS.items() if other != name}
    with pytest.raises(ManifestError, match=f"^column {name} is not known; "):
        parse(data, FOLDER, columns=other_columns)
    manifest = parse(data, FOLDER, columns={**other_columns, name: COLUMNS[name]})
    (plain,) = parse(PLAIN, FOLDER, columns=other_columns).pairs
    assert not manifest.problems
    if COLUMNS[name].kind != "ignored":
        assert plain.id not in {pair.id for pair in manifest.pairs}
        assert any(replace(pair, id=plain.id) != plain for pair in manifest.pairs) or name == "id"


def test_a_new_columns_cells_are_read_and_refused() -> None:
    manifest = parse(b"weather,content,style,size\nsnow,a.jpg,s.jpg,9\n", FOLDER, columns=WITH_NEW)
    size, weather = map(str, manifest.problems)
    assert size.startswith("row 2, column size: 9 is below")
    assert weather == "row 2, column weather: snow is no weather; give sun or rain"
    long = parse(f"weather,content,style\n{'x' * 20_000},a.jpg,s.jpg\n".encode(), FOLDER, columns=WITH_NEW).problems
    assert "has 20000 characters" in long[0].message


def test_a_new_column_is_suggested_and_counted() -> None:
    with pytest.raises(ManifestError, match="column wether is not known; did you mean weather?"):
        parse(b"content,style,wether\na,b,sun\n", FOLDER, columns=WITH_NEW)
    with pytest.raises(ManifestError, match=f"nst knows {len(WITH_NEW)}; delete"):
        parse(b"content,style" + b",a" * 99, FOLDER, columns=WITH_NEW)


def test_a_new_image_column_is_checked_and_relocated() -> None:
    data = b"content,style,depth,size\na.jpg,s.jpg,b/d.png,9\na.jpg,s.jpg,Flat ,9\n"
    uris: list[str] = []
    manifest = parse(data, FOLDER, find_uri_problem=uris.append, columns=WITH_NEW)
    assert [uri for uri in uris if "d.png" in uri] == ["/data/in/b/d.png"]
    assert not [uri for uri in uris if "flat" in uri.lower()]
    _, *rows = export_rejected(manifest, FOLDER, columns=WITH_NEW).decode().splitlines()
    assert [row.split(",")[-2] for row in rows] == ["/data/in/b/d.png", "Flat "]


def test_every_value_has_the_field_of_its_columns_name() -> None:
    names = {kind: {name for name, column in COLUMNS.items() if column.kind == kind} for kind in ("override", "image")}
    with_words = {name for name, column in COLUMNS.items() if column.words}
    assert {field.name for field in fields(Overrides)} == names["override"] | with_words
    own = {name for name, column in COLUMNS.items() if column.kind in ("id", "recipe", "image", "setting")}
    assert {field.name for field in fields(Pair)} == own | {"row", "content", "styles", "overrides"}
