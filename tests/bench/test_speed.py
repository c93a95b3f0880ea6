"""The suite of `speed`: its commands exist, and rows measured again replace only themselves."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path

import pytest

from bench import speed
from bench.page import format_speed
from bench.results import describe_machine, get_commit, slugify
from bench.row import Row


@pytest.mark.parametrize(("command", "quick"), speed.SUITE)
def test_suite_names_commands_with_their_options(command: str, quick: str | None) -> None:
    module, name, *options = f"{command} {quick or ''}".split()
    parameters = inspect.signature(getattr(importlib.import_module(f"bench.rows.{module}"), name)).parameters
    assert {option.removeprefix("--") for option in options if option.startswith("--")} <= set(parameters)


def test_failed_row_is_not_measured_and_names_no_path(tmp_path: Path) -> None:
    (failure,) = speed.measure_rows(["intake", "nothing", "--size", "8", "--python", str(tmp_path / "none")], tmp_path)
    assert failure.work == "intake nothing --size 8"
    assert failure.verdict == "not measured"
    assert failure.detail == "not measured: exit code 2"
    assert str(tmp_path) not in json.dumps(failure.as_plain())


def test_rows_measured_again_replace_only_themselves(tmp_path: Path) -> None:
    suite = (("a b", None), ("intake nothing", None), ("c d", None))
    machine, file = describe_machine(), tmp_path / "speed.json"
    old = Row("old", "", None, 1.0, 1.0, 1.0, "s", "").as_plain()
    earlier = [{"date": "2026-01-01", "commit": "abc", "command": command, "row": old} for command, _ in suite]
    results = json.dumps({"quick": False, "machine": machine, "rows": earlier})
    (tmp_path / f"speed-2026-01-01-{slugify(machine)}.json").write_text(results)
    speed.measure_suite(suite, only="intake", quick=False, keep=file, torch=Path(sys.executable))
    rows = json.loads(file.read_text())["rows"]
    assert [row["command"] for row in rows] == ["a b", "intake nothing", "c d"]
    assert [row["date"] == "2026-01-01" for row in rows] == [True, False, True]
    assert rows[1]["row"]["verdict"] == "not measured" and rows[1]["commit"] == get_commit()
    assert "Measured on 2026-01-01, " in format_speed(file)


def test_rows_of_other_versions_are_not_reused(tmp_path: Path) -> None:
    machine = describe_machine()
    row = {"date": "2026-01-01", "commit": "abc", "command": "a b", "row": {}}
    results = json.dumps({"quick": False, "machine": machine, "rows": [row]})
    (tmp_path / f"speed-2026-01-01-{slugify(machine)}.json").write_text(results)
    assert speed.load_earlier_rows(machine, tmp_path) == {"a b": [row]}
    assert speed.load_earlier_rows({**machine, "versions": {"tensorflow": "1.0"}}, tmp_path) == {}
