"""Recipes of a run and of its rows, from presets or files: each is read once, and every problem is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from nst_tasks.core.method import LBFGS
from nst_tasks.errors import ManifestError, SettingsError, StorageUnavailable
from nst_tasks.inputs import manifest, recipe_file, weights
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.manifest import Manifest, Pair
from nst_tasks.inputs.manifest_export import build_grid, export_rejected
from nst_tasks.inputs.options import RunOptions, resolve_recipe_name
from nst_tasks.inputs.presets import PAINTERLY, PRESETS, TF_TUTORIAL
from nst_tasks.inputs.readers import LoadedManifest, find_recipe, load_recipes, read_manifest
from nst_tasks.inputs.recipe import Overrides, override
from nst_tasks.inputs.settings import Settings
from nst_tasks.planning.dry_run import summarize_dry_run
from nst_tasks.planning.inspection import inspect_image, list_image_uris
from nst_tasks.planning.prepare import prepare
from nst_tasks.planning.triage import Triage, build_job, triage
from nst_tasks.storage import files
from tests.support.runs import refusals, request_of

SETTINGS = Settings()
MINE = 'base = "painterly"\nsteps = 7\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two pictures, a recipe file, and a manifest in which one row names that file."""
    for name, color in (("cat.png", "teal"), ("oil.png", "navy")):
        Image.new("RGB", (80, 60), color).save(tmp_path / name)
    (tmp_path / "my.toml").write_text(MINE)
    write_rows(tmp_path, "a,cat.png,oil.png,my.toml", "b,cat.png,oil.png,", "c,cat.png,oil.png,tf-tutorial")
    return tmp_path


def write_rows(folder: Path, *lines: str, header: str = "id,content,style,recipe") -> None:
    (folder / "m.csv").write_text("\n".join([header, *lines]) + "\n")


def load_manifest(folder: Path) -> Manifest:
    place = str(folder / "m.csv")
    return load_recipes(place, *read_manifest(place))[0]


def prepare_and_triage(request: tuple[str, str, RunOptions]) -> tuple[LoadedManifest, Triage]:
    inputs = prepare(*request, SETTINGS)
    sources = {uri: inspect_image(uri, SETTINGS.max_pixels) for uri in list_image_uris(inputs.manifest.pairs)}
    return inputs, triage(inputs, sources, request[2], {})


def list_jobs(request: tuple[str, str, RunOptions]) -> dict[str, Job]:
    _, result = prepare_and_triage(request)
    assert not result.refused
    return {job.id: job for job in result.to_do}


# A preset or a file


def test_a_recipe_is_found_by_a_presets_name_or_a_files_uri(folder: Path, memory: str) -> None:
    assert find_recipe("tf-tutorial") is TF_TUTORIAL
    mine = replace(PAINTERLY, name="my", method=replace(PAINTERLY.method, steps=7))
    assert find_recipe(str(folder / "my.toml")) == mine
    files.write(f"{memory}/deep/My.TOML", MINE.encode())
    assert find_recipe(f"{memory}/deep/My.TOML") == replace(mine, name="My")


def test_every_problem_of_a_file_names_it(folder: Path) -> None:
    (folder / "my.toml").write_text('base = "paintrly"\nsteps = -1\n')
    with pytest.raises(SettingsError) as caught:
        find_recipe(str(folder / "my.toml"))
    assert str(caught.value).split("\n") == [
        f"recipe {folder}/my.toml: base: 'paintrly' is not a preset; did you mean painterly?",
        f"recipe {folder}/my.toml: steps: -1 is not in 0..100000",
    ]


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("none.toml", "does not exist; check the name"),
        ("my.toml/my.toml", "a part of the path is a file, not a folder; choose another path"),
        ("folder.toml", "it is a folder, not a file; choose another path"),
    ],
)
def test_unreadable_file_is_refused_in_one_line(folder: Path, place: str, fault: str) -> None:
    (folder / "folder.toml").mkdir()
    with pytest.raises(SettingsError) as caught:
        find_recipe(str(folder / place))
    assert str(caught.value) == f"recipe {folder}/{place}: {fault}"


def test_oversized_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "huge.toml").write_bytes(b"#" * (recipe_file.MAX_BYTES + 1))
    monkeypatch.setattr(files, "read", lambda uri: pytest.fail("it was read"))
    with pytest.raises(SettingsError, match=r"huge\.toml: 1000001 bytes are too many for a recipe, which has 1000000 at most"):
        find_recipe(str(folder / "huge.toml"))


def test_errors_omit_the_secrets_of_a_files_uri(memory: str) -> None:
    uri = memory.replace("memory://", "memory://user:hunter2@") + "/my.toml?token=hunter2"
    for fault in ("does not exist; check the name", "steps: -1 is not in 0..100000"):
        with pytest.raises(SettingsError) as caught:
            find_recipe(uri)
        assert str(caught.value) == f"recipe {memory}/my.toml: {fault}"
        files.write(uri, MINE.replace("7", "-1").encode())


def test_a_file_is_found_from_any_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert resolve_recipe_name("my.toml") == str(folder / "my.toml")
    assert resolve_recipe_name("s3://bucket/my.toml") == "s3://bucket/my.toml"
    assert resolve_recipe_name("painterly") == "painterly"


# The run's recipe


def test_run_recipe_applies_to_rows_without_one(folder: Path) -> None:
    (folder / "run.toml").write_text('base = "tf-tutorial"\nsize = 64\n[optimizer]\nkind = "lbfgs"\n')
    jobs = list_jobs(request_of(folder, recipe=str(folder / "run.toml")))
    assert {id: job.recipe.name for id, job in jobs.items()} == {"a": "my", "b": "run", "c": "tf-tutorial"}
    assert jobs["b"].recipe.method.optimizer == LBFGS()
    assert (jobs["b"].width, jobs["a"].recipe.method.steps, jobs["c"].recipe) == (64, 7, TF_TUTORIAL)


def test_run_options_override_the_recipe_file(folder: Path) -> None:
    job = list_jobs(request_of(folder, size=64, steps=14))["a"]
    assert (job.recipe.size, job.recipe.method.steps) == (64, 14)


def test_a_wrong_file_refuses_the_run_with_every_other_problem(folder: Path) -> None:
    place = folder / "wrong.toml"
    place.write_text("steps = 1\nsteps = 2\n")
    lines = refusals(request_of(folder, recipe=str(place), size=9, history_every=0, snapshots=-1))
    assert lines[0].startswith(f"--recipe {place}: line 2, column 10: Cannot overwrite a value")
    assert lines[1:] == [
        "--size: 9 is not in 64..8192 pixels",
        "--history-every: 0 is not in 1..100000",
        "--snapshots: -1 is not in 0..100000",
    ]
    place.write_text('base = "painterly"\nsteps = -1\nsize = 1\n')
    assert refusals(request_of(folder, recipe=str(place))) == [
        f"--recipe {place}: size: 1 is not in 64..8192 pixels",
        f"--recipe {place}: steps: -1 is not in 0..100000",
    ]


def test_recipe_file_with_unknown_layers_refuses_the_run(folder: Path) -> None:
    (folder / "deep.toml").write_text('base = "painterly"\n[content.layers]\nblock5_conv4 = 1\n')
    (line,) = refusals(request_of(folder, recipe=str(folder / "deep.toml")))
    assert line.startswith("--recipe deep: layer block5_conv4: vgg16 has none of that name; choose among block1_conv1")


@pytest.mark.parametrize("snapshots", [None, 0, 1, 100_000])
def test_snapshot_intervals_are_accepted(folder: Path, snapshots: int | None) -> None:
    assert prepare(*request_of(folder, snapshots=snapshots), SETTINGS).manifest.rows == 3


# The rows' recipes


def test_a_row_names_a_file_from_the_manifests_folder(folder: Path, memory: str) -> None:
    pair = load_manifest(folder).pairs[0]
    assert pair.recipe == str(folder / "my.toml")
    files.write(f"{memory}/in/m.csv", b"content,style,recipe\ncat.png,oil.png,../recipes/my.toml\n")
    files.write(f"{memory}/recipes/my.toml", MINE.encode())
    place = f"{memory}/in/m.csv"
    result, recipes = load_recipes(place, *read_manifest(place))
    assert result.pairs[0].recipe == f"{memory}/recipes/my.toml"
    assert recipes[f"{memory}/recipes/my.toml"].method.steps == 7


def test_file_of_many_rows_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(folder, *(f"r{k},cat.png,oil.png,{'my.toml' if k % 2 else './my.toml'}" for k in range(10)))
    uris = []
    original = files.read
    monkeypatch.setattr(files, "read", lambda uri: uris.append(uri) or original(uri))
    place = str(folder / "my.toml")
    assert len(list_jobs(request_of(folder, recipe=place))) == 10
    assert uris.count(place) == 1
    assert uris.count(f"{folder}/./my.toml") == 1


def test_rows_with_a_wrong_recipe_file_are_rejected(folder: Path) -> None:
    (folder / "wrong.toml").write_text('base = "painterly"\nsteps = -1\nsise = 9\n')
    write_rows(folder, "a,cat.png,oil.png,wrong.toml", "b,cat.png,oil.png,", "c,cat.png,oil.png,none.toml")
    inputs, result = prepare_and_triage(request_of(folder))
    assert [job.id for job in result.to_do] == ["b"]
    messages = [
        f"row 2, column recipe: {folder}/wrong.toml: sise: is not known here; did you mean size?",
        f"row 2, column recipe: {folder}/wrong.toml: steps: -1 is not in 0..100000",
        f"row 4, column recipe: {folder}/none.toml: does not exist; check the name",
    ]
    assert [str(problem) for problem in inputs.manifest.problems] == messages
    assert [(problem.column, problem.value) for problem in inputs.manifest.problems][1:] == [
        ("recipe", "wrong.toml"),
        ("recipe", "none.toml"),
    ]
    assert refusals(request_of(folder, strict=True)) == messages
    write_rows(folder, "c,cat.png,oil.png,none.toml")
    assert refusals(request_of(folder)) == [
        messages[2].replace("row 4", "row 2"),
        "manifest: no row is usable; correct the rows above",
    ]


def test_file_with_unknown_layers_fails_its_row(folder: Path) -> None:
    (folder / "my.toml").write_text('base = "painterly"\n[content.layers]\nblock5_conv4 = 1\n')
    _, result = prepare_and_triage(request_of(folder))
    assert [job.id for job in result.to_do] == ["b", "c"]
    ((pair, error),) = result.refused
    assert pair.id == "a"
    assert str(error).startswith("layer block5_conv4: vgg16 has none of that name")


def test_temporary_store_failure_refuses_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = files.read

    def fail_for_recipes(uri: str) -> bytes:
        if uri.endswith(".toml"):
            raise StorageUnavailable(f"{uri}: the store failed for the moment (OSError)")
        return original(uri)

    monkeypatch.setattr(files, "read", fail_for_recipes)
    assert refusals(request_of(folder)) == [f"recipe {folder}/my.toml: the store failed for the moment (OSError)"]


def test_rejected_rows_name_their_recipe_file_from_any_folder(folder: Path) -> None:
    (folder / "my.toml").write_text("")
    write_rows(folder, "a,cat.png,oil.png, my.toml ", "b,cat.png,oil.png,paintrly", "c,cat.png,oil.png,/r/your.toml")
    text = export_rejected(load_manifest(folder), str(folder)).decode()
    assert [line.rpartition(",")[2] for line in text.splitlines()] == [
        "recipe",
        f"{folder}/my.toml",
        "paintrly",
        "/r/your.toml",
    ]


def test_derived_id_distinguishes_file_from_preset(tmp_path: Path) -> None:
    def derive_id(recipe: str, folder: str) -> str:
        data = f"content,style,recipe\ncat.png,oil.png,{recipe}\n".encode()
        (pair,) = manifest.parse(data, folder).pairs
        return pair.id

    assert (
        derive_id("painterly.toml", "/a")
        == derive_id("x/painterly.toml", "/b")
        == derive_id("s3://b/painterly.toml?sig=1", "/a")
    )
    assert (
        len(
            {
                derive_id("painterly.toml", "/a"),
                derive_id("painterly", "/a"),
                derive_id("other.toml", "/a"),
                derive_id("", "/a"),
            }
        )
        == 4
    )


def test_misspelled_recipe_suggests_a_preset() -> None:
    (problem,) = manifest.parse(b"content,style,recipe\ncat.png,oil.png,paintrly\n", "/a").problems
    assert str(problem) == "row 2, column recipe: paintrly is not a recipe; did you mean painterly?"


def test_grid_accepts_a_file_and_refuses_an_unknown_name() -> None:
    assert build_grid(["/c.png"], ["/s.png"], "/r/my.toml").decode().endswith(",/c.png,/s.png,/r/my.toml\n")
    with pytest.raises(ManifestError, match=r"paintrly is not a recipe; did you mean painterly\?"):
        build_grid(["/c.png"], ["/s.png"], "paintrly")


# Effects of a recipe


def test_the_files_content_decides_the_key_and_not_its_name(folder: Path) -> None:
    (folder / "same.toml").write_text("# the same, spelled differently\n" + MINE.replace("7", "0x7"))
    (folder / "other.toml").write_text(MINE.replace("7", "8"))
    (folder / "whole.toml").write_bytes(recipe_file.to_toml(TF_TUTORIAL).replace('name = "tf-tutorial"', 'name = "x"').encode())
    names = ("my.toml", "same.toml", "other.toml", "whole.toml", "tf-tutorial", "")
    write_rows(folder, *(f"r{k},cat.png,oil.png,{name}" for k, name in enumerate(names)))
    keys = {name: job.key for name, job in zip(names, list_jobs(request_of(folder)).values(), strict=True)}
    assert keys["my.toml"] == keys["same.toml"]
    assert keys["whole.toml"] == keys["tf-tutorial"]
    assert len({keys[name] for name in ("my.toml", "other.toml", "tf-tutorial", "")}) == 4
    key = keys["my.toml"]
    (folder / "my.toml").write_text(MINE + "pooling = 'average'\n")
    assert list_jobs(request_of(folder))["r0"].key != key


def test_row_settings_override_its_recipe_file(folder: Path) -> None:
    write_rows(folder, "a,cat.png,oil.png,my.toml,64,3,noise,9", header="id,content,style,recipe,size,steps,init,style_weight")
    recipe = list_jobs(request_of(folder, size=128, steps=99))["a"].recipe
    assert (recipe.name, recipe.size, recipe.method.steps) == ("my", 64, 3)
    assert (recipe.method.init, recipe.method.init_noise, recipe.method.style.weight) == ("noise", 0.15, 9.0)


def test_noise_init_has_a_default_noise_level(folder: Path) -> None:
    write_rows(folder, "a,cat.png,oil.png,tf-tutorial,noise", header="id,content,style,recipe,init")
    method = list_jobs(request_of(folder))["a"].recipe.method
    assert (method.init, method.init_noise) == ("noise", 0.1)


def test_dry_run_and_job_have_the_whole_recipe(folder: Path) -> None:
    request = request_of(folder, size=64)
    survey = summarize_dry_run(*request[1:], prepare(*request, SETTINGS), SETTINGS)
    assert survey.to_do[0] == "row 2, a: cat x oil, my, 64 x 48, 7 steps"
    plain = list_jobs(request)["a"].recipe.as_plain()
    assert json.loads(json.dumps(plain))["method"]["steps"] == 7


def test_job_without_a_manifest_has_the_presets(folder: Path) -> None:
    source = inspect_image(str(folder / "cat.png"), SETTINGS.max_pixels)
    pair = Pair(2, "a", source.uri, (source.uri,), (1.0,))
    for name in PRESETS:
        request = request_of(folder, recipe=name, backbone="vgg16", upscale=True)
        job = build_job(pair, {source.uri: source}, request[2], weights.DEFAULT_BACKBONE)
        assert job.recipe == override(PRESETS[name], Overrides(precision="float32"))
