"""Documentation cannot drift: whatever a user can say or read, README names."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import typer

from flows import server
from flows.cli import app
from nst_tasks import history, manifest, outcome, presets, settings, weights
from nst_tasks.core import flags, method

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
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

    known = {option for command in COMMANDS.values() for p in command.params for option in (*p.opts, *p.secondary_opts)}
    others = {"--build-arg", "--gpus", "--help", "--resources", "--user"}  # docker's, Dask's, and typer's own
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - others <= known


@pytest.mark.parametrize("name", [*manifest.COLUMNS, *presets.PRESETS, *weights.BACKBONES])
def test_every_column_recipe_and_backbone_is_documented(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("name", flags.FLAGS)
def test_every_flag_is_documented(name: str) -> None:
    assert f"| `{name}` |" in README


def test_the_summarys_columns_are_documented() -> None:
    assert f"`{', '.join(outcome.SUMMARY_COLUMNS)}`" in " ".join(README.split())


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_recipe_is_described_in_detail(name: str) -> None:
    assert f"| `{name}` |" in RECIPES


def test_every_key_of_a_recipe_file_is_documented() -> None:
    values = (
        method.Method, method.ContentLoss, method.StyleLoss, method.TotalVariation, method.Adam, method.SGD, method.LBFGS,
        method.Pyramid,
    )  # fmt: skip
    keys = {field.name for value in values for field in fields(value)} - {"content", "style"}
    assert [key for key in sorted(keys) if f"`{key}`" not in RECIPES] == []


@pytest.mark.parametrize("field", sorted(settings.VARIABLES))
def test_every_setting_is_documented_with_its_default(field: str) -> None:
    assert f"| `NST_{field.upper()}` | {getattr(settings.Settings, field):g} |" in README


@pytest.mark.parametrize("field", [*settings.TEXTS, settings.ROOTS])
def test_every_text_setting_is_documented_with_its_default(field: str) -> None:
    default = getattr(settings.Settings, field)
    assert f"| `NST_{field.upper()}` | {f'`{default}`' if default else 'none'} |" in README


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


def test_the_wheel_holds_every_module_and_every_file_that_code_reads() -> None:
    import tomllib

    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = {path for folder, patterns in named["package-data"].items() for p in patterns for path in (ROOT / folder).glob(p)}
    top = {folder.partition(".")[0] for folder in named["packages"]}
    files = {path for folder in top for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path for path in files if path.suffix != ".py"} == data
    modules = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in files if path.suffix == ".py"}
    assert modules == {*named["packages"]}


def test_every_setting_of_prefect_that_is_shipped_or_told_of_exists() -> None:
    import re

    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    files = ["README.md", ".env.example", "Dockerfile", "flows/prefect-server.env", *sorted(ROOT.glob("docs/*.md"))]
    told = {name for file in files for name in re.findall(r"\bPREFECT_\w+", (ROOT / file).read_text())} | {*server.SETTINGS}
    assert "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE" in told
    assert told <= {*_get_settings_fields(Settings)}  # Prefect ignores what it does not know


def test_every_test_that_shows_a_fault_exists() -> None:
    import re

    table = (ROOT / "docs" / "faults.md").read_text().partition("## Faults")[2]
    rows = [row for row in table.splitlines() if row.startswith("| ")][1:]
    assert rows
    for row in rows:
        shown_by = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert shown_by, f"shown by no test: {row}"
        for file, name in shown_by:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_every_class_of_errors_that_decides_has_a_row() -> None:
    from nst_tasks import errors

    faults = (ROOT / "docs" / "faults.md").read_text()
    deciding = {c.__name__ for c in vars(errors).values() if isinstance(c, type) and errors.NstError in c.__bases__}
    for name in deciding | {"StorageUnavailable", "StorageUnusable"}:
        assert f"| `{name}` |" in faults
