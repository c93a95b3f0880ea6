"""Names and docstrings of the code read as plain technical English."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for folder in ("flows", "nst_tasks", "manifests", "bench") for path in (ROOT / folder).rglob("*.py"))

PARTICIPLE = re.compile(r"_*([a-z]+(ed|ing)|told|taken|begun|patiently)(_(out|off|in|up|on|from|to|by))?")
"""Names that say a state, such as `_carried_out`, where a function needs a verb."""

UNCLEAR_START = re.compile(r"(^|[.] )(What|Who|Whether|Of)\b")
"""First words of a sentence that leaves its subject to the reader."""

UNUSUAL_WORDS = re.compile(r"\b(told|whoever|nobody|somebody|likewise|save for|the wish to|heeds?|as befits)\b", re.IGNORECASE)


def list_definitions(source: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield the name and node of a module's functions, methods and classes, and the module itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            yield getattr(node, "name", ""), node


def find_participles(source: str) -> list[str]:
    """Return the functions whose names are participles; properties are values and may be."""
    return [
        name
        for name, node in list_definitions(source)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(isinstance(decorator, ast.Name) and "property" in decorator.id for decorator in node.decorator_list)
        and PARTICIPLE.fullmatch(name)
    ]


def find_unclear_docstrings(source: str) -> list[str]:
    """Return the docstrings with a sentence that starts without its subject, or with an unusual word."""
    docstrings = (ast.get_docstring(node) or "" for _, node in list_definitions(source))
    return [text for text in docstrings if UNCLEAR_START.search(text) or UNUSUAL_WORDS.search(text)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_verbs_and_docstrings_clear(path: Path) -> None:
    source = path.read_text()
    assert find_participles(source) == []
    assert find_unclear_docstrings(source) == []


def test_unclear_names_and_docstrings_are_found() -> None:
    assert find_participles("def _carried_out(): ...\ndef told(): ...\ndef load_resized(): ...") == ["_carried_out", "told"]
    assert find_unclear_docstrings('def f():\n    """Whether it is so."""\ndef g():\n    """Return it."""') == [
        "Whether it is so."
    ]


def test_few_modules_lie_beside_the_packages() -> None:
    assert len([path for path in (ROOT / "nst_tasks").glob("*.py") if path.name != "__init__.py"]) <= 5
