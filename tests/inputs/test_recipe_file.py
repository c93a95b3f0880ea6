"""Recipes as TOML files: round trips, base presets, and reports of every problem with its place."""

from __future__ import annotations

import codecs
import json
import tomllib
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_tasks.core import method
from nst_tasks.core.method import (
    LBFGS,
    SGD,
    Adam,
    ContentLoss,
    Method,
    Optimizer,
    Plateau,
    Pyramid,
    StyleLoss,
    TotalVariation,
    as_plain,
)
from nst_tasks.core.vgg_layers import layer_names
from nst_tasks.errors import SettingsError
from nst_tasks.inputs import recipe_file
from nst_tasks.inputs.presets import PAINTERLY, PRESETS, TF_TUTORIAL
from nst_tasks.inputs.recipe import Recipe

RECIPES = [pytest.param(recipe, id=name) for name, recipe in PRESETS.items()]

PLAIN = """
name = "plain"
summary = "what it is"
source = "where it is from"
differs = "nowhere"
size = 256
steps = 10
[content]
weight = 1.0
layers = {block4_conv2 = 1.0}
[style]
weight = 2.0
layers = {block1_conv1 = 0.5, block2_conv1 = 0.25}
[total_variation]
weight = 0.0
[optimizer]
kind = "adam"
learning_rate = 0.02
"""
"""The smallest file without a base."""


def parse(text: str, name: str = "my") -> Recipe:
    return recipe_file.parse(text.encode(), name)


def list_problems(text: str | bytes, name: str = "my") -> list[str]:
    with pytest.raises(SettingsError) as caught:
        recipe_file.parse(text if isinstance(text, bytes) else text.encode(), name)
    return str(caught.value).split("\n")


# Round trips


@pytest.mark.parametrize("recipe", RECIPES)
def test_preset_round_trip(recipe: Recipe) -> None:
    assert parse(recipe_file.to_toml(recipe), "another name") == recipe


def make_strategy(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a field's type, in range or not."""
    if kind == method.LayerWeights:
        weights = st.floats(0, allow_infinity=False)
        return st.dictionaries(st.sampled_from(layer_names("vgg19")), weights, min_size=1).map(lambda d: tuple(d.items()))
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_args(kind):
        return st.one_of(*map(make_strategy, get_args(kind)))
    if kind is str:
        return st.text(st.characters(categories=["L", "M", "N", "P", "S"], include_characters=" "), min_size=1, max_size=50)
    ranges = {int: st.integers(0, 100_000), float: st.floats(0, 1), bool: st.booleans(), type(None): st.none()}
    return ranges[kind] if kind in ranges else draw_dataclass(kind)


@st.composite
def draw_dataclass(draw: st.DrawFn, kind: type) -> Any:
    """Make a dataclass of random values; the default replaces a value that it refuses."""
    example = recipe_file._EXAMPLES[kind]
    for name, hint in get_type_hints(kind).items():
        value = draw(make_strategy(hint))
        try:
            example = replace(example, **{name: value})
        except SettingsError:
            continue
    return example


@settings(max_examples=30)
@given(draw_dataclass(Recipe))
def test_any_recipe_round_trip(recipe: Recipe) -> None:
    copy = parse(recipe_file.to_toml(recipe), "another name")
    assert copy == recipe
    assert json.dumps(as_plain(copy)) == json.dumps(as_plain(recipe))  # the job's key distinguishes 1 from 1.0, == does not


def test_file_has_every_field_and_optimizer_kind() -> None:
    assert set(recipe_file.OPTIMIZER_KINDS.values()) == set(get_args(Optimizer))
    full = replace(PAINTERLY.method.pyramid, first_steps=1, levels=2)  # type: ignore[type-var]
    tables = recipe_file.to_tables(replace(PAINTERLY, method=replace(PAINTERLY.method, pyramid=full, plateau=Plateau())))
    assert {*tables} == {f.name for f in (*fields(Recipe), *fields(Method))} - {"method"}
    assert {*tables["plateau"]} == {f.name for f in fields(Plateau)}
    for name in ("content", "style", "total_variation", "pyramid"):
        assert {*tables[name]} == {f.name for f in fields(getattr(PAINTERLY.method, name))}
    for kind, optimizer in recipe_file.OPTIMIZER_KINDS.items():
        method = replace(PAINTERLY.method, optimizer=recipe_file._EXAMPLES[optimizer])
        table = recipe_file.to_tables(replace(PAINTERLY, method=method))["optimizer"]
        assert {*table} == {"kind"} | {f.name for f in fields(optimizer)}
        assert table["kind"] == kind


def test_plateau_is_a_table_with_defaults() -> None:
    base = 'base = "tf-tutorial"\n[plateau]\n'
    assert parse(base).method.plateau == Plateau()
    assert parse(base + "window = 5\ntolerance = 0.001\n").method.plateau == Plateau(5, 0.001)


def test_fields_with_defaults_are_optional() -> None:
    assert parse(PLAIN) == Recipe(
        name="plain",
        summary="what it is",
        source="where it is from",
        differs="nowhere",
        size=256,
        method=Method(
            content=ContentLoss((("block4_conv2", 1.0),), 1.0),
            style=StyleLoss((("block1_conv1", 0.5), ("block2_conv1", 0.25)), 2.0),
            total_variation=TotalVariation(0.0),
            optimizer=Adam(0.02),
            steps=10,
        ),
    )


@pytest.mark.parametrize(
    ("table", "optimizer"),
    [
        ('kind = "sgd"\nlearning_rate = 0.5', SGD(0.5)),
        ('kind = "sgd"\nlearning_rate = 1\ndecay = 0.9\ndecay_steps = 7', SGD(1.0, 0.9, 7)),
        ('kind = "lbfgs"', LBFGS()),
        ('kind = "lbfgs"\nhistory = 5\nline_search = "fixed"\nlearning_rate = 0.5', LBFGS(5, "fixed", 0.5)),
        ('kind = "adam"\nlearning_rate = 1\nbeta_1 = 0\ndecay_to = 0.5', Adam(1.0, beta_1=0.0, decay_to=0.5)),
    ],
)
def test_an_optimizer_is_chosen_by_its_kind(table: str, optimizer: Optimizer) -> None:
    text = PLAIN.partition("[optimizer]")[0] + f"[optimizer]\n{table}\n"
    assert parse(text).method.optimizer == optimizer


def test_pyramid_has_optional_keys() -> None:
    text = PLAIN + "[pyramid]\nsmallest = 64\nratio = 2\ncoarse_steps = 5\n"
    assert parse(text).method.pyramid == Pyramid(64, 2.0, 5)
    assert parse(text + "levels = 3\nfirst_steps = 8\n").method.pyramid == Pyramid(64, 2.0, 5, first_steps=8, levels=3)


def test_whole_numbers_are_accepted_as_floats() -> None:
    recipe = parse(PLAIN.replace("= 1.0", "= 1").replace("= 2.0", "= 2").replace("= 0.0\n", "= 0\n"))
    assert json.dumps(as_plain(recipe)) == json.dumps(as_plain(parse(PLAIN)))


@pytest.mark.parametrize("text", ["\ufeff" + PLAIN, PLAIN.replace("\n", "\r\n"), "# é\n" + PLAIN])
def test_bom_crlf_and_comments_are_accepted(text: str) -> None:
    assert parse(text) == parse(PLAIN)


# From a base


def test_file_changes_only_its_own_keys_of_the_base() -> None:
    assert parse('base = "painterly"') == replace(PAINTERLY, name="my")
    recipe = parse(
        'base = "painterly"\nsteps = 7\nsize = 100\npooling = "average"\n[content]\nweight = 9\n[style]\nrelative = false\n'
        '[total_variation]\nkind = "nine_point"\n[optimizer]\nhistory = 5\n[pyramid]\nlevels = 2\n'
    )
    method = PAINTERLY.method
    assert method.pyramid is not None
    assert isinstance(method.optimizer, LBFGS)
    assert recipe == replace(
        PAINTERLY,
        name="my",
        size=100,
        method=replace(
            method,
            steps=7,
            pooling="average",
            content=replace(method.content, weight=9.0),
            style=replace(method.style, relative=False),
            total_variation=replace(method.total_variation, kind="nine_point"),
            optimizer=replace(method.optimizer, history=5),
            pyramid=replace(method.pyramid, levels=2),
        ),
    )


def test_layers_replace_those_of_the_base() -> None:
    style = parse('base = "painterly"\n[style.layers]\nblock5_conv1 = 2\n').method.style
    assert style == replace(PAINTERLY.method.style, layers=(("block5_conv1", 2.0),))


def test_other_optimizer_kind_replaces_the_base() -> None:
    assert parse('base = "tf-tutorial"\n[optimizer]\nkind = "lbfgs"\n').method.optimizer == LBFGS()
    optimizer = parse('base = "tf-tutorial"\n[optimizer]\nkind = "adam"\nbeta_2 = 0.5\n').method.optimizer
    assert isinstance(TF_TUTORIAL.method.optimizer, Adam)
    assert optimizer == replace(TF_TUTORIAL.method.optimizer, beta_2=0.5)
    assert list_problems('base = "painterly"\n[optimizer]\nkind = "sgd"\n') == ["optimizer.learning_rate: is missing; add it"]


def test_a_pyramid_can_be_given_to_a_base_that_has_none() -> None:
    text = 'base = "tf-tutorial"\n[pyramid]\nsmallest = 64\nratio = 2\ncoarse_steps = 5\n'
    assert parse(text).method == replace(TF_TUTORIAL.method, pyramid=Pyramid(64, 2.0, 5))
    assert list_problems(text.replace("ratio = 2\n", "")) == ["pyramid.ratio: is missing; add it"]


def test_name_in_the_file_overrides_the_file_name() -> None:
    assert parse('base = "painterly"\nname = "own"').name == "own"
    assert parse(PLAIN, "other").name == "plain"


# Problems


def test_all_recipe_problems_are_reported_with_their_keys() -> None:
    text = """
base = "paintrly"
steps = "40"
size = 9
init_noise = nan
poling = "max"
[content]
weight = true
[content.layers]
block4_conv22 = 1
block4_conv2 = -1
[optimizer]
kind = "sgd"
learning_rate = 0
beta_1 = 0.5
[pyramid]
smallest = 1
ratio = 1
"""
    lines = list_problems(text)
    assert {line.split(":")[0] for line in lines} == {
        "base", "steps", "size", "init_noise", "poling", "content.weight", "content.layers.block4_conv22",
        "content.layers.block4_conv2", "optimizer.learning_rate", "optimizer.beta_1", "pyramid.smallest", "pyramid.ratio",
    }  # fmt: skip
    assert len(lines) == 12


def test_problems_are_in_order_with_unknown_keys_first() -> None:
    text = """
steps = -1
x = 1
base = "y"
[optimizer]
beta_1 = 1
x = 1
kind = "adam"
[style]
weight = -1
x = 1
[style.layers]
block1_conv1 = -1
x = 1
block2_conv1 = -1
"""
    assert [line.split(":")[0] for line in list_problems(text)] == [
        "base", "x", "style.x", "style.layers.block1_conv1", "style.layers.x", "style.layers.block2_conv1", "style.weight",
        "optimizer.x", "optimizer.learning_rate", "optimizer.beta_1", "steps",
    ]  # fmt: skip


def test_empty_file_reports_all_missing_keys() -> None:
    missing_keys = ["name", "summary", "source", "differs", "size", "content", "style", "total_variation", "optimizer", "steps"]
    remedy = 'add it, or start from a preset by a line such as base = "painterly"'
    assert list_problems("") == [f"{key}: is missing; {remedy}" for key in missing_keys]
    assert list_problems("# nothing\n[content]\n")[5] == "content.layers: is missing; add it"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        # unknown keys
        ("sise = 9", "sise: is not known here; did you mean size?"),
        ("[contents]", "contents: is not known here; did you mean content?"),
        ("[style]\nwight = 1", "style.wight: is not known here; did you mean weight?"),
        ("[optimizer]\nqqq = 1", "optimizer.qqq: is not known here; give one of history, line_search, learning_rate"),
        ("[style]\nsteps = 9", "style.steps: is not known here; move it to the top, above the first table"),
        ('"a\\nb" = 1', "'a\\nb': is not known here; give one of base, name, summary"),
        ("[method]\nsteps = 1", "method: is not known here; give one of base"),
        # wrong types
        ('steps = "40"', "steps: '40' is not a whole number; write one such as 40, without quotes and without a point"),
        ("steps = 40.0", "steps: 40.0 is not a whole number; write one such as 40, without quotes and without a point"),
        ("steps = true", "steps: true is not a whole number; write one"),
        ("steps = []", "steps: a list is not a whole number; write one"),
        ("steps = {}", "steps: a table is not a whole number; write one"),
        ("steps = 1979-05-27", "steps: 1979-05-27 is not a whole number; write one"),
        ("steps = 0x" + "f" * 5000, "steps: a number beyond 64 bits is not a whole number; write one"),
        ("size = false", "size: false is not a whole number"),
        ("init_noise = true", "init_noise: true is not a finite number; write one such as 0.5, without quotes"),
        ('init_noise = "0.1"', "init_noise: '0.1' is not a finite number; write one such as 0.5, without quotes"),
        ("init_noise = nan", "init_noise: nan is not a finite number"),
        ("feature_scale = inf", "feature_scale: inf is not a finite number"),
        ("feature_scale = 1e400", "feature_scale: inf is not a finite number"),
        ("feature_scale = 0x" + "f" * 5000, "feature_scale: a number beyond 64 bits is not a finite number"),
        ("clip = 1", "clip: 1 is not true or false; write one of them, without quotes"),
        ('clip = "true"', "clip: 'true' is not true or false; write one of them, without quotes"),
        ("name = 3", "name: 3 is not a line of text; write 1 to 500 printable characters in quotes"),
        ('name = ""', "name: '' is not a line of text"),
        ('name = "a\\nb"', "name: 'a\\nb' is not a line of text"),
        (f'summary = "{"x" * 501}"', f"summary: '{'x' * 78}… is not a line of text"),
        ("pyramid = 3", "pyramid: 3 is not a table; write [pyramid] on a line of its own and its keys below"),
        ('optimizer = "adam"', "optimizer: 'adam' is not a table; write [optimizer] on a line of its own"),
        ("[style]\nlayers = 1", "style.layers: 1 is not a table; write [style.layers] on a line of its own"),
        # choices
        ('pooling = "avarage"', "pooling: 'avarage' is not known; did you mean average?"),
        ("pooling = 0x" + "f" * 5000, "pooling: a number beyond 64 bits is not known; give one of max, average"),
        ("init = []", "init: a list is not known; give one of content, style, noise"),
        ('[style]\nstatistic = "gramm"', "style.statistic: 'gramm' is not known; did you mean gram?"),
        ('[optimizer]\nkind = "adma"', "optimizer.kind: 'adma' is not known; did you mean adam?"),
        ("[optimizer]\nkind = [1]", "optimizer.kind: a list is not known; give one of adam, sgd, lbfgs"),
        ('base = "wet paint"', "base: 'wet paint' is not a preset; give one of painterly, "),
        ("base = 3", "base: 3 is not a preset; give one of painterly, "),
        ("base = {}", "base: a table is not a preset; give one of painterly, "),
        ("base = 0x" + "f" * 5000, "base: a number beyond 64 bits is not a preset"),
        # layers
        ("[style.layers]", "style.layers: no layer is named; name at least one, such as block4_conv2"),
        ('[style.layers]\nblock4_conv2 = "1"', "style.layers.block4_conv2: '1' is not a finite number"),
        ("[style.layers]\nblock4_conv2 = -1", "style.layers.block4_conv2: -1.0 is not a finite number of 0 or more"),
        ("[style.layers]\nblock4_conv2 = nan", "style.layers.block4_conv2: nan is not a finite number"),
        ("[style.layers]\nblok4_conv2 = 1", "style.layers.blok4_conv2: is not a layer's name; did you mean block4_conv2?"),
        ("[style.layers]\nblock_conv2 = 1", "style.layers.block_conv2: is not a layer's name; did you mean block"),
        ("[style.layers]\nconv99_block = 1", "style.layers.conv99_block: is not a layer's name; "),
        (
            "[content.layers]\nblock4_conv2 = 1\nsteps = 9",
            "content.layers.steps: is not a layer's name; move it to the top, above the first table",
        ),
        # ranges: `method`'s own words
        ("steps = -1", "steps: -1 is not in 0..100000"),
        ("size = 63", "size: 63 is not in 64..8192 pixels"),
        ("init_noise = 2", "init_noise: 2.0 is not in [0, 1]"),
        ("[content]\nweight = -1", "content.weight: -1.0 is not a finite number of 0 or more"),
        ("[total_variation]\nweight = -1", "total_variation.weight: -1.0 is not a finite number of 0 or more"),
        ('[optimizer]\nkind = "adam"\nlearning_rate = 1\nbeta_1 = 1', "optimizer.beta_1: 1.0 is not in [0, 1)"),
        ("[pyramid]\nratio = 1", "pyramid.ratio: 1.0 is not a finite number above 1.1"),
        ("[pyramid]\nfirst_steps = -1", "pyramid.first_steps: -1 is not in 0..100000"),
        # values that do not go together
        ('[content]\nerror = "sse"', "content relative: only with the error mse"),
        ('[style]\nnormalization = "chw"', "style statistic wasserstein: only with the normalization hw"),
        ('[pyramid]\ncarry = true\n[optimizer]\nkind = "lbfgs"', "pyramid carry: only with the optimizer adam"),
    ],
)  # fmt: skip
def test_one_problem_is_one_line(change: str, line: str) -> None:
    (message,) = list_problems(change if change.startswith("base") else f'base = "painterly"\n{change}')
    assert message.startswith(line)
    assert len(message) < 400


def test_optimizer_without_a_kind_is_refused() -> None:
    assert list_problems(PLAIN.replace('kind = "adam"', "")) == ["optimizer.kind: is missing; give one of adam, sgd, lbfgs"]


def test_invalid_recipe_file_name_is_reported_under_name() -> None:
    assert list_problems('base = "painterly"', "a\x07") == [
        "name: 'a\\x07' is not a line of text; write 1 to 500 printable characters in quotes"
    ]


# The file as a whole


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'a = "\xe4"', "line 1, column 6: byte 0xe4 is not UTF-8 (it may be Latin-1); save it as UTF-8"),
        (b'a = 1\r\nb = 2\n# \xff', "line 3, column 3: byte 0xff is not UTF-8"),
        (codecs.BOM_UTF16_LE + "a = 1".encode("utf-16-le"), "the recipe is UTF-16; save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "a = 1".encode("utf-16-be"), "the recipe is UTF-16; save it as UTF-8"),
        (b"steps = 1\nsize =\n", "line 2, column 7: Invalid value; look for a text without quotes, or for a key"),
        (b"steps = 1\nname = painterly\n", "line 2, column 8: Invalid value; look for a text without quotes"),
        (b"steps = 1\nsteps = 2", "line 2, column 10: Cannot overwrite a value; look for a text without quotes, or "),
        (b"[style.layers]\nblock1_conv1 = 1\nblock1_conv1 = 1\n", "line 3, column 17: Cannot overwrite a value"),
        (b"[style]\n[style]\n", "line 2, column 7: Cannot declare ('style',) twice"),
        (b'name = """x\ny', "line 2, column 2: Unterminated string"),
        (b"name", "line 1, column 5: Expected '=' after a key"),
        (b"a = " + b"[" * 100_000, "its tables or lists are nested too deeply"),
        (b"a = " + b"9" * 100_000, "it has a number of thousands of digits; write a shorter one"),
        (b"#" * 1_000_001, "1000001 bytes are too many for a recipe, which has 1000000 at most; name another file"),
        (b"\0", "line 1, column 1: Invalid statement"),
        (b"[" + b"a" * 500 + b"]\n[" + b"a" * 500 + b"]", "line 2, column 502: Cannot declare ("),
    ],
)  # fmt: skip
def test_invalid_file_is_refused_in_one_line(data: bytes, line: str) -> None:
    (message,) = list_problems(data)
    assert message.startswith(line)
    assert len(message) < 250


def test_the_largest_file_is_read() -> None:
    text = PLAIN + "#" * (recipe_file.MAX_BYTES - len(PLAIN))
    assert parse(text) == parse(PLAIN)


def test_tables_nested_by_dots_do_no_harm() -> None:
    assert list_problems('base = "painterly"\n' + ".".join(["steps"] * 3000) + " = 1")[0].startswith(
        "steps: a table is not a whole"
    )


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_printable_lines(data: bytes) -> None:
    with pytest.raises(SettingsError) as caught:
        recipe_file.parse(data, "my")
    assert all(line.strip() and line.isprintable() for line in str(caught.value).split("\n"))


ANYTHING = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["adam", "sgd", "gram", "noise"])
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["weight", "kind", "layers", "x"]), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["base", *recipe_file._TOP_LEVEL_KEYS, "x"]), ANYTHING), st.booleans())
def test_any_values_give_a_recipe_or_problem_lines(tables: dict[str, Any], has_base: bool) -> None:
    import tomli_w

    try:
        text = tomli_w.dumps(({"base": "painterly"} if has_base else {}) | tables)
        tomllib.loads(text)
    except (UnicodeEncodeError, ValueError):  # not a text that TOML can hold
        return
    try:
        assert isinstance(parse(text), Recipe)
    except SettingsError as error:
        assert all(line.strip() and line.isprintable() for line in str(error).split("\n"))


# Files and names


@pytest.mark.parametrize(
    ("name", "is_file"),
    [
        ("my.toml", True),
        ("/a/My.TOML", True),
        ("s3://bucket/recipes/my.toml", True),
        ("https://host/my.toml?signature=1", True),
        ("painterly", False),
        ("toml", False),
        ("my.toml/x", False),
        ("https://host/my?file=x.toml", False),
        ("", False),
    ],
)
def test_recipe_file_is_recognized_by_its_suffix(name: str, is_file: bool) -> None:
    assert recipe_file.is_recipe_file(name) is is_file


def test_every_kind_has_an_example() -> None:
    assert {*recipe_file._EXAMPLES} == {
        Recipe,
        Method,
        ContentLoss,
        StyleLoss,
        TotalVariation,
        Pyramid,
        Plateau,
        *get_args(Optimizer),
    }


@pytest.mark.parametrize("example", recipe_file._EXAMPLES.values(), ids=lambda example: type(example).__name__)
def test_an_example_allows_every_choice_of_each_field(example: Any) -> None:
    for name, hint in get_type_hints(type(example)).items():
        for choice in get_args(hint) if get_origin(hint) is Literal else (False, True) if hint is bool else ():
            assert getattr(replace(example, **{name: choice}), name) == choice
