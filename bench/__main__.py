"""Start a benchmark by its name, or list all of them.

    python -m bench
    python -m bench speed --only overhead
    python -m bench rows.step keras --size 256

A benchmark is a module below this folder with a function `main`, which takes the arguments after the name. Modules are listed
from their source, without importing them.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent


def list_benchmarks() -> dict[str, str]:
    """Return the names of the benchmarks, each with the first line of its docstring."""
    benchmarks = {}
    for path in sorted(FOLDER.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        module = ast.parse(path.read_text())
        if path != Path(__file__) and any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            name = ".".join(path.relative_to(FOLDER).with_suffix("").parts)
            benchmarks[name] = (ast.get_docstring(module) or "").partition("\n")[0]
    return benchmarks


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark that the first argument names; without arguments, list all. Return the exit code."""
    benchmarks = list_benchmarks()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m bench NAME [options]\n")
        width = max(map(len, benchmarks))
        for name, summary in benchmarks.items():
            print(f"  {name:{width}}  {summary}")
        return 0
    name, *rest = arguments
    if name not in benchmarks:
        print(f"There is no benchmark {name!r}; python -m bench lists them.", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
    try:
        module = importlib.import_module(f"bench.{name}")
    except ModuleNotFoundError as error:
        print(f"{name} needs {error.name}; add it with: pip install 'nst[bench]'", file=sys.stderr)
        return 2
    module.main(rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
