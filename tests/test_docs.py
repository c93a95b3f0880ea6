"""Documentation cannot drift: whatever a user can say or read, README names."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from flows.cli import app
from nst_tasks import history, manifest, recipes, settings, weights

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert f"`nst {name}" in README


@pytest.mark.parametrize(
    "option", sorted(option for p in COMMANDS["run"].params for option in p.opts if option.startswith("--"))
)
def test_every_option_of_run_is_documented(option: str) -> None:
    assert f"`{option}" in README


def test_every_option_that_readme_names_exists() -> None:
    import re

    known = {option for command in COMMANDS.values() for p in command.params for option in p.opts}
    others = {"--build-arg", "--gpus", "--help"}  # docker's, and typer's own
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - others <= known


@pytest.mark.parametrize("name", [*manifest.COLUMNS, *recipes.PRESETS, *weights.BACKBONES])
def test_every_column_recipe_and_backbone_is_documented(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("field", sorted(settings.VARIABLES))
def test_every_setting_is_documented_with_its_default(field: str) -> None:
    assert f"| `NST_{field.upper()}` | {getattr(settings.Settings, field):g} |" in README


def test_the_historys_columns_are_documented() -> None:
    assert f"`{', '.join(history.COLUMNS)}`" in README


def test_what_readme_shows_and_links_to_is_there() -> None:
    import re

    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_version_is_one() -> None:
    import tomllib

    from nst_tasks import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
