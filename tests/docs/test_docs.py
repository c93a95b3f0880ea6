"""Documentation cannot drift: README and docs name every command, option, column, setting, recipe, field and flag."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import typer

from docs import settings as settings_pages
from flows import prefect_server
from flows.cli import app
from nst_tasks.core import method
from nst_tasks.core.flags import FLAGS
from nst_tasks.inputs import presets, settings, weights
from nst_tasks.inputs.columns import COLUMNS
from nst_tasks.outputs import loss_history, outcome
from nst_tasks.outputs.report import SUMMARY_COLUMNS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CLI, MANIFEST, OUTPUT, CONFIGURATION, RECIPES = (
    (ROOT / "docs" / f"{page}.md").read_text() for page in ("cli", "manifest", "output", "configuration", "recipes")
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert f"| `nst {name}" in README
    assert f"\n## `nst {name}`\n" in CLI


@pytest.mark.parametrize(
    ("name", "option"),
    sorted(
        (name, option)
        for name, command in COMMANDS.items()
        for p in command.params
        for option in (*p.opts, *p.secondary_opts)
        if option.startswith("-")
    ),
)
def test_every_option_is_documented_with_its_command(name: str, option: str) -> None:
    section = CLI.partition(f"\n## `nst {name}`\n")[2].partition("\n## ")[0]
    assert f"`{option}" in section
    cells = [row.split(" | ")[0] for row in CLI.splitlines() if row.startswith("| `-")]
    assert any(f"`{option}" in cell for cell in cells)


def test_every_option_that_docs_name_exists() -> None:
    import re

    all_options = {option for command in COMMANDS.values() for p in command.params for option in (*p.opts, *p.secondary_opts)}
    foreign = {"--constraint", "--env-file", "--from-env-file", "--help", "--version"}  # pip's, docker's, kubectl's and Typer's
    for text in (README, CLI, MANIFEST, OUTPUT, CONFIGURATION):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - foreign <= all_options


@pytest.mark.parametrize(
    ("name", "page"),
    [
        *((name, RECIPES) for name in presets.PRESETS),
        *((name, CLI) for name in weights.BACKBONES),
    ],
)
def test_every_recipe_and_backbone_is_documented(name: str, page: str) -> None:
    assert f"\n| `{name}` | " in page


def test_the_table_of_columns_holds_every_columns_help() -> None:
    rows = "".join(f"| `{column.name}` | {column.help} |\n" for column in COLUMNS.values()).replace("`|`", r"`\|`")
    table = f"| column | contents |\n|---|---|\n{rows}\n"
    assert table in MANIFEST, f"write into docs/manifest.md:\n{table}"


@pytest.mark.parametrize("name", [*presets.PRESETS, *(name for name in weights.BACKBONES if name != "tiny")])
def test_readme_names_every_recipe_and_backbone(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_documented(name: str) -> None:
    assert f"| `{name}` |" in OUTPUT


def test_the_summarys_columns_are_documented() -> None:
    assert f"`{', '.join(SUMMARY_COLUMNS)}`" in " ".join(OUTPUT.split())


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


@pytest.mark.parametrize("field", settings.Settings.model_fields)
def test_every_setting_is_documented(field: str) -> None:
    assert f"\n| `NST_{field.upper()}` | " in CONFIGURATION


@pytest.mark.parametrize("page", settings_pages.PAGES)
def test_documented_settings_are_up_to_date(page: str) -> None:
    assert (ROOT / page).read_text() == settings_pages.render_page(page), "make docs writes them"


def test_the_historys_columns_are_documented() -> None:
    assert f"`{', '.join(loss_history.COLUMNS)}`" in OUTPUT


@pytest.mark.parametrize("field", [field.name for field in fields(outcome.Outcome)])
def test_every_field_of_the_outcome_marker_is_documented(field: str) -> None:
    table = OUTPUT.partition("## Outcome marker")[2].partition("\n## ")[0]
    assert any(f"`{field}`" in row.split(" | ")[0] for row in table.splitlines() if row.startswith("| "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    import re

    def list_headings(file: Path) -> set[str]:
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    for link in (link for link in links if not link.startswith("https://")):
        target, _, heading = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), link
        assert not heading or heading in list_headings(file), link


def test_version_is_the_same_everywhere() -> None:
    import tomllib

    from nst_tasks import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_holds_every_module_and_data_file() -> None:
    import tomllib

    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = {
        path
        for folder, patterns in configuration["package-data"].items()
        for p in patterns
        for path in (ROOT / folder.replace(".", "/")).glob(p)
    }
    top = {folder.partition(".")[0] for folder in configuration["packages"]}
    files = {path for folder in top for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path for path in files if path.suffix != ".py"} == data
    modules = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in files if path.suffix == ".py"}
    assert modules == {*configuration["packages"]}


def test_every_mentioned_prefect_setting_exists() -> None:
    import re

    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    files = ["README.md", ".env.example", "Dockerfile", "flows/prefect-server.env", *sorted(ROOT.glob("docs/*.md"))]
    names = {name for file in files for name in re.findall(r"\bPREFECT_\w+", (ROOT / file).read_text())} | {
        *prefect_server.SERVER_ENVIRONMENT
    }
    assert "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE" in names
    assert names <= {*_get_settings_fields(Settings)}  # Prefect ignores what it does not know


def test_every_test_that_shows_a_fault_exists() -> None:
    import re

    table = (ROOT / "docs" / "faults.md").read_text().partition("## Faults")[2]
    rows = [row for row in table.splitlines() if row.startswith("| ")][1:]
    assert rows
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert tests, f"shown by no test: {row}"
        for file, name in tests:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_every_direct_subclass_of_errors_has_a_row() -> None:
    from nst_tasks import errors

    faults = (ROOT / "docs" / "faults.md").read_text()
    class_names = {c.__name__ for c in vars(errors).values() if isinstance(c, type) and errors.NstError in c.__bases__}
    for name in class_names | {"StorageUnavailable", "StorageUnusable"}:
        assert f"| `{name}` |" in faults
