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

from nst_tasks.core.architecture import layer_names
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
from nst_tasks.errors import SettingsError, redact
from nst_tasks.presets import DEFAULT, PRESETS
from nst_tasks.recipes import Recipe

MAX_BYTES = 1_000_000
MAX_TEXT = 500
"""Longest name, summary, source or `differs`, in characters."""

OPTIMIZERS: Mapping[str, type] = {"adam": Adam, "sgd": SGD, "lbfgs": LBFGS}
"""Optimizer class for each value of `kind` in the table `optimizer`."""


def is_file(recipe: str) -> bool:
    """Return whether a recipe is given as a file, a path or URI that ends in `.toml`, and not as a preset's name."""
    return redact(recipe).lower().endswith(".toml")


def document(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as the nested tables of its file, without values that are None, since TOML has no null."""
    plain = _plain(recipe)
    method = plain.pop("method")
    return {**plain, **method}


def text(recipe: Recipe) -> str:
    """Return the text of a recipe's file, which `parse` turns back into the same recipe."""
    return tomli_w.dumps(document(recipe))


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
    given = _tables(data)
    problems = []
    if "base" in given:
        base = given.pop("base")
        preset = PRESETS[DEFAULT]  # if the base is unknown, check the rest of the file against this
        if isinstance(base, str) and base in PRESETS:
            preset = PRESETS[base]
        else:
            problems.append(f"base: {_shown(base)} is not a preset; {_nearest(base, PRESETS)}")
        given = _over({**document(preset), "name": name}, given)
    problems += _unknown(given, ["base", *_NAMES], "")
    own, found = _values(Recipe, given, "")
    values, more = _values(Method, given, "")
    problems += found + more
    if problems:
        raise SettingsError("\n".join(problems))
    return Recipe(**own, method=Method(**values))


# Reading the file


def _tables(data: bytes) -> dict[str, Any]:
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
        raise SettingsError(f"{place}: {_brief(reason)}; {remedy}") from error
    except RecursionError:
        raise SettingsError("its tables or lists are nested too deeply; a recipe has tables in tables at most") from None
    except ValueError as error:  # Python's limit on the digits of an integer
        raise SettingsError("it has a number of thousands of digits; write a shorter one") from error


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `given` merged in, key by key; `parse` lists the tables that are replaced as a whole."""
    merged = dict(base)
    for key, value in given.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and key != "layers":
            same_kind = key != "optimizer" or value.get("kind", below["kind"]) == below["kind"]
            merged[key] = _over(below, value) if same_kind else value
        else:
            merged[key] = value
    return merged


# Tables and values. Problems are raised as SettingsError, a line each, and collected by the enclosing table.


def _values(kind: type[Any], given: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], list[str]]:
    """Return a dataclass's fields read from a table, and the problems with them; `prefix` is the path of the table's keys."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in fields(kind):
        at = prefix + field.name
        if hints[field.name] is Method:
            continue  # in a file its fields are at the top level, beside the recipe's own
        if field.name in given:
            with _gathered(problems):
                value = _value(hints[field.name], given[field.name], at)
                _check_alone(kind, field.name, value, at)
                values[field.name] = value
        elif field.default is MISSING:
            otherwise = "" if prefix else f', or start from a preset by a line such as base = "{DEFAULT}"'
            problems.append(f"{at}: is missing; add it{otherwise}")
    return values, problems


def _value(kind: Any, given: Any, at: str) -> Any:
    """Return a key's value in the type of its field.

    Raises:
        SettingsError: The value is of another type or out of range; one line for each problem.
    """
    if kind == Optimizer:
        return _optimizer(given, at)
    if kind == LayerWeights:
        return _layers(given, at)
    if NoneType in get_args(kind):
        (kind,) = set(get_args(kind)) - {NoneType}
    if is_dataclass(kind):
        return _table(kind, given, at)  # type: ignore[arg-type]  # never an instance of one
    if get_origin(kind) is Literal:
        if given not in get_args(kind):
            raise SettingsError(f"{at}: {_shown(given)} is not known; {_nearest(given, get_args(kind))}")
        return given
    if not _is(kind, given):
        raise SettingsError(f"{at}: {_shown(given)} is not {_MEANING[kind]}")
    return kind(given)


def _table(kind: type[Any], given: Any, at: str) -> Any:
    given = _as_table(given, at)
    values, problems = _values(kind, given, f"{at}.")
    problems = _unknown(given, [field.name for field in fields(kind)], f"{at}.") + problems
    if problems:
        raise SettingsError("\n".join(problems))
    return kind(**values)  # refuses combinations that are not allowed


def _optimizer(given: Any, at: str) -> Any:
    given = _as_table(given, at)
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in OPTIMIZERS:
        fault = "is missing" if kind is None else f"{_shown(kind)} is not known"
        raise SettingsError(f"{at}.kind: {fault}; {_nearest(kind, OPTIMIZERS)}")
    return _table(OPTIMIZERS[kind], {key: value for key, value in given.items() if key != "kind"}, at)


def _layers(given: Any, at: str) -> LayerWeights:
    found: dict[str, float] = {}
    problems: list[str] = []
    for layer, weight in _as_table(given, at).items():
        place = f"{at}.{_key(layer)}"
        if not re.fullmatch(r"block[1-9]_conv[1-9]", layer):
            problems.append(f"{place}: is not a layer's name; {_remedy(layer, layer_names('vgg19'))}")
            continue
        with _gathered(problems):
            found[layer] = _value(float, weight, place)
            _check_alone(ContentLoss, "layers", ((layer, found[layer]),), place)
    if problems:
        raise SettingsError("\n".join(problems))
    return tuple(found.items())


def _as_table(given: Any, at: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise SettingsError(f"{at}: {_shown(given)} is not a table; write [{at}] on a line of its own and its keys below")
    return given


def _unknown(given: Iterable[str], known: list[str], prefix: str) -> list[str]:
    return [f"{prefix}{_key(key)}: is not known here; {_remedy(key, known)}" for key in given if key not in known]


def _remedy(key: str, known: Iterable[str]) -> str:
    """Return a remedy for an unknown key of a table; the commonest mistake is a top-level key below a table's heading."""
    return "move it to the top, above the first table" if key in _NAMES else _nearest(key, known)


def _check_alone(kind: type[Any], name: str, value: Any, at: str) -> None:
    """Refuse a value that is out of range regardless of the other fields.

    Checking each value alone reports all such problems at once, each with its own key.

    Raises:
        SettingsError: The value is out of range.
    """
    try:
        replace(_VALID[kind], **{name: value})
    except SettingsError as error:
        raise SettingsError(f"{at}: {str(error).partition(': ')[2]}") from error


@contextlib.contextmanager
def _gathered(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        problems += str(error).splitlines()


_MEANING: Mapping[type, str] = {
    bool: "true or false; write one of them, without quotes",
    int: "a whole number; write one such as 40, without quotes and without a point",
    float: "a finite number; write one such as 0.5, without quotes",
    str: f"a line of text; write 1 to {MAX_TEXT} printable characters in quotes",
}


def _is(kind: type, given: object) -> bool:
    if isinstance(given, bool) or kind is bool:  # in Python, bool is a subclass of int
        return isinstance(given, bool) and kind is bool
    if kind is str:
        return isinstance(given, str) and 0 < len(given) <= MAX_TEXT and given.isprintable()
    if kind is int:
        return isinstance(given, int) and abs(given) <= sys.maxsize
    return isinstance(given, int | float) and abs(given) <= sys.float_info.max  # False for NaN too


_LAYERS = (("block1_conv1", 1.0),)
_METHOD = Method(ContentLoss(_LAYERS, 1.0), StyleLoss(_LAYERS, 1.0), TotalVariation(1.0), Adam(1.0), steps=1)
_VALID: Mapping[type, Any] = {
    type(value): value
    for value in (
        Recipe("plain", "", "", "", 512, _METHOD),
        _METHOD,
        _METHOD.content,
        _METHOD.style,
        _METHOD.total_variation,
        Adam(1.0),
        SGD(1.0),
        LBFGS(),
        Pyramid(smallest=64, ratio=2.0, coarse_steps=1),
        Plateau(),
    )
}
"""An instance of each class in which any single field may take any value in its own range."""

_NAMES = [field.name for kind in (Recipe, Method) for field in fields(kind) if field.name != "method"]
"""Keys at the top level of a file, without `base`."""


# Text of files and messages


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return dict(value)  # layers with their weights
    if not is_dataclass(value):
        return value
    kinds = [name for name, optimizer in OPTIMIZERS.items() if isinstance(value, optimizer)]
    inside = {field.name: getattr(value, field.name) for field in fields(value)}
    return ({"kind": kinds[0]} if kinds else {}) | {name: _plain(item) for name, item in inside.items() if item is not None}


def _nearest(word: object, names: Iterable[str]) -> str:
    names = list(names)
    similar = difflib.get_close_matches(word.lower()[:MAX_TEXT], names, n=1) if isinstance(word, str) else []
    return f"did you mean {similar[0]}?" if similar else f"give one of {', '.join(names)}"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) else _brief(repr(key))


def _shown(value: object) -> str:
    """Return a value as a message shows it: short, and close to its form in the file."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > sys.maxsize:
        return "a number beyond 64 bits"
    return _brief(repr(value) if isinstance(value, str) else str(value))


def _brief(line: str) -> str:
    return line if len(line) <= 80 else line[:79] + "…"
