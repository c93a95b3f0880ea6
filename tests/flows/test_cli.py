"""The command `nst` except for runs: exit codes, printed lines, and imports."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import Result

from flows import prefect_server
from flows.cli import app
from nst_tasks import __version__
from nst_tasks.inputs import recipe_file
from nst_tasks.inputs.presets import PRESETS
from nst_tasks.outputs import outcome
from nst_tasks.outputs.layout import marker_path
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.storage import files
from tests.support.commands import nst
from tests.support.pictures import encode_flat
from tests.support.runs import list_files
from tests.support.servers import copy_environment_without_prefect


def get_refusals(*arguments: str, **environment: str) -> list[str]:
    """Run a command that ends with exit code 2, and return its messages, without the program's name before each."""
    result = nst(*arguments, **environment)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("nst: ") for line in lines)
    return [line.removeprefix("nst: ") for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a manifest of two good rows and their pictures."""
    for name, color in (("cat.png", "teal"), ("dog.png", "brown"), ("oil.png", "navy")):
        (tmp_path / name).write_bytes(encode_flat(color))
    write_manifest(tmp_path, "cat.png,oil.png,", "dog.png,oil.png,")
    return tmp_path


def write_manifest(folder: Path, *rows: str, header: str = "content,style,size") -> str:
    (folder / "m.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(folder / "m.csv")


# Commands that answer at once


PRINT_HEAVY_IMPORTS = """
import json, sys
from flows.cli import app
try:
    app(sys.argv[1:], standalone_mode=True)
except SystemExit as end:
    assert not end.code, end.code
heavy = {"tensorflow", "keras", "prefect", "pandas", "h5py"}
print(json.dumps(sorted(heavy & {*sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["validate", "m.csv"], ["recipes"], ["recipes", "painterly"], ["recipes", "my.toml"]],
)
def test_commands_that_answer_at_once_import_nothing_heavy(folder: Path, arguments: list[str]) -> None:
    (folder / "my.toml").write_text('base = "painterly"\n')
    process = subprocess.run(
        [sys.executable, "-c", PRINT_HEAVY_IMPORTS, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout
    assert json.loads(process.stderr.splitlines()[-1]) == []


def test_prefect_settings_of_the_operator_are_kept() -> None:
    code = "import json, os; from flows import cli; cli.configure_prefect(); print(json.dumps(dict(os.environ)))"
    own = {"PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "true", "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "7"}
    environment = copy_environment_without_prefect()
    process = subprocess.run([sys.executable, "-c", code], env=environment | own, capture_output=True, timeout=60, check=True)
    assert json.loads(process.stdout).items() >= (prefect_server.SERVER_ENVIRONMENT | own).items()


def test_the_command_is_installed_under_its_name() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="nst")
    assert entry.load() is app


def test_version_and_help() -> None:
    assert nst("--version").stdout == f"nst {__version__}\n"
    text = nst("--help").stdout
    for command in ("run", "validate", "grid", "recipes", "report", "demo"):
        assert f"\n  {command} " in text
    assert nst("nonsense").exit_code == 2


# validate


def test_validate_a_good_manifest(folder: Path) -> None:
    paths = list_files(folder)
    result = nst("validate", str(folder / "m.csv"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "2 rows: 2 good, 0 rejected\n", "")
    assert list_files(folder) == paths


def test_validate_finds_the_manifest_from_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert nst("validate", "m.csv", "--probe").exit_code == 0


def test_validate_names_every_problem_of_every_row(folder: Path) -> None:
    result = nst("validate", write_manifest(folder, "cat.png,oil.png,9", ",oil.png,x", "dog.png,oil.png,"))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        "row 2, column size",
        "row 3, column content",
        "row 3, column size",
    ]
    assert lines[-1] == "3 rows: 1 good, 2 rejected"


def test_validate_opens_the_pictures_only_when_asked(folder: Path) -> None:
    place = write_manifest(folder, "cat.png,oil.png,", "none.png,oil.png,")
    assert nst("validate", place).exit_code == 0
    result = nst("validate", place, "--probe")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"row 3, column content: {folder}/none.png: does not exist; check the name",
        "2 rows: 2 good, 0 rejected",
    ]


def test_validate_as_json(folder: Path) -> None:
    result = nst("validate", write_manifest(folder, "cat.png,oil.png,9", "dog.png,oil.png,"), "--json")
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["good"], summary["rejected"]) == (2, 1, 1)
    assert summary["problems"][0].startswith("row 2, column size: 9 is below")


def test_an_unknown_column_is_refused_with_a_suggestion(folder: Path) -> None:
    place = write_manifest(folder, "cat.png,oil.png,64", header="content,style,sise")
    for command in (["validate", place], ["run", place, "--out", str(folder / "out"), "--dry-run"]):
        lines = get_refusals(*command)
        assert lines == [f"manifest {place}: column sise is not known; did you mean size?"]


@pytest.mark.parametrize("name", ["none.csv", "m.csv/below", "."])
def test_an_unreachable_manifest_is_refused(folder: Path, name: str) -> None:
    (line,) = get_refusals("validate", str(folder / name))
    assert line.startswith(f"manifest {folder}")


def test_a_picture_in_place_of_the_manifest_is_refused(folder: Path) -> None:
    (line,) = get_refusals("validate", str(folder / "cat.png"))
    assert line.startswith(f"manifest {folder}/cat.png: the manifest has a NUL byte")


def test_validate_reads_the_recipe_files_that_rows_name(folder: Path) -> None:
    (folder / "my.toml").write_text('base = "painterly"\nsteps = -7\n')
    place = write_manifest(folder, "cat.png,oil.png,my.toml", "dog.png,oil.png,", header="content,style,recipe")
    result = nst("validate", place)
    assert (result.exit_code, result.stdout.splitlines()) == (
        1,
        [
            f"row 2, column recipe: {folder}/my.toml: steps: -7 is not in 0..100000",
            "2 rows: 1 good, 1 rejected",
        ],
    )


def test_a_signed_uri_is_refused_without_its_signature() -> None:
    (line,) = get_refusals("validate", "memory://user:hunter2@nst-none/m.csv?token=hunter2")
    assert line == "manifest memory://nst-none/m.csv: does not exist; check the name"


def test_a_bad_environment_variable_is_refused(folder: Path) -> None:
    lines = get_refusals("validate", str(folder / "m.csv"), NST_READERS="0", NST_BATCH="many")
    assert [line.split(":")[0] for line in lines] == ["NST_BATCH", "NST_READERS"]


# run: refusals and dry runs


def dry_run(folder: Path, *options: str, **environment: str) -> Result:
    out = str(folder / "out")
    return nst("run", str(folder / "m.csv"), "--out", out, "--backbone", "tiny", "--dry-run", *options, **environment)


def test_dry_run_lists_the_work_and_writes_nothing(folder: Path) -> None:
    paths = list_files(folder)
    result = dry_run(folder, "--size", "64", "--steps", "5")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "row 2, cat_oil: cat x oil, painterly, 64 x 48, 5 steps",
        "row 3, dog_oil: dog x oil, painterly, 64 x 48, 5 steps",
        "2 rows: 0 done, 2 to do",
    ]
    assert list_files(folder) == paths  # the probe of the output is gone


def test_a_dry_run_of_rows_that_would_fail(folder: Path) -> None:
    write_manifest(folder, "cat.png,oil.png,", "none.png,oil.png,", "cat.png,oil.png,9")
    result = dry_run(folder)
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "row 4, column size",
        "row 3, none_oil",
        "row 2, cat_oil",
        "3 rows",
    ]
    assert get_refusals(
        "run", str(folder / "m.csv"), "--out", str(folder / "out"), "--backbone", "tiny", "--dry-run", "--strict"
    )[0].startswith("row 4, column size")


def test_a_dry_run_as_json(folder: Path) -> None:
    files.write(str(folder / "out" / "outcomes" / "cat_oil.json"), b"damaged")
    result = dry_run(folder, "--json")
    assert result.exit_code == 0  # the pair of a damaged marker is made again
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["done"], len(summary["to_do"]), summary["problems"]) == (2, 0, 2, [])
    assert summary["warnings"][0].startswith("outcomes/cat_oil.json: ignored")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--recipe", "paintrly"], "--recipe: 'paintrly' is not known; did you mean painterly?"),
        (["--size", "9"], "--size: 9 is not in 64..8192 pixels"),
        (["--steps", "-1"], "--steps: -1 is not in 0..100000"),
        (["--plateau", "1.5"], "--plateau: 1.5 is not a share between 0 and 1; take one such as 0.01"),
        (
            ["--max-failures", "5%%"],
            "--max-failures: '5%%' is not a whole number such as 10, or a percentage such as 5%",
        ),
        (["--history-every", "0"], "--history-every: 0 is not in 1..100000"),
        (["--snapshots", "-1"], "--snapshots: -1 is not in 0..100000"),
        (["--snapshots", "100001"], "--snapshots: 100001 is not in 0..100000"),
        (
            ["--checkpoint-every", "soon"],
            "--checkpoint-every: 'soon' is not a number of steps such as 50, or of seconds such as 30s",
        ),
        (["--pair-timeout", "0"], "--pair-timeout: 0.0 is not a number of seconds above 0"),
        (["--recipe", "/none.toml"], "--recipe /none.toml: does not exist; check the name"),
        (["--backbone", "vgg"], "--backbone: 'vgg' is not known; choose one of vgg16-hed, vgg19, vgg16, tiny"),
        (["--weights", "/none.h5", "--backbone", "vgg19"], "--weights: /none.h5: does not exist; check the name"),
    ],
)
def test_a_bad_option_is_refused_before_anything_runs(folder: Path, options: list[str], line: str) -> None:
    # also without --dry-run, as a refusal needs nothing of the flow
    for extra in ([], ["--dry-run"]):
        place = str(folder / "out")
        assert get_refusals("run", str(folder / "m.csv"), "--out", place, "--backbone", "tiny", *options, *extra) == [line]
    assert not (folder / "out").exists()


def test_a_recipe_file_is_taken_from_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "my.toml").write_text('base = "painterly"\nsteps = 7\n')
    monkeypatch.chdir(folder)
    result = dry_run(folder, "--recipe", "my.toml", "--size", "64", "--snapshots", "0")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "row 2, cat_oil: cat x oil, my, 64 x 48, 7 steps")
    (folder / "my.toml").write_text('base = "painterly"\nsteps = -7\n')
    options = ["--out", str(folder / "out"), "--backbone", "tiny", "--recipe", "my.toml"]
    assert get_refusals("run", str(folder / "m.csv"), *options) == [f"--recipe {folder}/my.toml: steps: -7 is not in 0..100000"]


def test_an_output_that_cannot_be_written_is_refused(folder: Path) -> None:
    (line,) = get_refusals("run", str(folder / "m.csv"), "--out", str(folder / "cat.png"), "--backbone", "tiny")
    assert line.startswith("--out: the output cannot be written: ")


@pytest.mark.parametrize("arguments", [["run", "m.csv"], ["run"], ["run", "m.csv", "--out", "out", "--size", "big"]])
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    assert nst(*arguments).exit_code == 2


# grid


def test_grid_feeds_validate(folder: Path) -> None:
    result = nst("grid", "--content", f"{folder}/[cd]*.png", "--style", f"{folder}/oil.png", "--recipe", "tf-tutorial")
    assert result.exit_code == 0
    (folder / "m.csv").write_bytes(result.stdout_bytes)
    validation = nst("validate", str(folder / "m.csv"), "--probe")
    assert (validation.exit_code, validation.stdout) == (0, "2 rows: 2 good, 0 rejected\n")
    assert result.stdout.splitlines()[0] == "id,content,style,recipe"


def test_grid_writes_to_output_and_takes_several_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    result = nst("grid", "--content", "cat.png", "--content", "*g.png", "--style", "o*", "--style", "c*.png", "-o", "new/m.csv")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "4 pairs written to new/m.csv\n")
    assert nst("validate", "new/m.csv", "--probe").stdout == "4 rows: 4 good, 0 rejected\n"


def test_grid_takes_no_dot_files(folder: Path) -> None:
    (folder / ".hidden.png").write_bytes(b"x")
    assert "hidden" not in nst("grid", "--content", f"{folder}/*.png", "--style", f"{folder}/oil.png").stdout


def test_grid_reports_missing_pictures_and_unknown_recipes(folder: Path) -> None:
    lines = get_refusals("grid", "--content", f"{folder}/*.gif", "--style", f"{folder}/oil.png", "--recipe", "paintrly")
    assert lines == ["no content picture is given", "paintrly is not a recipe; did you mean painterly?"]


def test_grid_takes_a_recipe_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "my.toml").write_text('base = "painterly"\n')
    grid = nst("grid", "--content", "cat.png", "--style", "oil.png", "--recipe", "my.toml", "-o", "new/m.csv")
    assert (grid.exit_code, grid.stderr) == (0, "1 pairs written to new/m.csv\n")
    assert nst("validate", "new/m.csv").stdout == "1 rows: 1 good, 0 rejected\n"
    lines = get_refusals("grid", "--content", "cat.png", "--style", "oil.png", "--recipe", "no.toml")
    assert lines == [f"recipe {folder}/no.toml: does not exist; check the name"]


# recipes


def test_recipes_lists_them_all() -> None:
    result = nst("recipes")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(PRESETS)
    assert all(recipe.summary in result.stdout for recipe in PRESETS.values())
    assert json.loads(nst("recipes", "--json").stdout) == [recipe.as_plain() for recipe in PRESETS.values()]


@pytest.mark.parametrize("name", PRESETS)
def test_shown_recipe_is_an_equivalent_file(name: str, tmp_path: Path) -> None:
    original = nst("recipes", name)
    assert original.exit_code == 0
    assert original.stdout == recipe_file.to_toml(PRESETS[name])
    (tmp_path / "my.toml").write_bytes(original.stdout_bytes)
    copy = nst("recipes", str(tmp_path / "my.toml"))
    assert (copy.exit_code, copy.stdout) == (0, original.stdout)
    for recipe in (name, str(tmp_path / "my.toml")):
        assert json.loads(nst("recipes", recipe, "--json").stdout) == PRESETS[name].as_plain()


def test_recipe_file_is_shown_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text('base = "painterly"\nsteps = 7\n')
    tables = tomllib.loads(nst("recipes", "my.toml").stdout)
    assert tables == recipe_file.to_tables(PRESETS["painterly"]) | {"name": "my", "steps": 7}


def test_wrong_recipe_file_reports_every_problem(tmp_path: Path) -> None:
    place = tmp_path / "my.toml"
    assert get_refusals("recipes", str(place)) == [f"recipe {place}: does not exist; check the name"]
    place.write_text('base = "painterly"\nsteps = "7"\nsise = 9\n')
    assert [line.partition(";")[0] for line in get_refusals("recipes", str(place))] == [
        f"recipe {place}: sise: is not known here",
        f"recipe {place}: steps: '7' is not a whole number",
    ]


def test_an_unknown_recipe_is_refused() -> None:
    assert get_refusals("recipes", "paintrly") == ["recipe: 'paintrly' is not known; did you mean painterly?"]


# report


def test_report_writes_one_page_of_all_pairs(tmp_path: Path) -> None:
    failure = Outcome(id="elk", row=2, status=Status.FAILED, error="x")
    files.write(str(tmp_path / marker_path("elk")), outcome.to_json(failure))
    files.write(str(tmp_path / "outcomes/bad.json"), b"damaged")
    result = nst("report", str(tmp_path))
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/report.html: 1 pairs\n")
    assert result.stderr.startswith("outcomes/bad.json: ignored, ")
    assert "elk" in (tmp_path / "report.html").read_text()


def test_report_of_another_folder_is_refused(tmp_path: Path) -> None:
    assert get_refusals("report", str(tmp_path)) == [f"{tmp_path}: holds no outcomes; give the folder that was given to --out"]
