"""Profiles: phases are functions of nst, a stack has one phase, and operations are counted by kind."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from bench import phases, profiles
from bench.row import list_precisions


def test_phases_are_functions_of_nst() -> None:
    for _, functions in phases.PHASES:
        for function in functions:
            module, _, name = function.rpartition(".")
            assert callable(getattr(importlib.import_module(module), name)), function


def test_phase_is_that_of_the_innermost_function() -> None:
    outer_name = f"{__name__}.test_phase_is_that_of_the_innermost_function"

    def inner(names: dict[str, str]) -> str | None:
        return phases.find_phase(sys._getframe(), names)

    assert inner({outer_name: "outer", f"{__name__}.inner": "inner"}) == "inner"
    assert inner({outer_name: "outer"}) == "outer"
    assert inner({}) is None


def test_sampled_command_writes_seconds_of_its_phases(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        phases.main([str(tmp_path / "phases.json"), "recipes", "--json"])
    sample = json.loads((tmp_path / "phases.json").read_text())
    assert sample["began"] < sample["ended"]
    assert {*sample["phases"]} <= {*phases.PRIORITY, phases.REST}
    assert sum(sample["phases"].values()) <= sample["ended"] - sample["began"]


def test_profile_of_a_step_sees_the_network() -> None:
    for kind in profiles.profile_step(size=48, steps=1)[:4]:
        assert all(kind[precision] > 0.0 for precision in list_precisions()), kind
