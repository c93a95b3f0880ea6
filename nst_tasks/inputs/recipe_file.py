"""Recipes as TOML files: parse bytes to a `Recipe`, reporting every problem at once, and write one as text.

The keys are the fields of `Recipe` and of its `Method`, with a table for each value that has fields of its own, so that a file
can express all that `core.method` can. With `base`, a file starts from a preset and lists only its changes.

This module does no I/O and does not import TensorFlow.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w

from nst_tasks.core.method import (
    LBFGS,
    SGD,
    Adam,
    ContentLoss,
    LayerWeights,
    Method,
    Optimizer,
    Plateau,
    Pyramid,
    StyleLoss,
    TotalVariation,
)
from nst_tasks.core.vgg_layers import layer_names
from nst_tasks.errors import SettingsError, redact
from nst_tasks.inputs.presets import DEFAULT, PRESETS
from nst_tasks.inputs.recipe import Recipe

MAX_BYTES = 1_000_000
MAX_TEXT_CHARACTERS = 500
"""Longest name, summary, source or `differs`, in characters."""

OPTIMIZER_KINDS: Mapping[str, type] = {"adam": Adam, "sgd": SGD, "lbfgs": LBFGS}
"""Optimizer class for each value of `kind` in the table `optimizer`."""


def is_recipe_file(recipe: str) -> bool:
    """Return whether a recipe is given as a file, a path or URI that ends in `.toml`, and not as a preset's name."""
    return redact(recipe).lower().endswith(".toml")


def to_tables(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as the nested tables of its file, without values that are None, since TOML has no null."""
    plain = _to_plain(recipe)
    method = plain.pop("method")
    return {**plain, **method}


def to_toml(recipe: Recipe) -> str:
    """Return the text of a recipe's file, which `parse` turns back into the same recipe."""
    return tomli_w.dumps(to_tables(recipe))


def check_size(size: int) -> None:
    """Refuse a file of more than `MAX_BYTES`.

    Raises:
        SettingsError: The file is larger.
    """
    if size > MAX_BYTES:
        raise SettingsError(f"{size} bytes are too many for a recipe, which has {MAX_BYTES} at most; name another file")


def parse(data: bytes, name: str) -> Recipe:
    """Return the recipe in a file's bytes.

    With `base`, a table in the file changes single keys of the base's table. Only a table of layers and an optimizer of another
    kind replace the base's table as a whole.

    Args:
        data: Content of the file.
        name: Name of a recipe that starts from a `base` and gives no name.

    Raises:
        SettingsError: The file is not a recipe; the message has one line for each problem, with its key or its line and column.
    """
    given = _load_toml(data)
    problems = []
    if "base" in given:
        base = given.pop("base")
        preset = PRESETS[DEFAULT]  # if the base is unknown, check the rest of the file against this
        if isinstance(base, str) and base in PRESETS:
            preset = PRESETS[base]
        else:
            problems.append(f"base: {_format_value(base)} is not a preset; {_suggest_name(base, PRESETS)}")
        given = _merge({**to_tables(preset), "name": name}, given)
    problems += _list_unknown_keys(given, ["base", *_TOP_LEVEL_KEYS], "")
    recipe_values, recipe_problems = _read_fields(Recipe, given, "")
    method_values, method_problems = _read_fields(Method, given, "")
    problems += recipe_problems + method_problems
    if problems:
        raise SettingsError("\n".join(problems))
    return Recipe(**recipe_values, method=Method(**method_values))


# Reading the file


def _load_toml(data: bytes) -> dict[str, Any]:
    check_size(len(data))
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
        raise SettingsError(f"{place}: {_shorten(reason)}; {remedy}") from error
    except RecursionError:
        raise SettingsError("its tables or lists are nested too deeply; a recipe has tables in tables at most") from None
    except ValueError as error:  # Python's limit on the digits of an integer
        raise SettingsError("it has a number of thousands of digits; write a shorter one") from error


def _merge(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `given` merged in, key by key; `parse` lists the tables that are replaced as a whole."""
    merged = dict(base)
    for key, value in given.items():
        base_value = base.get(key)
        if isinstance(value, dict) and isinstance(base_value, dict) and key != "layers":
            same_kind = key != "optimizer" or value.get("kind", base_value["kind"]) == base_value["kind"]
            merged[key] = _merge(base_value, value) if same_kind else value
        else:
            merged[key] = value
    return merged


# Tables and values. Problems are raised as SettingsError, a line each, and collected by the enclosing table.


def _read_fields(kind: type[Any], table: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], list[str]]:
    """Return a dataclass's fields read from a table, and the problems with them; `prefix` is the path of the table's keys."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in fields(kind):
        path = prefix + field.name
        if hints[field.name] is Method:
            continue  # in a file its fields are at the top level, beside the recipe's own
        if field.name in table:
            with _collect_problems(problems):
                value = _read_value(hints[field.name], table[field.name], path)
                _check_field(kind, field.name, value, path)
                values[field.name] = value
        elif field.default is MISSING:
            alternative = "" if prefix else f', or start from a preset by a line such as base = "{DEFAULT}"'
            problems.append(f"{path}: is missing; add it{alternative}")
    return values, problems


def _read_value(kind: Any, given: Any, path: str) -> Any:
    """Return a key's value in the type of its field.

    Raises:
        SettingsError: The value is of another type or out of range; one line for each problem.
    """
    if kind == Optimizer:
        return _read_optimizer(given, path)
    if kind == LayerWeights:
        return _read_layers(given, path)
    if NoneType in get_args(kind):
        (kind,) = set(get_args(kind)) - {NoneType}
    if is_dataclass(kind):
        return _read_dataclass(kind, given, path)  # type: ignore[arg-type]  # never an instance of one
    if get_origin(kind) is Literal:
        if given not in get_args(kind):
            raise SettingsError(f"{path}: {_format_value(given)} is not known; {_suggest_name(given, get_args(kind))}")
        return given
    if not _has_type(kind, given):
        raise SettingsError(f"{path}: {_format_value(given)} is not {_TYPE_DESCRIPTIONS[kind]}")
    return kind(given)


def _read_dataclass(kind: type[Any], given: Any, path: str) -> Any:
    given = _require_table(given, path)
    values, problems = _read_fields(kind, given, f"{path}.")
    problems = _list_unknown_keys(given, [field.name for field in fields(kind)], f"{path}.") + problems
    if problems:
        raise SettingsError("\n".join(problems))
    return kind(**values)  # refuses combinations that are not allowed


def _read_optimizer(given: Any, path: str) -> Any:
    given = _require_table(given, path)
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in OPTIMIZER_KINDS:
        fault = "is missing" if kind is None else f"{_format_value(kind)} is not known"
        raise SettingsError(f"{path}.kind: {fault}; {_suggest_name(kind, OPTIMIZER_KINDS)}")
    return _read_dataclass(OPTIMIZER_KINDS[kind], {key: value for key, value in given.items() if key != "kind"}, path)


def _read_layers(given: Any, path: str) -> LayerWeights:
    weights: dict[str, float] = {}
    problems: list[str] = []
    for layer, weight in _require_table(given, path).items():
        layer_path = f"{path}.{_format_key(layer)}"
        if not re.fullmatch(r"block[1-9]_conv[1-9]", layer):
            problems.append(f"{layer_path}: is not a layer's name; {_suggest_remedy(layer, layer_names('vgg19'))}")
            continue
        with _collect_problems(problems):
            weights[layer] = _read_value(float, weight, layer_path)
            _check_field(ContentLoss, "layers", ((layer, weights[layer]),), layer_path)
    if problems:
        raise SettingsError("\n".join(problems))
    return tuple(weights.items())


def _require_table(given: Any, path: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise SettingsError(
            f"{path}: {_format_value(given)} is not a table; write [{path}] on a line of its own and its keys below"
        )
    return given


def _list_unknown_keys(given: Iterable[str], known: list[str], prefix: str) -> list[str]:
    return [
        f"{prefix}{_format_key(key)}: is not known here; {_suggest_remedy(key, known)}" for key in given if key not in known
    ]


def _suggest_remedy(key: str, known: Iterable[str]) -> str:
    """Return a remedy for an unknown key of a table; the commonest mistake is a top-level key below a table's heading."""
    return "move it to the top, above the first table" if key in _TOP_LEVEL_KEYS else _suggest_name(key, known)


def _check_field(kind: type[Any], name: str, value: Any, path: str) -> None:
    """Refuse a value that is out of range regardless of the other fields.

    Checking each value alone reports all such problems at once, each with its own key.

    Raises:
        SettingsError: The value is out of range.
    """
    try:
        replace(_EXAMPLES[kind], **{name: value})
    except SettingsError as error:
        raise SettingsError(f"{path}: {str(error).partition(': ')[2]}") from error


@contextlib.contextmanager
def _collect_problems(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        problems += str(error).splitlines()


_TYPE_DESCRIPTIONS: Mapping[type, str] = {
    bool: "true or false; write one of them, without quotes",
    int: "a whole number; write one such as 40, without quotes and without a point",
    float: "a finite number; write one such as 0.5, without quotes",
    str: f"a line of text; write 1 to {MAX_TEXT_CHARACTERS} printable characters in quotes",
}


def _has_type(kind: type, given: object) -> bool:
    if isinstance(given, bool) or kind is bool:  # in Python, bool is a subclass of int
        return isinstance(given, bool) and kind is bool
    if kind is str:
        return isinstance(given, str) and 0 < len(given) <= MAX_TEXT_CHARACTERS and given.isprintable()
    if kind is int:
        return isinstance(given, int) and abs(given) <= sys.maxsize
    return isinstance(given, int | float) and abs(given) <= sys.float_info.max  # False for NaN too


_EXAMPLE_LAYERS = (("block1_conv1", 1.0),)
_EXAMPLE_METHOD = Method(
    ContentLoss(_EXAMPLE_LAYERS, 1.0), StyleLoss(_EXAMPLE_LAYERS, 1.0), TotalVariation(1.0), Adam(1.0), steps=1
)
_EXAMPLES: Mapping[type, Any] = {
    type(value): value
    for value in (
        Recipe("plain", "", "", "", 512, _EXAMPLE_METHOD),
        _EXAMPLE_METHOD,
        _EXAMPLE_METHOD.content,
        _EXAMPLE_METHOD.style,
        _EXAMPLE_METHOD.total_variation,
        Adam(1.0),
        SGD(1.0),
        LBFGS(),
        Pyramid(smallest=64, ratio=2.0, coarse_steps=1),
        Plateau(),
    )
}
"""An instance of each class in which any single field may take any value in its own range."""

_TOP_LEVEL_KEYS = [field.name for kind in (Recipe, Method) for field in fields(kind) if field.name != "method"]
"""Keys at the top level of a file, without `base`."""


# Text of files and messages


def _to_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return dict(value)  # layers with their weights
    if not is_dataclass(value):
        return value
    kinds = [name for name, optimizer in OPTIMIZER_KINDS.items() if isinstance(value, optimizer)]
    inside = {field.name: getattr(value, field.name) for field in fields(value)}
    return ({"kind": kinds[0]} if kinds else {}) | {name: _to_plain(item) for name, item in inside.items() if item is not None}


def _suggest_name(word: object, names: Iterable[str]) -> str:
    names = list(names)
    similar = difflib.get_close_matches(word.lower()[:MAX_TEXT_CHARACTERS], names, n=1) if isinstance(word, str) else []
    return f"did you mean {similar[0]}?" if similar else f"give one of {', '.join(names)}"


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) else _shorten(repr(key))


def _format_value(value: object) -> str:
    """Return a value as a message shows it: short, and close to its form in the file."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > sys.maxsize:
        return "a number beyond 64 bits"
    return _shorten(repr(value) if isinstance(value, str) else str(value))


def _shorten(line: str) -> str:
    return line if len(line) <= 80 else line[:79] + "…"
