"""One command starts every benchmark: `python -m bench NAME`."""

from __future__ import annotations

import ast
import sys

import pytest

from bench.__main__ import FOLDER, list_benchmarks, main

BENCHMARKS = list_benchmarks()


def test_benchmarks_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == [*BENCHMARKS]
    assert {"speed", "growth", "profiles", "batches", "quality", "scale", "ours", "rows.step", "peers.keras_example"} <= {
        *BENCHMARKS
    }
    assert [line for line in lines if not line.endswith(".")] == []


def test_unknown_name_gets_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sped", "page", "rows", "__main__"):
        assert main([name]) == 2
        assert capsys.readouterr().err == f"There is no benchmark {name!r}; python -m bench lists them.\n"


def test_missing_extra_is_named_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "bench.growth", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["growth", "--quick"]) == 2
    assert capsys.readouterr().err == "growth needs matplotlib; add it with: pip install 'nst[bench]'\n"


def test_arguments_after_the_name_reach_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["speed", "--quick"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: python -m bench speed ")
    assert "--quick needs --keep FILE" in error


def test_commands_of_rows_have_usage_lines_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["rows.intake", "large", "--help"])
    assert "Usage: python -m bench rows.intake large" in capsys.readouterr().out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_documents_its_command_and_has_no_other(name: str) -> None:
    text = (FOLDER / f"{name.replace('.', '/')}.py").read_text()
    assert f"python -m bench {name}" in (ast.get_docstring(ast.parse(text)) or "")
    assert "__main__" not in text
