"""Command-line options made from a model: one field is one option, with its type, default and help."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from click.testing import Result
from pydantic import Field, ValidationError
from typer.testing import CliRunner

from flows.cli import app
from flows.cli_options import options_of
from nst_tasks.inputs.options import ResultOptions, RunOptions, SweepOptions


class StrokeOptions(ResultOptions):
    """The options of a result, and one more field."""

    stroke_width: int = Field(3, description="Width of a stroke in pixels.")


def invoke(*arguments: str) -> Result:
    sample = typer.Typer()

    @sample.command()
    @options_of(StrokeOptions)
    def draw(
        place: Annotated[str, typer.Argument()],
        *,
        options: StrokeOptions,
        twice: Annotated[bool, typer.Option("--twice")] = False,
    ) -> None:
        typer.echo(f"{place} {options.stroke_width} {options.size} {options.upscale} {twice}")

    return CliRunner().invoke(sample, arguments, env={"COLUMNS": "160"})


def test_new_field_is_an_option_without_another_edit() -> None:
    assert invoke("x").stdout == "x 3 None False False\n"
    assert invoke("x", "--stroke-width", "7", "--size", "96", "--upscale", "--twice").stdout == "x 7 96 True True\n"
    text = invoke("--help").stdout
    assert "--stroke-width" in text
    assert "Width of a stroke in pixels." in text


def test_option_of_another_type_is_refused_with_its_name() -> None:
    result = invoke("x", "--stroke-width", "wide")
    assert result.exit_code == 2
    assert "--stroke-width" in result.stderr


def test_flag_has_no_negative_form() -> None:
    assert invoke("x", "--no-upscale").exit_code == 2


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("run", RunOptions),
        ("nightly", SweepOptions),
        ("serve", SweepOptions),
        ("deploy", SweepOptions),
        ("plan", ResultOptions),
    ],
)
def test_command_has_every_field_of_its_model(command: str, model: type[ResultOptions]) -> None:
    parameters = {parameter.name: parameter for parameter in typer.main.get_command(app).commands[command].params}  # type: ignore[attr-defined]
    for name, field in model.model_fields.items():
        assert parameters[name].help == field.description
        assert parameters[name].default == field.default


def test_models_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        RunOptions(sise=9)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        RunOptions().size = 9  # type: ignore[misc]
