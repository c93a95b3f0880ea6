import csv
import io
import posixpath
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_tasks.errors import ManifestError
from nst_tasks.inputs.columns import COLUMNS, MAX_CELL_CHARS, MAX_STYLES, REQUIRED_COLUMNS
from nst_tasks.inputs.csv_text import MAX_BYTES
from nst_tasks.inputs.manifest import Manifest, Pair, Problem, parse
from nst_tasks.inputs.manifest_export import build_grid, export_rejected, sanitize_manifest
from nst_tasks.inputs.presets import PRESETS
from nst_tasks.inputs.recipe import Overrides

FOLDER = "/data/in"


def parse_text(text: str, folder: str = FOLDER) -> Manifest:
    return parse(text.encode(), folder)


def parse_pair(text: str, folder: str = FOLDER) -> Pair:
    manifest = parse_text(text, folder)
    assert not manifest.problems
    (pair,) = manifest.pairs
    return pair


def write_row(**cells: str) -> str:
    """Write a manifest of one row on line 2, by default cat.jpg in the style of starry.jpg."""
    cells = {"content": "cat.jpg", "style": "starry.jpg"} | cells
    return ",".join(cells) + "\n" + ",".join(cells.values()) + "\n"


# Valid manifests


def test_a_row_of_every_column() -> None:
    pair = parse_pair(
        "id,content,style,style_weights,recipe,size,steps,seed,init,content_weight,style_weight,tv_weight,precision,plateau,"
        "keep_color,mask,format\n"
        "a-1,x/cat.jpg,one.jpg | two.png,3|1,tf-tutorial,512,100,7,Noise,1e4,0.5,0,Mixed,.25,Match,x/sky.png,JPG\n"
    )
    assert pair == Pair(
        row=2,
        id="a-1",
        content="/data/in/x/cat.jpg",
        styles=("/data/in/one.jpg", "/data/in/two.png"),
        style_weights=(0.75, 0.25),
        recipe="tf-tutorial",
        overrides=Overrides(
            size=512,
            steps=100,
            init="noise",
            content_weight=1e4,
            style_weight=0.5,
            tv_weight=0.0,
            precision="mixed",
            plateau=0.25,
        ),
        init=None,
        seed=7,
        keep_color="match",
        mask="/data/in/x/sky.png",
        format="jpg",
    )


def test_the_defaults_of_a_row() -> None:
    pair = parse_pair("content,style\ncat.jpg,a.jpg|b.jpg\n")
    assert pair == Pair(
        row=2,
        id="cat_a-b",
        content="/data/in/cat.jpg",
        styles=("/data/in/a.jpg", "/data/in/b.jpg"),
        style_weights=(0.5, 0.5),
        recipe=None,
        overrides=Overrides(
            size=None,
            steps=None,
            init=None,
            content_weight=None,
            style_weight=None,
            tv_weight=None,
            precision=None,
            plateau=None,
        ),
        init=None,
        seed=0,
        keep_color="",
        mask=None,
        format="png",
    )


def test_huge_weights_still_sum_to_one() -> None:
    assert parse_pair(write_row(style="a|b", style_weights="1.5e308|1.5e308")).style_weights == (0.5, 0.5)


def test_whole_numbers_written_by_pandas_are_read() -> None:
    overrides = parse_pair(write_row(size="512.0", steps="1e2")).overrides
    assert overrides == Overrides(size=512, steps=100)
    assert isinstance(overrides.size, int)


@pytest.mark.parametrize(
    ("cells", "meaning"),
    [
        (("true", "TRUE", "yes", "1", "luminance", " Luminance "), "luminance"),
        (("match", "MATCH"), "match"),
        (("false", "No", "0", ""), ""),
    ],
)
def test_keep_color_has_synonyms(cells: tuple[str, ...], meaning: str) -> None:
    assert [parse_pair(write_row(keep_color=cell)).keep_color for cell in cells] == [meaning] * len(cells)


@pytest.mark.parametrize(
    ("cell", "init", "picture"),
    [
        ("", None, None),
        ("content", "content", None),
        (" Style ", "style", None),
        ("NOISE", "noise", None),
        ("First.PNG", None, "/data/in/First.PNG"),
        ("noise.png", None, "/data/in/noise.png"),
        ("./noise", None, "/data/in/./noise"),  # a file of that name
        ("s3://b/first.png", None, "s3://b/first.png"),
    ],
)
def test_init_is_one_of_three_words_or_a_picture(cell: str, init: str | None, picture: str | None) -> None:
    pair = parse_pair(write_row(init=cell))
    assert (pair.overrides.init, pair.init) == (init, picture)


def test_the_pictures_of_a_row_with_their_columns() -> None:
    pair = parse_pair(write_row(style="a.jpg|b.jpg", init="i.png", mask="m.png"))
    assert pair.image_uris == [
        ("content", "/data/in/cat.jpg"),
        ("style", "/data/in/a.jpg"),
        ("style", "/data/in/b.jpg"),
        ("init", "/data/in/i.png"),
        ("mask", "/data/in/m.png"),
    ]
    assert [column for column, _ in parse_pair(write_row(init="noise")).image_uris] == ["content", "style"]


@pytest.mark.parametrize(("column", "cell"), [("size", "64"), ("size", "8192"), ("steps", "0"), ("steps", "100000")])
def test_bounds_are_inclusive(column: str, cell: str) -> None:
    assert getattr(parse_pair(write_row(**{column: cell})).overrides, column) == int(cell)


@pytest.mark.parametrize(
    ("folder", "cell", "uri"),
    [
        ("/data/in", "a/b.jpg", "/data/in/a/b.jpg"),
        ("/data/in/", "b.jpg", "/data/in/b.jpg"),
        ("/", "b.jpg", "/b.jpg"),
        ("/data/in", "../b.jpg", "/data/in/../b.jpg"),
        ("/data/in", "~/b.jpg", "/data/in/~/b.jpg"),
        ("/data/in", "/other/b.jpg", "/other/b.jpg"),
        ("s3://bucket/dir", "a/b.jpg", "s3://bucket/dir/a/b.jpg"),
        ("s3://bucket/dir/", "./b.jpg", "s3://bucket/dir/b.jpg"),
        ("s3://bucket/dir", "../b.jpg", "s3://bucket/b.jpg"),
        ("s3://bucket/dir", "../../../b.jpg", "s3://bucket/b.jpg"),
        ("s3://bucket/dir", "a//b.jpg", "s3://bucket/dir/a//b.jpg"),
        ("s3://bucket/dir", "/local/b.jpg", "/local/b.jpg"),
        ("s3://bucket/dir", "gs://other/../b.jpg", "gs://other/../b.jpg"),
        ("memory://in", "b.jpg", "memory://in/b.jpg"),
        ("memory://", "b.jpg", "memory://b.jpg"),
        ("file:///data/in", "../b.jpg", "file:///data/b.jpg"),
        ("/data/in", "https://user:pw@host/b.jpg?sig=1", "https://user:pw@host/b.jpg?sig=1"),
    ],
)
def test_relative_uris_resolve_against_the_folder(folder: str, cell: str, uri: str) -> None:
    pair = parse_pair(write_row(content=cell, style=cell, init=cell, mask=cell), folder)
    assert (pair.content, pair.styles, pair.init, pair.mask) == (uri, (uri,), uri, uri)


def test_relative_folder_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="'inbox' is relative"):
        parse_text(write_row(), "inbox")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark(end: str, mark: str) -> None:
    lines = ["content,style", "a.jpg,b.jpg", "", ",", 'c.jpg,"d.jpg"']
    manifest = parse_text(mark + end.join(lines))
    assert [(pair.row, pair.content) for pair in manifest.pairs] == [(2, "/data/in/a.jpg"), (5, "/data/in/c.jpg")]
    assert manifest.rows == 2


def test_line_ends_and_quoted_newlines_keep_row_numbers() -> None:
    manifest = parse_text('\n CONTENT , "Style"\r\n"two\nlines.jpg", "a, b.jpg"\r\rc.jpg,"d\r\n\r\n.jpg"\nlast.jpg,e.jpg')
    assert manifest.header == ("content", "style")
    assert [pair.row for pair in manifest.pairs] == [3, 6, 9]
    assert manifest.pairs[0].styles == ("/data/in/a, b.jpg",)


def test_missing_trailing_cells_are_empty() -> None:
    assert parse_pair("content,style,size,seed\na.jpg,b.jpg\n").overrides == Overrides()


def test_every_column_is_accepted_and_may_be_empty() -> None:
    assert parse_pair(",".join(COLUMNS) + "\ncat.jpg,starry.jpg\n") == parse_pair(write_row())


# Refusals of the file as a whole

REFUSALS = {
    "empty": (b"", ["the manifest is empty; give a header"]),
    "only a mark": (b"\xef\xbb\xbf\n", ["the manifest is empty"]),
    "only separators": (b",,\n,,\n", ["the manifest is empty"]),
    "header only": (b"content,style\n\n", ["the manifest has no rows; below the header, add one"]),
    "utf-16": ("content,style\na,b\n".encode("utf-16"), ["the manifest is UTF-16; save it as UTF-8"]),
    "latin-1": (
        "content,style\ncafé.jpg,b\n".encode("latin-1"),
        ["byte 0xe9 at offset 17, line 2,", "save it as UTF-8"],
    ),
    "latin-1 below a mark": (b"\xef\xbb\xbfcontent\n\xe9", ["byte 0xe9 at offset 11, line 2,"]),
    "nul": (b"content,style\na\0,b\n", ["NUL byte at offset 15", "UTF-8 CSV"]),
    "utf-16 without a mark": ("content".encode("utf-16-le"), ["the manifest is UTF-16; save it as UTF-8"]),
    "utf-16 without a mark, big-endian": ("content".encode("utf-16-be"), ["the manifest is UTF-16; save it as UTF-8"]),
    "utf-32": ("content".encode("utf-32"), ["the manifest is UTF-16; save it as UTF-8"]),
    "too large": (b"content,style\n" + b"a,b\n" * (MAX_BYTES // 4), ["67108878 bytes are more than the 67108864", "split it"]),
    "too many rows": (b"content,style\n" + b"a,b\n" * 100_001, ["the manifest has more than 100000 rows; split it"]),
    "too many columns": (b"content,style" + b",a" * 99, [f"the header has 101 columns, of which nst knows {len(COLUMNS)};"]),
    "cell of ten megabytes": (b'content,style\na,"' + b"x" * 10_000_000, ["row 2 cannot be read as CSV: field larger than"]),
    "spreadsheet": (b"PK\x03\x04\x14\x00\x06", ["a spreadsheet", "export it as CSV"]),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ["NUL byte", "not text"]),
    "semicolons": (b"content;style\na;b\n", ["separated by semicolons; use commas"]),
    "semicolons and quotes": (b'"id";"Content";"Style"\n1;a;b\n', ["separated by semicolons; use commas"]),
    "tabs": (b"content\tstyle\na\tb\n", ["separated by tabs; use commas"]),
    "missing": (b"content,size\na,512\n", ["column style is missing; add it"]),
    "both missing": (b"size\n512\n", ["column content is missing; add it", "column style is missing; add it"]),
    "misspelt mask": (b"content,style,msk\na,b,c\n", ["column msk is not known; did you mean mask?"]),
    "misspelt": (
        b"content,stile\na,b\n",
        ["column stile is not known; did you mean style?", "column style is missing; is it the one named stile?"],
    ),
    "unknown": (b"content,style,zzz\na,b,c\n", ["column zzz is not known; give one of content, style, id"]),
    "unknown, unprintable": (b"content,style,z\x1bz\na,b,c\n", [r"column z\x1bz is not known"]),
    "unnamed": (b",content,style\n0,a,b\n", ["column 1 has no name; name it or delete it"]),
    "doubled": (b"content,style,Style \na,b,c\n", ["column style is there 2 times; keep one"]),
    "all at once": (
        b"contents,size,size,\n",
        [
            "column contents is not known; did you mean content?",
            "column 4 has no name",
            "column size is there 2 times",
            "column content is missing; is it the one named contents?",
            "column style is missing",
        ],
    ),
    "open quote": (b'content,style\na,b\nc,"d\ne,f\n', ["row 3 cannot be read as CSV", "quote that is left open"]),
    "stray quote": (b'content,style\n\n"a"b,c\n', ["row 3 cannot be read as CSV", "double those inside a cell"]),
    "open quote in the header": (b'content,"style\n', ["row 1 cannot be read as CSV"]),
    "broken header and body": (b'content,stile\na,"b\n', ["column stile is not known", "row 2 cannot be read as CSV"]),
    "huge cell": (b"content,style\n" + b"a" * 200_000 + b",b\n", ["row 2 cannot be read as CSV: field larger than"]),
}


@pytest.mark.parametrize(("data", "parts"), REFUSALS.values(), ids=REFUSALS.keys())
def test_invalid_manifest_is_refused(data: bytes, parts: list[str]) -> None:
    limit = csv.field_size_limit()
    with pytest.raises(ManifestError) as caught:
        parse(data, FOLDER)
    for part in parts:
        assert part in str(caught.value)
    assert csv.field_size_limit() == limit


def test_a_refusal_has_one_line_for_each_problem() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_text("content,stile,sise\na,b,c\n")
    assert str(caught.value).splitlines() == [
        "column stile is not known; did you mean style?",
        "column sise is not known; did you mean size?",
        "column style is missing; is it the one named stile?",
    ]


# Problems of a row

WEIGHT_REMEDY = "give a finite number of 0 or more, or leave the cell empty"
ID_REMEDY = "give up to 128 letters, digits, dots, - or _, beginning with a letter or digit"
NO_PICTURE = "an empty cell names no picture; give a path or a URI"
STYLES = {"style": "a|b"}
ROW_PROBLEMS: list[tuple[dict[str, str], str, str]] = [
    ({"content": ""}, "content", NO_PICTURE),
    ({"content": "  "}, "content", NO_PICTURE),
    ({"style": ""}, "style", NO_PICTURE),
    ({"style": "a||b"}, "style", "a||b has an empty name beside a |; name a picture there or delete the |"),
    ({"style": "a|"}, "style", "a| has an empty name beside a |; name a picture there or delete the |"),
    ({"size": "9"}, "size", "9 is below the smallest size, 64; give 64 to 8192 or leave it empty"),
    ({"size": "8193"}, "size", "8193 is above the largest size, 8192; give 64 to 8192 or leave it empty"),
    ({"size": "big"}, "size", "big is not a whole number; give 64 to 8192 or leave it empty"),
    ({"size": "512.5"}, "size", "512.5 is not a whole number; give 64 to 8192 or leave it empty"),
    ({"size": "nan"}, "size", "nan is not a whole number; give 64 to 8192 or leave it empty"),
    ({"size": "9" * 5000}, "size", "9" * 79 + "… is not a whole number; give 64 to 8192 or leave it empty"),
    ({"steps": "-1"}, "steps", "-1 is below the smallest number of steps, 0; give 0 to 100000 or leave it empty"),
    ({"steps": "100001"}, "steps", "100001 is above the largest number of steps, 100000; give 0 to 100000"),
    ({"seed": "-1"}, "seed", "-1 is below the smallest seed, 0; give 0 to 2147483647 or leave it empty"),
    ({"seed": "2147483648"}, "seed", "2147483648 is above the largest seed, 2147483647; give 0 to 2147483647"),
    ({"content_weight": "-0.5"}, "content_weight", f"-0.5 is negative; {WEIGHT_REMEDY}"),
    ({"style_weight": "inf"}, "style_weight", f"inf is not finite; {WEIGHT_REMEDY}"),
    ({"style_weight": "1e999"}, "style_weight", f"1e999 is not finite; {WEIGHT_REMEDY}"),
    ({"tv_weight": "nan"}, "tv_weight", f"nan is not a number; {WEIGHT_REMEDY}"),
    ({"tv_weight": "much"}, "tv_weight", f"much is not a number; {WEIGHT_REMEDY}"),
    ({"precision": "bf16"}, "precision", "bf16 is not a precision; give one of float32, mixed, auto"),
    ({"precision": "float"}, "precision", "float is not a precision; did you mean float32?"),
    ({"plateau": "1"}, "plateau", "1 is not a share; give a number from 0 to below 1, such as 0.01, or leave the cell empty"),
    ({"plateau": "nan"}, "plateau", "nan is not a share; give"),
    (STYLES | {"style_weights": "1"}, "style_weights", "1 does not give each style one weight (1 for 2); separate"),
    (
        {"style_weights": "1|2"},
        "style_weights",
        "1|2 does not give each style one weight (2 for 1); separate them by |",
    ),
    (STYLES | {"style_weights": "0|0"}, "style_weights", "0|0 is all zeros; give one style or more a weight above 0"),
    (STYLES | {"style_weights": "1|-1"}, "style_weights", f"1|-1 has an item that is negative; {WEIGHT_REMEDY}"),
    (STYLES | {"style_weights": "1|"}, "style_weights", f"1| has an item that is not a number; {WEIGHT_REMEDY}"),
    (STYLES | {"style_weights": "1|inf"}, "style_weights", f"1|inf has an item that is not finite; {WEIGHT_REMEDY}"),
    ({"style": "|".join("a" * 33)}, "style", f"{'a|' * 33}"[:65] + " names 33 styles, more than 32; leave some out"),
    (
        {"content": "a" * 16_385},
        "content",
        f"{'a' * 79}… has 16385 characters, more than 16384; look for a double quote that is left open",
    ),
    ({"id": "../up"}, "id", f"../up is not safe; {ID_REMEDY}"),
    ({"id": ".hidden"}, "id", f".hidden is not safe; {ID_REMEDY}"),
    ({"id": "chat é"}, "id", f"chat é is not safe; {ID_REMEDY}"),
    ({"id": "a" * 129}, "id", f"{'a' * 79}… is not safe; {ID_REMEDY}"),
    ({"recipe": "paintrly"}, "recipe", "paintrly is not a recipe; did you mean painterly?"),
    ({"recipe": "zzz"}, "recipe", f"zzz is not a recipe; give one of {', '.join(PRESETS)}"),
    ({"keep_color": "maybe"}, "keep_color", "maybe is not a way to keep colors; give one of luminance, match, true, yes, 1"),
    ({"keep_color": "mach"}, "keep_color", "mach is not a way to keep colors; did you mean match?"),
    ({"format": "bmp"}, "format", "bmp is not a format to write; give one of png, jpg, webp"),
    ({"format": "jpeg"}, "format", "jpeg is not a format to write; did you mean jpg?"),
    ({"seed": "a\x1b[31m\u202e"}, "seed", r"a\x1b[31m\u202e is not a whole number"),
    ({"size": "https://ann:secret@host/a.jpg"}, "size", "https://host/a.jpg is not a whole number"),
    ({"size": "https://host/a.jpg?signature=secret"}, "size", "https://host/a.jpg is not a whole number"),
    ({"size": "https://host/a.jpg#secret"}, "size", "https://host/a.jpg is not a whole number"),
    ({"size": "https://ann:sec?ret|secret@host/a.jpg"}, "size", "https://host/a.jpg is not a whole number"),
    ({"size": "s3://ann:sec/ret@b/c|s3://k:secret@b/d"}, "size", "s3://b/c|s3://b/d is not a whole number"),
    ({"size": "ann:secret@host"}, "size", "***@host is not a whole number"),
]


@pytest.mark.parametrize(("cells", "column", "message"), ROW_PROBLEMS)
def test_a_bad_cell_is_named_with_its_value_and_remedy(cells: dict[str, str], column: str, message: str) -> None:
    manifest = parse_text(write_row(**cells))
    (problem,) = manifest.problems
    assert str(problem).startswith(f"row 2, column {column}: {message}")
    assert (problem.row, problem.column) == (2, column)
    assert problem.value in str(problem) and len(problem.value) <= 80
    assert "secret" not in repr(problem)
    assert not manifest.pairs
    assert manifest.rejected[0].row == 2


def test_problem_as_a_line() -> None:
    problem = Problem(7, "size", "9", "9 is below the smallest size, 64; give 64 to 8192 or leave it empty")
    line = "row 7, column size: 9 is below the smallest size, 64; give 64 to 8192 or leave it empty"
    assert str(problem) == line
    assert str(parse_text("content,style,size\n\n\n\n\n\na,b,9\n").problems[0]) == line


def test_the_longest_cell_and_the_most_styles_are_accepted() -> None:
    assert parse_pair(write_row(content="a" * MAX_CELL_CHARS)).content == f"{FOLDER}/{'a' * MAX_CELL_CHARS}"
    assert len(parse_pair(write_row(style="|".join("a" * MAX_STYLES))).styles) == MAX_STYLES


def test_longest_id_is_accepted() -> None:
    assert parse_pair(write_row(id="a" * 128)).id == "a" * 128


@pytest.mark.parametrize("extra", ["c.jpg", ""])
def test_a_spare_cell_is_a_problem(extra: str) -> None:
    (problem,) = parse_text(f"content,style\na.jpg,b.jpg,{extra},more\n").problems
    value = extra or "an empty cell"
    remedy = "quote a cell that holds a comma, or delete the spare one"
    assert str(problem) == f"row 2, column 3: {value} is beyond the header's 2 columns; {remedy}"


def test_a_required_cell_left_off_is_a_problem() -> None:
    (problem,) = parse_text("content,style\na.jpg\n").problems
    assert str(problem) == f"row 2, column style: {NO_PICTURE}"


def test_all_problems_are_reported_and_good_rows_remain() -> None:
    manifest = parse_text(
        "content,style,size,seed,format\na.jpg,s.jpg,512,1,png\n,s.jpg|,9,x,bmp,spare\nb.jpg,s.jpg,,,\nc.jpg,s.jpg,0,,\n"
    )
    columns = [(problem.row, problem.column) for problem in manifest.problems]
    assert columns == [(3, "content"), (3, "style"), (3, "size"), (3, "seed"), (3, "format"), (3, "6"), (5, "size")]
    assert [pair.row for pair in manifest.pairs] == [2, 4]
    assert [row.row for row in manifest.rejected] == [3, 5]
    assert manifest.rejected[0].cells == ("", "s.jpg|", "9", "x", "bmp", "spare")
    assert manifest.rows == 4


def test_duplicate_id_rejects_the_later_row() -> None:
    manifest = parse_text("id,content,style\nCat,a,b\ncAT,c,d\ncat,e,f\n")
    assert [pair.row for pair in manifest.pairs] == [2]
    assert [str(problem) for problem in manifest.problems] == [
        "row 3, column id: cAT is also the id of row 2 (capitals do not count); give another",
        "row 4, column id: cat is also the id of row 2 (capitals do not count); give another",
    ]


def test_rejected_row_keeps_its_id() -> None:
    manifest = parse_text("id,content,style,size\ncat,a,b,9\ncat,c,d,\n")
    assert [(problem.row, problem.column) for problem in manifest.problems] == [(2, "size"), (3, "id")]


# Forbidden places


def test_row_naming_a_forbidden_uri_is_rejected() -> None:
    text = (
        "content,style,init,mask,recipe\n"
        "bad/a.jpg,s.jpg|bad/t.jpg,bad/i.png,bad/m.png,bad/r.toml\n"
        "s3://u:secret@bad/a.jpg?secret,s.jpg,noise,,painterly\n"
        "a.jpg,s.jpg,content,m.png,r.toml\n"
    )
    manifest = parse(text.encode(), FOLDER, find_uri_problem=lambda uri: "is bad; name another" if "bad" in uri else None)
    names = {"content": "a.jpg", "init": "i.png", "mask": "m.png", "recipe": "r.toml", "style": "t.jpg"}
    assert [str(problem) for problem in manifest.problems] == [
        *(f"row 2, column {column}: bad/{name} is bad; name another" for column, name in names.items()),
        "row 3, column content: s3://bad/a.jpg is bad; name another",
    ]
    assert [pair.row for pair in manifest.pairs] == [4]


def test_access_is_checked_after_resolving_links() -> None:
    uris: list[str] = []
    parse(
        write_row(style="../t.jpg|s3://b/s.jpg", init="noise", recipe="my.toml").encode(), FOLDER, find_uri_problem=uris.append
    )
    assert uris == ["/data/in/cat.jpg", "/data/in/my.toml", "/data/in/../t.jpg", "s3://b/s.jpg"]


# Derived ids


def test_equal_derived_ids_reject_the_later_row() -> None:
    manifest = parse_text("content,style\nx/other.jpg,s.jpg\nx/cat.jpg,starry.jpg\ny/Cat.jpg,starry.jpg\n")
    assert [pair.row for pair in manifest.pairs] == [2, 3]
    (problem,) = manifest.problems
    line = "row 4, column id: derived id Cat_starry is also row 3's; add an id column and name each"
    assert str(problem) == line


def test_a_derived_and_a_given_id_may_not_be_equal() -> None:
    assert str(parse_text("id,content,style\n,cat.jpg,s.jpg\ncat_s,a,b\n").problems[0]).startswith("row 3, column id: cat_s is")
    assert "derived id cat_s is also row 2's" in str(parse_text("id,content,style\ncat_s,a,b\n,cat.jpg,s.jpg\n").problems[0])


@pytest.mark.parametrize(
    ("content", "style", "identity"),
    [
        ("x/cat.jpg", "y/starry.png", "cat_starry"),
        ("s3://bucket/cat.tar.gz", "a.jpg|b c.jpg", "cat.tar_a-b-c"),
        ("été.jpg", "ﬁn.jpg", "ete_fin"),
        ("猫.jpg", "_.jpg", "picture_picture"),
        (".-_a@2x.jpg", "b/", "a-2x_b"),
        ("https://ann:pw@host", "https://host/a.jpg?key=http://pw/pw.jpg", "host_a"),
        ("x" * 300 + ".jpg", "y" * 300 + ".jpg", "x" * 56 + "_" + "y" * 56),
    ],
)
def test_derived_ids(content: str, style: str, identity: str) -> None:
    assert parse_pair(write_row(content=content, style=style)).id == identity


def test_settings_of_a_row_give_it_another_id() -> None:
    """Fixed values: existing outputs must keep their names."""
    assert parse_pair(write_row(size="512", steps="100")).id == "cat_starry-72e428"
    assert parse_pair(write_row(steps=" 100.0", size="512")).id == "cat_starry-72e428"
    settings = {
        "style_weights": "1",
        "recipe": "painterly",
        "size": "512",
        "steps": "512",
        "seed": "512",
        "init": "noise",
        "content_weight": "1",
        "style_weight": "1",
        "tv_weight": "1",
        "precision": "auto",
        "plateau": "0.01",
        "keep_color": "1",
        "mask": "sky.png",
        "format": "png",
    }
    identities = {parse_pair(write_row(**{column: cell})).id for column, cell in settings.items()}
    assert len(identities) == len(settings)
    assert "cat_starry" not in identities


def test_keep_color_ids_stay_those_of_yes_and_no() -> None:
    """Fixed values: existing outputs must keep their names."""
    identities = {cell: parse_pair(write_row(keep_color=cell)).id for cell in ("yes", "luminance", "no", "match")}
    assert identities["yes"] == identities["luminance"] == "cat_starry-540254"
    assert identities["no"] == "cat_starry-0ed986"
    assert len(set(identities.values())) == 3


@pytest.mark.parametrize("column", ["init", "mask"])
def test_a_picture_counts_in_a_derived_id_by_its_name_alone(column: str) -> None:
    """A row comes back from rejected.csv with its relative URIs made absolute, and a signature changes from day to day."""
    cells = ("a/sky.png", "/data/in/a/sky.png", "https://ann:pw@host/sky.png?sig=1", "https://host/sky.png?sig=2")
    assert len({parse_pair(write_row(**{column: cell})).id for cell in cells}) == 1
    assert parse_pair(write_row(**{column: "sea.png"})).id != parse_pair(write_row(**{column: "sky.png"})).id


def test_derived_id_depends_on_its_row_alone() -> None:
    rows = ["a.jpg,s.jpg,", "b.jpg,s.jpg,256", "c.jpg,s.jpg,"]
    forward = parse_text("content,style,size\n" + "\n".join(rows))
    backward = parse_text("content,style,size\n" + "\n".join(reversed(rows)), "s3://bucket")
    assert [pair.id for pair in forward.pairs] == [pair.id for pair in reversed(backward.pairs)]


# rejected.csv


@pytest.mark.parametrize("folder", ["/data/in", "s3://bucket/in", "memory://in"])
def test_rejected_rows_come_back_corrected_from_another_folder(folder: str) -> None:
    text = (
        "problem,content,style,size,id\n"
        "old,a/good.jpg,s.jpg,512,\n"
        'old,"a/one, two.jpg","s.jpg | s3://other/t.jpg",9,\n'
        "old,../up.jpg,s.jpg||t.jpg\n"
        "old,/abs/c.jpg,s.jpg,512,x,spare\n"
        "old,https://ann:pw@host/d.jpg?sig=1,s.jpg,512,.bad\n"
    )
    corrections = [(",9,", ",99,"), ("s.jpg||t.jpg", "s.jpg|t.jpg"), (",x,spare", ",x"), (",.bad", ",fine")]
    expected_text = text
    for wrong, right in corrections:
        expected_text = expected_text.replace(wrong, right)
    expected = [
        (pair.id, pair.content, pair.styles, pair.overrides.size)
        for pair in parse_text(expected_text, folder).pairs
        if "good" not in pair.content
    ]
    assert len(expected) == 4

    original = parse_text(text, folder)
    rejected_csv = export_rejected(original, folder)
    copy = parse(rejected_csv, "/elsewhere")
    assert [problem.column for problem in copy.problems] == [problem.column for problem in original.problems]
    assert not copy.pairs
    edited_text = rejected_csv.decode().replace(f"s.jpg||{folder}/t", f"s.jpg|{folder}/t")
    for wrong, right in corrections:
        edited_text = edited_text.replace(wrong, right)
    manifest = parse_text(edited_text, "/elsewhere")
    assert not manifest.problems
    assert [(pair.id, pair.content, pair.styles, pair.overrides.size) for pair in manifest.pairs] == expected


@pytest.mark.parametrize("init", ["first.png", "noise", "Style "])
def test_rejected_masks_and_init_images_are_made_absolute(init: str) -> None:
    text = f"content,style,init,mask,size\ncat.jpg,s.jpg,{init},../sky.png,9\n"
    rejected_csv = export_rejected(parse_text(text), FOLDER).decode()
    assert parse_pair(rejected_csv.replace(",9", ",99"), "/elsewhere") == parse_pair(text.replace(",9", ",99"))
    empty = export_rejected(parse_text("content,style,init,mask,size\ncat.jpg,s.jpg,,,9\n"), FOLDER).decode()
    assert parse_pair(empty.replace(",9", ",99"), "/elsewhere").image_uris == parse_pair(write_row(style="s.jpg")).image_uris


def test_rejected_csv_has_the_problems_of_each_row() -> None:
    manifest = parse_text("content,style,size,format\na.jpg,b.jpg,,\n=cmd().jpg,-b.jpg,9,bmp\n")
    header, row = csv.reader(io.StringIO(export_rejected(manifest, FOLDER).decode()))
    assert header == ["problem", "content", "style", "size", "format"]
    assert row[0] == " | ".join(map(str, manifest.problems))
    assert row[0].startswith("row 3, column size: 9 is below"), "never with a formula's first character"
    assert row[1:] == ["/data/in/=cmd().jpg", "/data/in/-b.jpg", "9", "bmp"]


FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", " =1", "'=1", "''=1", "-1|2", "'-1")
PLAIN = ("-1", "+5.5", "-1e-3", "'quoted'", "a=b", "'", "")


@pytest.mark.parametrize("cell", [*FORMULAS, *PLAIN])
def test_formula_in_rejected_csv_round_trips(cell: str) -> None:
    escaped_cell = f"'{cell}" if cell in FORMULAS else cell
    manifest = parse_text(f'content,style,size,seed\na.jpg,s.jpg,9,"{escaped_cell}"\n')
    rejected_csv = export_rejected(manifest, FOLDER)
    _, row = csv.reader(io.StringIO(rejected_csv.decode(), newline=""))
    assert row[4] == escaped_cell
    assert parse(rejected_csv, "/elsewhere").rejected[0].cells[4] == manifest.rejected[0].cells[3] == cell


def test_a_grid_of_names_like_formulas_is_escaped_and_read_back() -> None:
    data = build_grid(["=a.jpg", "-b.jpg"], ["@s.jpg"], None)
    assert [row[1:] for row in csv.reader(io.StringIO(data.decode()))][1:] == [["'-b.jpg", "'@s.jpg"], ["'=a.jpg", "'@s.jpg"]]
    assert [pair.content for pair in parse(data, FOLDER).pairs] == ["/data/in/-b.jpg", "/data/in/=a.jpg"]


def test_sanitized_manifest_has_no_formulas_or_secrets() -> None:
    data = (
        b"\n ID ,Content,STYLE,seed,tv_weight\n"
        b'\'=x,https://ann:se|cret@host/a.jpg?secret,s.jpg|https://h/t.jpg?secret|u.jpg,=1+1,-1,"=2,3"\n'
        b"y,a.jpg\n"
    )
    output = sanitize_manifest(data)
    assert output == (
        b"\n ID ,Content,STYLE,seed,tv_weight\n'=x,https://host/a.jpg,s.jpg|https://h/t.jpg|u.jpg,'=1+1,-1,\"'=2,3\"\ny,a.jpg\n"
    ).replace(b" ID ", b"ID ")
    assert sanitize_manifest(output) == output


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfcontent,style\r\n\r\n'=a,-1\r\n", b'content,style\n"a?b#c@d:e","x\ny"'])
def test_clean_manifest_is_unchanged_by_sanitizing(data: bytes) -> None:
    assert sanitize_manifest(data) == data


def test_rejected_csv_keeps_any_cell_whole() -> None:
    cells = ['say "hi", all.jpg', "cr\rlf\nboth\r\n.jpg", "9", "=1+1"]
    out = io.StringIO()
    csv.writer(out).writerows([["content", "style", "size", "id"], cells])
    manifest = parse_text(out.getvalue())
    copy = parse(export_rejected(manifest, FOLDER), "/elsewhere")
    assert copy.rejected[0].cells[1:] == ("/data/in/" + cells[0], "/data/in/" + cells[1], "9", "=1+1")


def test_styles_below_a_folder_with_a_bar_stay_as_they_are() -> None:
    rejected_csv = export_rejected(parse_text(write_row(size="9"), "/a|b"), "/a|b").decode()
    assert rejected_csv.endswith("/a|b/cat.jpg,starry.jpg,9\n")
    assert parse_pair(write_row(mask="m|n.png"), "/a|b").mask == "/a|b/m|n.png"  # one picture, whatever its name


# grid


def test_grid_is_the_sorted_cross_product() -> None:
    assert build_grid(["b.jpg", "a.jpg", "b.jpg"], ["t.jpg", "s.jpg"], None) == (
        b"id,content,style\na_s,a.jpg,s.jpg\na_t,a.jpg,t.jpg\nb_s,b.jpg,s.jpg\nb_t,b.jpg,t.jpg\n"
    )


def test_grid_numbers_equal_names() -> None:
    data = build_grid(["x/a.jpg", "y/A.jpg", "z/a.png", "z/q.jpg"], ["s.jpg", "t/s.jpg", "s-2.jpg"], None)
    manifest = parse(data, FOLDER)
    assert not manifest.problems
    assert [pair.id for pair in manifest.pairs] == [
        *("a_s-2", "a_s", "a_s-3"),
        *("A_s-2-2", "A_s-4", "A_s-5"),
        *("a_s-2-3", "a_s-6", "a_s-7"),
        *("q_s-2", "q_s", "q_s-3"),
    ]


def test_grid_with_a_recipe_uses_derived_ids() -> None:
    pair = parse_pair(build_grid(["cat.jpg"], ["starry.jpg"], "painterly").decode())
    assert pair == parse_pair(write_row(recipe="painterly"))
    assert pair.recipe == "painterly"


def test_grid_writes_odd_names_whole() -> None:
    names = ["a,b.jpg", 'c"d.jpg', "e\nf.jpg", "g\rh.jpg", "é|ü.jpg"]
    manifest = parse(build_grid(names, ["s, t.jpg"], None), FOLDER)
    assert sorted(pair.content for pair in manifest.pairs) == [f"/data/in/{name}" for name in names]


@pytest.mark.parametrize(
    ("contents", "styles", "recipe", "message"),
    [
        ([], ["s"], None, "no content picture is given"),
        (["a"], [], None, "no style picture is given"),
        (["a"], ["s|t.jpg"], None, r"s\|t.jpg has a \|, which separates styles; rename the file"),
        ([" a"], ["s"], None, " a cannot be a manifest's cell .*; rename the file"),
        (["a\udce9"], ["s"], None, r"a\\udce9 cannot be a manifest's cell"),
        (["a"], ["s"], "paintrly", "paintrly is not a recipe; did you mean painterly"),
    ],
)
def test_grid_refuses_unusable_names(contents: list[str], styles: list[str], recipe: str | None, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        build_grid(contents, styles, recipe)


# Any input at all

CELL = st.one_of(
    st.sampled_from(
        [
            "",
            "a.jpg",
            "b/c.png",
            "a|b",
            "|",
            "1|2",
            "painterly",
            "512",
            "-1",
            "nan",
            "yes",
            "noise",
            "x\ny",
            "s3://b/c",
            "'=1",
            "\t+",
        ]
    ),
    st.text(max_size=8),
)
HEADER = st.lists(st.sampled_from(sorted({*COLUMNS} - {*REQUIRED_COLUMNS})), unique=True, max_size=5)
TABLES = st.tuples(HEADER, st.lists(st.lists(CELL, min_size=1, max_size=8), max_size=8))


def check(data: bytes) -> None:
    """Check that the data are refused or give a manifest with consistent rows, ids and exports."""
    try:
        manifest = parse(data, FOLDER)
    except ManifestError as error:
        assert str(error)
        return
    assert manifest.rows == len(manifest.pairs) + len(manifest.rejected) > 0
    assert {problem.row for problem in manifest.problems} == {row.row for row in manifest.rejected}
    assert len({pair.id.lower() for pair in manifest.pairs}) == len(manifest.pairs)
    for pair in manifest.pairs:
        assert pair.id.isascii() and len(pair.id) <= 128 and pair.id[0].isalnum()
        assert all(char.isalnum() or char in "._-" for char in pair.id)
        assert all(uri.startswith("/") or "://" in uri for _, uri in pair.image_uris)
        assert pair.overrides.init in (None, "content", "style", "noise") and None in (pair.overrides.init, pair.init)
        assert sum(pair.style_weights) == pytest.approx(1) and len(pair.style_weights) == len(pair.styles)
    for problem in manifest.problems:
        assert str(problem).isprintable() and str(problem).startswith(f"row {problem.row}, column {problem.column}: ")
    if manifest.rejected:
        rejected_csv = export_rejected(manifest, FOLDER)
        copy = parse(rejected_csv, "/elsewhere")
        assert copy.rows == len(manifest.rejected)
        assert sanitize_manifest(rejected_csv) == rejected_csv or b"://" in rejected_csv
    assert sanitize_manifest(sanitize_manifest(data)) == sanitize_manifest(data)


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    check(data)


@given(st.text(alphabet=st.sampled_from('content,style;|"\t\r\n ab1\x85é')))
def test_any_text(text: str) -> None:
    check(text.encode())


@given(st.text(), st.sampled_from(["content,style\n", "style,id,content,seed\r\n", "\ufeffcontent,style\r"]))
def test_any_rows_below_a_header(text: str, header: str) -> None:
    check((header + text).encode())


@given(TABLES)
def test_any_table(table: tuple[list[str], list[list[str]]]) -> None:
    header, rows = table
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows([[*REQUIRED_COLUMNS, *header], *rows])
    check(out.getvalue().encode())


@given(st.text() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,130}", fullmatch=True))
def test_any_id_is_one_safe_name_or_refused(cell: str) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([["content", "style", "id"], ["a.jpg", "s.jpg", cell]])
    try:
        manifest = parse(out.getvalue().encode("utf-8", "replace"), FOLDER)
    except ManifestError:
        return
    for pair in manifest.pairs:
        assert pair.id in (cell.strip(), "a_s")
        assert posixpath.normpath(f"/out/images/{pair.id}.png") == f"/out/images/{pair.id}.png"
        assert posixpath.dirname(f"/out/images/{pair.id}.png") == "/out/images"
        assert pair.id not in (".", "..") and len(f"{pair.id}.parquet") <= 255


NAMES = st.lists(
    st.text(st.characters(exclude_characters="\0|", exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4
)


@given(NAMES, NAMES)
def test_any_grid_is_a_good_manifest(contents: list[str], styles: list[str]) -> None:
    contents, styles = ([name.strip() or "x" for name in names] for names in (contents, styles))
    manifest = parse(build_grid(contents, styles, None), FOLDER)
    assert not manifest.problems
    assert manifest.rows == len({*contents}) * len({*styles})


def test_a_hundred_thousand_rows() -> None:
    lines = (f"c{row}.jpg,s.jpg,{63 if row % 1000 == 0 else 64}\n" for row in range(100_000))
    manifest = parse_text("content,style,size\n" + "".join(lines))
    assert (manifest.rows, len(manifest.pairs), len(manifest.problems)) == (100_000, 99_900, 100)
    assert str(manifest.problems[-1]).startswith("row 99002, column size: 63")


def test_only_light_imports() -> None:
    """`nst validate` answers within a second."""
    code = "import sys, nst_tasks.inputs.manifest; print(*{'tensorflow', 'numpy', 'pandas', 'prefect'} & {*sys.modules})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == ""
