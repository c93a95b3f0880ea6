"""Paths outside the allowed roots are refused wherever a manifest, a request or a command names them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from nst_tasks.errors import InputError, ManifestError, PictureError, SettingsError, StorageError
from nst_tasks.inputs.options import RunOptions
from nst_tasks.inputs.readers import LoadedManifest, find_recipe, load_recipes, read_manifest
from nst_tasks.inputs.settings import Settings
from nst_tasks.planning.inspection import inspect_image
from nst_tasks.planning.prepare import prepare
from nst_tasks.storage import access, files
from nst_tasks.storage.access import Access
from tests.support.pictures import encode_flat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write an allowed folder, `in`, with a manifest, pictures and a recipe, and the same files outside of it, in `other`."""
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
        for file in ("cat.png", "oil.png"):
            (tmp_path / name / file).write_bytes(encode_flat("teal"))
        (tmp_path / name / "my.toml").write_text('base = "painterly"\n')
        (tmp_path / name / "m.csv").write_text("content,style\ncat.png,oil.png\n")
    return tmp_path


def make_settings(folder: Path) -> Settings:
    return Settings(allowed_roots=(str(folder / "in"),))


def list_problems(folder: Path, *rows: str, header: str = "content,style") -> list[str]:
    place = str(folder / "in" / "m.csv")
    Path(place).write_text("\n".join([header, *rows, ""]))
    return [str(problem) for problem in read_manifest(place, make_settings(folder).access)[1].problems]


def test_rows_outside_the_roots_are_rejected(folder: Path) -> None:
    (folder / "in" / "link.png").symlink_to(folder / "other" / "cat.png")
    (folder / "in" / "way").symlink_to(folder / "other")
    sentence = "is not below NST_ALLOWED_ROOTS"
    lines = list_problems(
        folder,
        "cat.png,oil.png,,,",
        "../other/cat.png,oil.png,,,",
        "cat.png,oil.png|/etc/passwd,,,",
        "cat.png,oil.png,file:///etc/passwd,,",
        "cat.png,oil.png,,link.png,",
        "cat.png,oil.png,,,way/my.toml",
        "./way/../in/dog.png,oil.png,,,",
        "https://h/a.png?hunter2,oil.png,,,",
        header="content,style,init,mask,recipe",
    )
    assert [line.partition(" (")[0] for line in lines] == [
        f"row 3, column content: ../other/cat.png {sentence}",
        f"row 4, column style: /etc/passwd {sentence}",
        f"row 5, column init: file:///etc/passwd {sentence}",
        f"row 6, column mask: link.png {sentence}",
        f"row 7, column recipe: way/my.toml {sentence}",
        "row 9, column content: https://h/a.png is on the web, "
        "which is not allowed; copy it to a store, or set NST_ALLOW_HTTP=1",
    ]


def test_recipe_file_outside_the_roots_is_not_opened(folder: Path) -> None:
    (folder / "other" / "my.toml").write_text("secret = 1\n")
    (folder / "in" / "m.csv").write_text("content,style,recipe\ncat.png,oil.png,../other/my.toml\ncat.png,oil.png,my.toml\n")
    place, roots = str(folder / "in" / "m.csv"), make_settings(folder).access
    manifest, recipes = load_recipes(place, *read_manifest(place, roots), roots)
    assert [pair.row for pair in manifest.pairs] == [3]
    assert "secret" not in str(manifest.problems)
    assert not any("other" in name for name in recipes)


def test_wrong_recipe_file_does_not_admit_other_rows(folder: Path) -> None:
    """The manifest is parsed again after the problems of its recipe files are known."""
    (folder / "in" / "my.toml").write_text("steps = -1\n")
    (folder / "in" / "m.csv").write_text("content,style,recipe\n../other/cat.png,oil.png,\ncat.png,oil.png,my.toml\n")
    place, roots = str(folder / "in" / "m.csv"), make_settings(folder).access
    assert not load_recipes(place, *read_manifest(place, roots), roots)[0].pairs


def test_manifest_on_a_store_may_not_name_local_files(memory: str, folder: Path) -> None:
    text = f"content,style\n{folder}/in/cat.png,{memory}/oil.png\ncat.png,file:///etc/passwd\ncat.png,pen.png\n".encode()
    files.write(f"{memory}/m.csv", text)
    manifest = read_manifest(f"{memory}/m.csv")[1]
    assert [(problem.row, problem.column) for problem in manifest.problems] == [(2, "content"), (3, "style")]
    assert all("is a path on this machine, which a manifest on a store may not name" in str(line) for line in manifest.problems)
    (folder / "in" / "m.csv").write_bytes(text)
    assert not read_manifest(str(folder / "in" / "m.csv"))[1].problems


def prepare_with(fields: dict[str, Any], settings: Settings) -> LoadedManifest:
    """Prepare a run whose manifest, output and options are given by name."""
    options = {name: value for name, value in fields.items() if name not in ("manifest", "out")}
    return prepare(fields["manifest"], fields["out"], RunOptions(**{"backbone": "tiny"} | options), settings)


@pytest.mark.parametrize("field", ["manifest", "out", "weights", "recipe"])
def test_inputs_outside_the_roots_are_refused(folder: Path, field: str) -> None:
    fields = {"manifest": str(folder / "in" / "m.csv"), "out": str(folder / "in" / "out")}
    prepare_with(fields, make_settings(folder))
    (folder / "other" / "w.h5").write_bytes(b"")
    name = {"manifest": "m.csv", "out": "out", "weights": "w.h5", "recipe": "my.toml"}[field]
    with pytest.raises(InputError) as caught:
        prepare_with({**fields, field: str(folder / "other" / name)}, make_settings(folder))
    place = f"{folder}/other/{name}: is not below NST_ALLOWED_ROOTS ({folder}/in); move it there, or name another place"
    prefix = {
        "out": "--out: the output cannot be written: ",
        "weights": "--weights: ",
        "recipe": "--recipe ",
        "manifest": "manifest ",
    }
    assert str(caught.value) == prefix[field] + place
    assert not (folder / "other" / "out").exists()


def test_output_with_links_outside_the_roots_is_refused(folder: Path) -> None:
    out = folder / "in" / "out"
    out.mkdir()
    (out / "images").symlink_to(folder / "other")
    with pytest.raises(StorageError, match="out/images: is not below NST_ALLOWED_ROOTS"):
        access.check_output(str(out), make_settings(folder).access)
    access.check_output(str(out), Access())
    (out / "images").unlink()
    (out / "images").symlink_to(folder / "in")
    access.check_output(str(out), make_settings(folder).access)


def test_link_swapped_after_reading_is_not_followed(folder: Path) -> None:
    place = folder / "in" / "cat.png"
    assert list_problems(folder, "cat.png,oil.png") == []
    place.unlink()
    place.symlink_to(folder / "other" / "cat.png")
    with pytest.raises(StorageError, match="in/cat.png: is not below NST_ALLOWED_ROOTS"):
        inspect_image(str(place), 10_000, make_settings(folder).access)
    assert inspect_image(str(place), 10_000).height == 60


@pytest.mark.parametrize("field", ["manifest", "out", "weights", "recipe"])
def test_input_with_a_secret_is_refused(memory: str, field: str) -> None:
    files.write(f"{memory}/m.csv", b"content,style\ncat.png,oil.png\n")
    fields = {"manifest": f"{memory}/m.csv", "out": f"{memory}/out"}
    for uri in (f"{memory}/x.toml?token=hunter2", memory.replace("://", "://ann:hunter2@") + "/x.toml"):
        with pytest.raises(InputError) as caught:
            prepare_with({**fields, field: uri}, Settings())
        name = field if field == "manifest" else f"--{field}"
        line = f"{name}: {memory}/x.toml has a password or a query, which Prefect would store; "
        assert any(text.startswith(line) for text in str(caught.value).splitlines())
        assert "hunter2" not in str(caught.value)


def test_sizes_are_checked_before_reading(folder: Path) -> None:
    for name in ("big.csv", "big.png"):
        with (folder / "in" / name).open("wb") as file:
            file.truncate(2**33)  # a hole on the disk; read, it would fill the memory
    with pytest.raises(
        ManifestError, match="big.csv: 8589934592 bytes are more than the 67108864 that a manifest may have; split"
    ):
        read_manifest(str(folder / "in" / "big.csv"))
    sentence = "big.png: 8589934592 bytes are above the limit of 416777216; make it smaller or raise NST_MAX_MEGAPIXELS"
    with pytest.raises(PictureError, match=sentence):
        inspect_image(str(folder / "in" / "big.png"), 100_000_000)


@pytest.mark.parametrize("name", ["pipe", "zero"])
def test_endless_file_is_not_read(folder: Path, name: str) -> None:
    os.mkfifo(folder / "in" / "pipe")
    (folder / "in" / "zero").symlink_to("/dev/zero")
    with pytest.raises(StorageError, match=f"in/{name}: is a device or a pipe, which may have no end; name a file$"):
        inspect_image(str(folder / "in" / name), 10_000)


def test_recipe_outside_the_roots_is_refused(folder: Path) -> None:
    roots = make_settings(folder).access
    assert find_recipe(str(folder / "in" / "my.toml"), roots).name == "my"
    with pytest.raises(SettingsError, match="^recipe .*/other/my.toml: is not below NST_ALLOWED_ROOTS"):
        find_recipe(str(folder / "other" / "my.toml"), roots)


@pytest.mark.parametrize(
    "command",
    [
        "validate {0}/other/m.csv",
        "run {0}/other/m.csv --out {0}/in/out --backbone tiny --dry-run",
        "run {0}/in/m.csv --out {0}/other/out --backbone tiny --dry-run",
        "grid --content {0}/other/*.png --style {0}/in/*.png",
        "grid --content {0}/in/*.png --style {0}/in/../other/*.png",
        "grid --content {0}/in/*.png --style {0}/in/*.png -o {0}/other/x.csv",
        "grid --content {0}/in/*.png --style {0}/in/*.png --recipe {0}/other/my.toml",
        "recipes {0}/other/my.toml",
        "report {0}/other",
        "demo --out {0}/other/demo",
    ],
)
def test_every_command_stays_below_the_roots(folder: Path, command: str) -> None:
    paths = sorted(folder.rglob("*"))
    environment = {"NST_ALLOWED_ROOTS": str(folder / "in")}
    result = CliRunner().invoke(app, command.format(folder).split(), env=environment)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"is not below NST_ALLOWED_ROOTS ({folder}/in); move it there" in result.stderr
    assert sorted(folder.rglob("*")) == paths


def test_commands_below_the_roots_succeed(folder: Path) -> None:
    environment = {"NST_ALLOWED_ROOTS": f"/nowhere|{folder}/in"}
    for command in (
        "validate {0}/in/m.csv --probe",
        "grid --content {0}/in/*.png --style {0}/in/*.png -o {0}/in/x.csv --recipe {0}/in/my.toml",
        "recipes painterly",
        "run {0}/in/m.csv --out {0}/in/out --backbone tiny --dry-run",
    ):
        result = CliRunner().invoke(app, command.format(folder).split(), env=environment)
        assert result.exit_code == 0, result.stderr
