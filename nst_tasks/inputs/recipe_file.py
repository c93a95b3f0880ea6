"""Recipes as TOML files: parse bytes to a `Recipe`, reporting every problem at once, and write one as text.

The keys are the fields of `Recipe` and of its `Method`, with a table for each value that has fields of its own, so that a file
can express all that `core.method` can. With `base`, a file starts from a preset and lists only its changes.

This module does no I/O and does not import TensorFlow.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import tomli_w

from nst_tasks.core.method import LBFGS, SGD, Adam, ContentLoss, LayerWeights, Method, Optimizer, Plateau, Pyramid
from nst_tasks.core.vgg_layers import layer_names
from nst_tasks.errors import SettingsError, redact, suggest_name
from nst_tasks.inputs.presets import DEFAULT, PRESETS, TF_TUTORIAL
from nst_tasks.inputs.recipe import Recipe
from nst_tasks.inputs.toml_text import decode_toml, shorten

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
    check_size(len(data))
    given = decode_toml(data)
    problems = []
    if "base" in given:
        base = given.pop("base")
        preset = PRESETS[DEFAULT]  # if the base is unknown, check the rest of the file against this
        if isinstance(base, str) and base in PRESETS:
            preset = PRESETS[base]
        else:
            problems.append(f"base: {_format_value(base)} is not a preset; {suggest_name(base, PRESETS)}")
        given = _merge({**to_tables(preset), "name": name}, given)
    try:
        values = _read_table(given, "", _TOP_LEVEL_KEYS, ["base", *_TOP_LEVEL_KEYS])
    except SettingsError as error:
        problems.append(str(error))
    if problems:
        raise SettingsError("\n".join(problems))
    own = {name: values.pop(name) for name in _list_keys(Recipe)}
    return Recipe(**own, method=Method(**values))


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


# Tables and values. Each function raises a SettingsError with a line for each problem; a table collects those of all its keys.


class _Key(NamedTuple):
    """Key of a table: a field of a dataclass, with the field's type."""

    owner: type[Any]
    field: Field[Any]
    kind: Any


@functools.cache
def _list_keys(*owners: type[Any]) -> Mapping[str, _Key]:
    """Return the fields of dataclasses as keys; in a file, the fields of `method` are beside the recipe's own."""
    return {
        field.name: _Key(owner, field, kinds[field.name])
        for owner, kinds in ((owner, get_type_hints(owner)) for owner in owners)
        for field in fields(owner)
        if field.name != "method"
    }


_TOP_LEVEL_KEYS = _list_keys(Recipe, Method)
"""Keys at the top level of a file, without `base`."""


def _read_table(
    given: Mapping[str, Any],
    prefix: str,
    keys: Mapping[str, _Key | None],
    known: Iterable[str],
    fault: str = "is not known here",
) -> dict[str, Any]:
    """Return the values of a table's keys.

    Args:
        prefix: Path of the table, with a point at its end.
        keys: Keys by name. A name is unknown if it is missing here or has None.
        known: Names to suggest in place of an unknown one.
        fault: What is wrong with an unknown name.
    """
    values: dict[str, Any] = {}
    problems = []
    for name in [*(name for name in given if name not in keys), *keys]:
        key, path = keys.get(name), prefix + _format_key(name)
        try:
            if key is None:
                raise SettingsError(f"{path}: {fault}; {_suggest_remedy(name, known)}")
            if name in given:
                values[name] = _read_value(key.kind, given[name], path)
                _check_range(key, values[name], path)
            elif key.field.default is MISSING:
                alternative = "" if prefix else f', or start from a preset by a line such as base = "{DEFAULT}"'
                raise SettingsError(f"{path}: is missing; add it{alternative}")
        except SettingsError as error:
            problems.append(str(error))
    if problems:
        raise SettingsError("\n".join(problems))
    return values


def _read_value(kind: Any, given: Any, path: str) -> Any:
    """Return a value in the type of its field."""
    if NoneType in get_args(kind):
        (kind,) = set(get_args(kind)) - {NoneType}
    if get_origin(kind) is Literal:
        return _read_choice(given, get_args(kind), path)
    if kind in _TYPE_DESCRIPTIONS:
        if not _has_type(kind, given):
            raise SettingsError(f"{path}: {_format_value(given)} is not {_TYPE_DESCRIPTIONS[kind]}")
        return kind(given)
    if not isinstance(given, dict):
        remedy = f"write [{path}] on a line of its own and its keys below"
        raise SettingsError(f"{path}: {_format_value(given)} is not a table; {remedy}")
    if kind == LayerWeights:
        weight = _list_keys(ContentLoss)["weight"]
        layers = {name: weight if re.fullmatch(r"block[1-9]_conv[1-9]", name) else None for name in given}
        return tuple(_read_table(given, f"{path}.", layers, layer_names("vgg19"), "is not a layer's name").items())
    if kind == Optimizer:
        kind = OPTIMIZER_KINDS[_read_choice(given.get("kind"), [*OPTIMIZER_KINDS], f"{path}.kind")]
        given = {name: value for name, value in given.items() if name != "kind"}
    keys = _list_keys(kind)
    return kind(**_read_table(given, f"{path}.", keys, keys))  # refuses values that do not go together


def _read_choice(given: Any, choices: Sequence[str], path: str) -> Any:
    if given in choices:
        return given
    # only an optimizer's kind can be None, if it is missing, since TOML has no null
    fault = "is missing" if given is None else f"{_format_value(given)} is not known"
    raise SettingsError(f"{path}: {fault}; {suggest_name(given, choices)}")


_TYPE_DESCRIPTIONS: Mapping[Any, str] = {
    bool: "true or false; write one of them, without quotes",
    int: "a whole number; write one such as 40, without quotes and without a point",
    float: "a finite number; write one such as 0.5, without quotes",
    str: f"a line of text; write 1 to {MAX_TEXT_CHARACTERS} printable characters in quotes",
}


def _has_type(kind: type, given: Any) -> bool:
    if kind is str:
        return type(given) is str and 0 < len(given) <= MAX_TEXT_CHARACTERS and given.isprintable()
    if kind is float:
        return type(given) in (int, float) and abs(given) <= sys.float_info.max  # False for NaN too
    if kind is int:
        return type(given) is int and abs(given) <= sys.maxsize  # `isinstance` would accept a bool
    return type(given) is bool


def _check_range(key: _Key, value: Any, path: str) -> None:
    """Refuse a value that is out of range regardless of the other keys, so that all such values are reported at once."""
    try:
        replace(_EXAMPLES[key.owner], **{key.field.name: value})
    except SettingsError as error:
        raise SettingsError(f"{path}: {str(error).partition(': ')[2]}") from error


_METHOD = replace(TF_TUTORIAL.method, pyramid=Pyramid(smallest=64, ratio=2.0, coarse_steps=1), plateau=Plateau())
_EXAMPLES: Mapping[type, Any] = {
    type(example): example
    for example in (TF_TUTORIAL, _METHOD, *vars(_METHOD).values(), SGD(1.0), LBFGS())
    if is_dataclass(example)
}
"""An instance of each class in which any single field may take any value in its own range, since no choice limits another."""


# Text of files and messages


def _to_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return dict(value)  # layers with their weights
    if not is_dataclass(value):
        return value
    kinds = [name for name, optimizer in OPTIMIZER_KINDS.items() if isinstance(value, optimizer)]
    inside = {field.name: getattr(value, field.name) for field in fields(value)}
    return ({"kind": kinds[0]} if kinds else {}) | {name: _to_plain(item) for name, item in inside.items() if item is not None}


def _suggest_remedy(key: str, known: Iterable[str]) -> str:
    """Return a remedy for an unknown key of a table; the commonest mistake is a top-level key below a table's heading."""
    return "move it to the top, above the first table" if key in _TOP_LEVEL_KEYS else suggest_name(key, known)


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) else shorten(repr(key))


def _format_value(value: object) -> str:
    """Return a value as a message shows it: short, and close to its form in the file."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > sys.maxsize:
        return "a number beyond 64 bits"
    return shorten(repr(value) if isinstance(value, str) else str(value))
