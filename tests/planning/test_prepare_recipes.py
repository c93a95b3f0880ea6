"""Recipes on the way in: preset or file, of a run or of its rows; read once, and told all that is wrong with them."""

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
    """Two pictures, a recipe file, and a manifest of which one row names it."""
    for name, color in (("cat.png", "teal"), ("oil.png", "navy")):
        Image.new("RGB", (80, 60), color).save(tmp_path / name)
    (tmp_path / "my.toml").write_text(MINE)
    rows(tmp_path, "a,cat.png,oil.png,my.toml", "b,cat.png,oil.png,", "c,cat.png,oil.png,tf-tutorial")
    return tmp_path


def rows(folder: Path, *lines: str, header: str = "id,content,style,recipe") -> None:
    (folder / "m.csv").write_text("\n".join([header, *lines]) + "\n")


def read(folder: Path) -> Manifest:
    place = str(folder / "m.csv")
    return load_recipes(place, *read_manifest(place))[0]


def triaged(request: tuple[str, str, RunOptions]) -> tuple[LoadedManifest, Triage]:
    taken = prepare(*request, SETTINGS)
    sources = {uri: inspect_image(uri, SETTINGS.max_pixels) for uri in list_image_uris(taken.manifest.pairs)}
    return taken, triage(taken, sources, request[2], {})


def jobs(request: tuple[str, str, RunOptions]) -> dict[str, Job]:
    _, found = triaged(request)
    assert not found.refused
    return {job.id: job for job in found.to_do}


# A preset or a file


def test_a_recipe_is_found_by_a_presets_name_or_a_files_uri(folder: Path, memory: str) -> None:
    assert find_recipe("tf-tutorial") is TF_TUTORIAL
    mine = replace(PAINTERLY, name="my", method=replace(PAINTERLY.method, steps=7))
    assert find_recipe(str(folder / "my.toml")) == mine
    files.write(f"{memory}/deep/My.TOML", MINE.encode())
    assert find_recipe(f"{memory}/deep/My.TOML") == replace(mine, name="My")


def test_every_problem_of_a_file_names_it(folder: Path) -> None:
    (folder / "my.toml").write_text('base = "paintrly"\nsteps = -1\n')
    with pytest.raises(SettingsError) as refused:
        find_recipe(str(folder / "my.toml"))
    assert str(refused.value).split("\n") == [
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
def test_a_file_that_cannot_be_read_is_one_line(folder: Path, place: str, fault: str) -> None:
    (folder / "folder.toml").mkdir()
    with pytest.raises(SettingsError) as refused:
        find_recipe(str(folder / place))
    assert str(refused.value) == f"recipe {folder}/{place}: {fault}"


def test_a_file_that_is_too_large_is_not_even_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "huge.toml").write_bytes(b"#" * (recipe_file.MAX_BYTES + 1))
    monkeypatch.setattr(files, "read", lambda uri: pytest.fail("it was read"))
    with pytest.raises(SettingsError, match=r"huge\.toml: 1000001 bytes are too many for a recipe, which has 1000000 at most"):
        find_recipe(str(folder / "huge.toml"))


def test_a_files_uri_is_told_without_its_secrets(memory: str) -> None:
    uri = memory.replace("memory://", "memory://user:hunter2@") + "/my.toml?token=hunter2"
    for fault in ("does not exist; check the name", "steps: -1 is not in 0..100000"):
        with pytest.raises(SettingsError) as refused:
            find_recipe(uri)
        assert str(refused.value) == f"recipe {memory}/my.toml: {fault}"
        files.write(uri, MINE.replace("7", "-1").encode())


def test_a_file_is_found_from_any_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert resolve_recipe_name("my.toml") == str(folder / "my.toml")
    assert resolve_recipe_name("s3://bucket/my.toml") == "s3://bucket/my.toml"
    assert resolve_recipe_name("painterly") == "painterly"


# The run's recipe


def test_a_run_takes_a_file_for_rows_that_name_none(folder: Path) -> None:
    (folder / "run.toml").write_text('base = "tf-tutorial"\nsize = 64\n[optimizer]\nkind = "lbfgs"\n')
    found = jobs(request_of(folder, recipe=str(folder / "run.toml")))
    assert {id: job.recipe.name for id, job in found.items()} == {"a": "my", "b": "run", "c": "tf-tutorial"}
    assert found["b"].recipe.method.optimizer == LBFGS()
    assert (found["b"].width, found["a"].recipe.method.steps, found["c"].recipe) == (64, 7, TF_TUTORIAL)


def test_the_runs_own_numbers_go_before_a_files(folder: Path) -> None:
    job = jobs(request_of(folder, size=64, steps=14))["a"]
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
def test_snapshots_are_none_or_every_so_many_steps(folder: Path, snapshots: int | None) -> None:
    assert prepare(*request_of(folder, snapshots=snapshots), SETTINGS).manifest.rows == 3


# The rows' recipes


def test_a_row_names_a_file_from_the_manifests_folder(folder: Path, memory: str) -> None:
    pair = read(folder).pairs[0]
    assert pair.recipe == str(folder / "my.toml")
    files.write(f"{memory}/in/m.csv", b"content,style,recipe\ncat.png,oil.png,../recipes/my.toml\n")
    files.write(f"{memory}/recipes/my.toml", MINE.encode())
    place = f"{memory}/in/m.csv"
    parsed, known = load_recipes(place, *read_manifest(place))
    assert parsed.pairs[0].recipe == f"{memory}/recipes/my.toml"
    assert known[f"{memory}/recipes/my.toml"].method.steps == 7


def test_a_file_is_read_once_however_many_rows_name_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(folder, *(f"r{k},cat.png,oil.png,{'my.toml' if k % 2 else './my.toml'}" for k in range(10)))
    opened = []
    read = files.read
    monkeypatch.setattr(files, "read", lambda uri: opened.append(uri) or read(uri))
    place = str(folder / "my.toml")
    assert len(jobs(request_of(folder, recipe=place))) == 10
    assert opened.count(place) == 1
    assert opened.count(f"{folder}/./my.toml") == 1


def test_rows_with_a_wrong_recipe_file_are_rejected(folder: Path) -> None:
    (folder / "wrong.toml").write_text('base = "painterly"\nsteps = -1\nsise = 9\n')
    rows(folder, "a,cat.png,oil.png,wrong.toml", "b,cat.png,oil.png,", "c,cat.png,oil.png,none.toml")
    taken, found = triaged(request_of(folder))
    assert [job.id for job in found.to_do] == ["b"]
    told = [
        f"row 2, column recipe: {folder}/wrong.toml: sise: is not known here; did you mean size?",
        f"row 2, column recipe: {folder}/wrong.toml: steps: -1 is not in 0..100000",
        f"row 4, column recipe: {folder}/none.toml: does not exist; check the name",
    ]
    assert [str(problem) for problem in taken.manifest.problems] == told
    assert [(problem.column, problem.value) for problem in taken.manifest.problems][1:] == [
        ("recipe", "wrong.toml"),
        ("recipe", "none.toml"),
    ]
    assert refusals(request_of(folder, strict=True)) == told
    rows(folder, "c,cat.png,oil.png,none.toml")
    assert refusals(request_of(folder)) == [
        told[2].replace("row 4", "row 2"),
        "manifest: no row is usable; correct the rows above",
    ]


def test_a_file_whose_layers_the_backbone_has_not_fails_its_row(folder: Path) -> None:
    (folder / "my.toml").write_text('base = "painterly"\n[content.layers]\nblock5_conv4 = 1\n')
    _, found = triaged(request_of(folder))
    assert [job.id for job in found.to_do] == ["b", "c"]
    ((pair, error),) = found.refused
    assert pair.id == "a"
    assert str(error).startswith("layer block5_conv4: vgg16 has none of that name")


def test_a_store_that_fails_for_the_moment_refuses_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = files.read

    def flaky(uri: str) -> bytes:
        if uri.endswith(".toml"):
            raise StorageUnavailable(f"{uri}: the store failed for the moment (OSError)")
        return read(uri)

    monkeypatch.setattr(files, "read", flaky)
    assert refusals(request_of(folder)) == [f"recipe {folder}/my.toml: the store failed for the moment (OSError)"]


def test_rejected_rows_name_their_recipe_file_from_any_folder(folder: Path) -> None:
    (folder / "my.toml").write_text("")
    rows(folder, "a,cat.png,oil.png, my.toml ", "b,cat.png,oil.png,paintrly", "c,cat.png,oil.png,/r/your.toml")
    text = export_rejected(read(folder), str(folder)).decode()
    assert [line.rpartition(",")[2] for line in text.splitlines()] == [
        "recipe",
        f"{folder}/my.toml",
        "paintrly",
        "/r/your.toml",
    ]


def test_derived_id_distinguishes_file_from_preset(tmp_path: Path) -> None:
    def id_of(recipe: str, folder: str) -> str:
        data = f"content,style,recipe\ncat.png,oil.png,{recipe}\n".encode()
        (pair,) = manifest.parse(data, folder).pairs
        return pair.id

    assert id_of("painterly.toml", "/a") == id_of("x/painterly.toml", "/b") == id_of("s3://b/painterly.toml?sig=1", "/a")
    assert len({id_of("painterly.toml", "/a"), id_of("painterly", "/a"), id_of("other.toml", "/a"), id_of("", "/a")}) == 4


def test_a_manifest_with_a_recipe_like_none_suggests_one() -> None:
    (problem,) = manifest.parse(b"content,style,recipe\ncat.png,oil.png,paintrly\n", "/a").problems
    assert str(problem) == "row 2, column recipe: paintrly is not a recipe; did you mean painterly?"


def test_grid_takes_a_file_as_it_is_and_refuses_an_unknown_name() -> None:
    assert build_grid(["/c.png"], ["/s.png"], "/r/my.toml").decode().endswith(",/c.png,/s.png,/r/my.toml\n")
    with pytest.raises(ManifestError, match=r"paintrly is not a recipe; did you mean painterly\?"):
        build_grid(["/c.png"], ["/s.png"], "paintrly")


# What a recipe decides


def test_the_files_content_decides_the_key_and_not_its_name(folder: Path) -> None:
    (folder / "same.toml").write_text("# the same in other words\n" + MINE.replace("7", "0x7"))
    (folder / "other.toml").write_text(MINE.replace("7", "8"))
    (folder / "whole.toml").write_bytes(recipe_file.to_toml(TF_TUTORIAL).replace('name = "tf-tutorial"', 'name = "x"').encode())
    names = ("my.toml", "same.toml", "other.toml", "whole.toml", "tf-tutorial", "")
    rows(folder, *(f"r{k},cat.png,oil.png,{name}" for k, name in enumerate(names)))
    keys = {name: job.key for name, job in zip(names, jobs(request_of(folder)).values(), strict=True)}
    assert keys["my.toml"] == keys["same.toml"]
    assert keys["whole.toml"] == keys["tf-tutorial"]
    assert len({keys[name] for name in ("my.toml", "other.toml", "tf-tutorial", "")}) == 4
    before = keys["my.toml"]
    (folder / "my.toml").write_text(MINE + "pooling = 'average'\n")
    assert jobs(request_of(folder))["r0"].key != before


def test_a_rows_settings_go_before_its_files(folder: Path) -> None:
    rows(folder, "a,cat.png,oil.png,my.toml,64,3,noise,9", header="id,content,style,recipe,size,steps,init,style_weight")
    recipe = jobs(request_of(folder, size=128, steps=99))["a"].recipe
    assert (recipe.name, recipe.size, recipe.method.steps) == ("my", 64, 3)
    assert (recipe.method.init, recipe.method.init_noise, recipe.method.style.weight) == ("noise", 0.15, 9.0)


def test_a_row_that_starts_from_noise_gets_some(folder: Path) -> None:
    rows(folder, "a,cat.png,oil.png,tf-tutorial,noise", header="id,content,style,recipe,init")
    method = jobs(request_of(folder))["a"].recipe.method
    assert (method.init, method.init_noise) == ("noise", 0.1)


def test_a_survey_and_a_record_hold_the_whole_recipe(folder: Path) -> None:
    request = request_of(folder, size=64)
    survey = summarize_dry_run(*request[1:], prepare(*request, SETTINGS), SETTINGS)
    assert survey.to_do[0] == "row 2, a: cat x oil, my, 64 x 48, 7 steps"
    plain = jobs(request)["a"].recipe.as_plain()
    assert json.loads(json.dumps(plain))["method"]["steps"] == 7


def test_a_job_made_without_a_manifest_knows_the_presets(folder: Path) -> None:
    source = inspect_image(str(folder / "cat.png"), SETTINGS.max_pixels)
    pair = Pair(2, "a", source.uri, (source.uri,), (1.0,))
    for name in PRESETS:
        request = request_of(folder, recipe=name, backbone="vgg16", upscale=True)
        job = build_job(pair, {source.uri: source}, request[2], weights.DEFAULT_BACKBONE)
        assert job.recipe == override(PRESETS[name], Overrides(precision="float32"))
