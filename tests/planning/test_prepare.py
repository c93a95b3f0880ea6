"""Refusals before a run, detection of finished jobs, and jobs made from rows."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import ValidationError

from nst_tasks.core.method import Plateau
from nst_tasks.core.vgg_layers import min_side
from nst_tasks.engine.hardware import detect_precision
from nst_tasks.errors import InputError, ManifestError, PictureError, SettingsError, StorageError
from nst_tasks.images.picture import Source
from nst_tasks.inputs import presets, weights
from nst_tasks.inputs.columns import COLUMNS
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.manifest import Manifest, Pair, parse
from nst_tasks.inputs.options import RunOptions, parse_checkpoint_interval, parse_failure_limit
from nst_tasks.inputs.presets import PAINTERLY, TF_TUTORIAL
from nst_tasks.inputs.readers import LoadedManifest, read_manifest, read_weights
from nst_tasks.inputs.recipe import Overrides, override
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import outcome
from nst_tasks.outputs.layout import marker_path
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.outcome_store import is_done, load_earlier_outcomes
from nst_tasks.planning.dry_run import DryRunSummary, inspect_inputs, summarize_dry_run
from nst_tasks.planning.inspection import find_known_sources, inspect_image, list_image_uris, probe_images
from nst_tasks.planning.prepare import prepare
from nst_tasks.planning.triage import build_job, triage
from nst_tasks.storage import files
from nst_tasks.storage.access import Access
from nst_tasks.storage.uri import join_uri
from tests.support.examples import example_cells
from tests.support.outcomes import make_outcome
from tests.support.pictures import encode_flat
from tests.support.runs import list_files, refusals, request_of

SETTINGS = Settings(readers=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a manifest of two good rows and their pictures."""
    (tmp_path / "cat.png").write_bytes(encode_flat("teal"))
    (tmp_path / "dog.png").write_bytes(encode_flat("brown", 60, 80))
    (tmp_path / "oil.jpg").write_bytes(encode_flat("navy", 100, 100, "JPEG"))
    (tmp_path / "m.csv").write_text("content,style\ncat.png,oil.jpg\ndog.png,oil.jpg\n")
    return tmp_path


# Reading the manifest


def test_relative_uris_resolve_against_the_manifest_folder(folder: Path, memory: str) -> None:
    data, manifest = read_manifest(str(folder / "m.csv"))
    assert data == (folder / "m.csv").read_bytes()
    assert manifest.pairs[0].content == str(folder / "cat.png")
    files.write(f"{memory}/m.csv", data)
    assert read_manifest(f"{memory}/m.csv")[1].pairs[0].content == f"{memory}/cat.png"


def test_a_manifest_at_the_root_of_its_store() -> None:
    files.write("memory://nst-test.csv", b"content,style\ncat.png,oil.jpg\n")
    try:
        assert read_manifest("memory://nst-test.csv")[1].pairs[0].content == "memory://cat.png"
    finally:
        fsspec.filesystem("memory").rm("nst-test.csv")


def test_error_of_an_unreachable_manifest_has_its_path(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(str(tmp_path / "none.csv"))
    assert str(caught.value) == f"manifest {tmp_path}/none.csv: does not exist; check the name"


def test_manifest_problems_name_their_place(folder: Path) -> None:
    (folder / "m.csv").write_text("contents,style,sise\ncat.png,oil.jpg,9\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(str(folder / "m.csv"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"manifest {folder}/m.csv: column ") for line in lines)


# Preparation


def test_valid_request_is_accepted_and_writes_no_file(folder: Path) -> None:
    paths = list_files(folder)
    inputs = prepare(*request_of(folder), SETTINGS)
    assert [pair.row for pair in inputs.manifest.pairs] == [2, 3]
    assert inputs.manifest_sha256 == hashlib.sha256((folder / "m.csv").read_bytes()).hexdigest()
    assert inputs.weights_sha256 == weights.compute_sha256("tiny", None)
    assert list_files(folder) == paths


def test_every_refusal_is_reported_on_its_own_line(folder: Path) -> None:
    (folder / "m.csv").write_text("content,stile,size\ncat.png,oil.jpg,64\n")
    lines = refusals(
        request_of(folder, recipe="paintrly", backbone="vgg17", size=9, steps=-1, max_failures="many", history_every=0)
    )
    assert lines == [
        f"manifest {folder}/m.csv: column stile is not known; did you mean style?",
        f"manifest {folder}/m.csv: column style is missing; is it the one named stile?",
        "--backbone: 'vgg17' is not known; choose one of vgg16-hed, vgg19, vgg16, tiny",
        "--recipe: 'paintrly' is not known; did you mean painterly?",
        "--size: 9 is not in 64..8192 pixels",
        "--steps: -1 is not in 0..100000",
        "--max-failures: 'many' is not a whole number such as 10, or a percentage such as 5%",
        "--history-every: 0 is not in 1..100000",
    ]
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"recipe": "x"}, f"--recipe: 'x' is not known; choose one of {', '.join(presets.PRESETS)}"),
        ({"backbone": "x"}, "--backbone: 'x' is not known; choose one of vgg16-hed, vgg19, vgg16, tiny"),
        ({"size": 63}, "--size: 63 is not in 64..8192 pixels"),
        ({"size": 8193}, "--size: 8193 is not in 64..8192 pixels"),
        ({"steps": -1}, "--steps: -1 is not in 0..100000"),
        ({"steps": -1, "recipe": "tf-tutorial"}, "--steps: -1 is not in 0..100000"),
        ({"steps": 100_001}, "--steps: 100001 is not in 0..100000"),
        ({"history_every": 100_001}, "--history-every: 100001 is not in 1..100000"),
        ({"pair_timeout": float("nan")}, "--pair-timeout: nan is not a number of seconds above 0"),
        ({"pair_timeout": -1.0}, "--pair-timeout: -1.0 is not a number of seconds above 0"),
        ({"weights": "/none.h5"}, "--weights: /none.h5: does not exist; check the name"),
    ],
)
def test_one_bad_option_is_one_line(folder: Path, fields: dict[str, Any], line: str) -> None:
    assert refusals(request_of(folder, **fields)) == [line]


@pytest.mark.parametrize(
    "fields",
    [{"size": 64}, {"size": 8192}, {"steps": 0}, {"steps": 100_000}, {"history_every": 100_000}, {"max_failures": "0"}],
)
def test_bounds_are_inclusive(folder: Path, fields: dict[str, Any]) -> None:
    assert prepare(*request_of(folder, **fields), SETTINGS).manifest.rows == 2


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("30s", (0, 30.0)),
        ("0.5s", (0, 0.5)),
        (" 50 ", (50, 0.0)),
        ("0", (0, 0.0)),
        ("0s", (0, 0.0)),
        ("100000", (100_000, 0.0)),
    ],
)
def test_checkpoints_are_due_by_steps_or_seconds(text: str, interval: tuple[int, float]) -> None:
    assert parse_checkpoint_interval(text) == interval


@pytest.mark.parametrize("text", ["", "s", "5 min", "-1", "-1s", "nans", "infs", "1e400s", "1.5", "100001", "30S"])
def test_invalid_checkpoint_interval_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_checkpoint_interval(text)
    assert str(caught.value) == (f"--checkpoint-every: {text!r} is not a number of steps such as 50, or of seconds such as 30s")


def test_recipe_with_layers_missing_from_backbone_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = replace(TF_TUTORIAL.method.content, layers=(("block5_conv4", 1.0),))  # only VGG19 has it
    recipe = replace(TF_TUTORIAL, name="deep", method=replace(TF_TUTORIAL.method, content=deep))
    monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, "deep": recipe})
    (line,) = refusals(request_of(folder, recipe="deep"))
    assert line.startswith("--recipe deep: layer block5_conv4: vgg16 has none of that name; choose among block1_conv1")


def test_weights_for_a_backbone_without_them_are_refused(folder: Path) -> None:
    (folder / "some.h5").write_bytes(b"x")
    (line,) = refusals(request_of(folder, weights=str(folder / "some.h5")))
    assert line == "--weights: tiny takes no weights file; leave --weights out or choose vgg19 or vgg16"


def test_bad_rows_are_data_unless_the_request_is_strict(folder: Path) -> None:
    (folder / "m.csv").write_text("content,style,size\ncat.png,oil.jpg,9\ndog.png,oil.jpg,64\ndog.png,,1e9\n")
    inputs = prepare(*request_of(folder), SETTINGS)
    assert ([pair.row for pair in inputs.manifest.pairs], len(inputs.manifest.problems)) == ([3], 3)
    lines = refusals(request_of(folder, strict=True))
    assert [line.split(":")[0] for line in lines] == ["row 2, column size", "row 4, column style", "row 4, column size"]
    # reported together with the other problems
    assert refusals(request_of(folder, strict=True, size=9)) == ["--size: 9 is not in 64..8192 pixels", *lines]


def test_a_manifest_without_a_usable_row_is_refused(folder: Path) -> None:
    (folder / "m.csv").write_text("content,style,size\ncat.png,oil.jpg,9\n,oil.jpg,64\n")
    lines = refusals(request_of(folder))
    assert [line.split(":")[0] for line in lines] == ["row 2, column size", "row 3, column content", "manifest"]
    assert lines[-1] == "manifest: no row is usable; correct the rows above"


def test_unwritable_output_is_reported_before_compute(folder: Path) -> None:
    (line,) = refusals(request_of(folder, out=str(folder / "cat.png")))
    assert line.startswith(f"--out: the output cannot be written: {folder}/cat.png/.nst-probe-")
    assert line.endswith("a file is in the way; choose another path")


def test_read_weights(folder: Path) -> None:
    assert read_weights(None) is None
    assert read_weights(str(folder / "cat.png")) == encode_flat("teal")
    with pytest.raises(SettingsError, match="^--weights: .*does not exist"):
        read_weights(str(folder / "none.h5"))


@pytest.mark.parametrize(
    ("text", "rows", "limit"),
    [
        (None, 10, 9),
        (None, 1, 0),
        (None, 0, 0),
        ("0", 10, 0),
        ("3", 10, 3),
        (" 3 ", 10, 3),
        ("99", 10, 99),
        ("0%", 10, 0),
        ("5%", 10, 0),
        ("5%", 100, 5),
        ("29%", 100, 29),
        ("12.5%", 16, 2),
        ("50%", 3, 1),
        ("100%", 7, 7),
    ],
)
def test_failure_limit(text: str | None, rows: int, limit: int) -> None:
    assert parse_failure_limit(text, rows) == limit


@pytest.mark.parametrize(
    "text", ["", "%", "x", "-1", "-1%", "101%", "2.5", "5%%", "5%x", "nan", "nan%", "inf%", "1e3", "9" * 5000]
)
def test_invalid_failure_limit_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="^--max-failures: .* is not a whole number such as 10, or a percentage"):
        parse_failure_limit(text, 10)


# Finished jobs


def make_success(id: str = "cat_oil", **fields: Any) -> Outcome:
    return make_outcome(id, **{"key": "k", "image_bytes": 5, "history_bytes": 7} | fields)


def publish(out: str, *outcomes: Outcome, image: bytes = b"image", history: bytes = b"history") -> None:
    for record in outcomes:
        if record.status == Status.SUCCEEDED:
            files.write(join_uri(out, record.image), image)
            files.write(join_uri(out, record.history), history)
        files.write(join_uri(out, marker_path(record.id)), outcome.to_json(record))


@pytest.fixture(params=["local", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    return f"{memory}/out" if request.param == "memory" else str(tmp_path / "out")


def test_missing_output_has_no_outcomes(out: str) -> None:
    assert load_earlier_outcomes(out, ["cat_oil"], 4) == ({}, [])


def test_markers_of_the_given_ids_are_loaded(out: str) -> None:
    failure = Outcome(id="elk", row=4, status=Status.FAILED, error="x")
    publish(out, make_success(), make_success("dog_oil"), failure, make_success("other"))
    outcomes, warnings = load_earlier_outcomes(out, ["cat_oil", "dog_oil", "elk", "new"], 4)
    assert outcomes == {"cat_oil": make_success(), "dog_oil": make_success("dog_oil"), "elk": failure}
    assert warnings == []


@pytest.mark.parametrize("path", ["images/cat_oil.png", "history/cat_oil.parquet"])
def test_a_marker_without_its_files_does_not_count(tmp_path: Path, path: str) -> None:
    publish(str(tmp_path), make_success(), make_success("dog_oil"))
    (tmp_path / path).unlink()
    outcomes, warnings = load_earlier_outcomes(str(tmp_path), ["cat_oil", "dog_oil"], 4)
    assert list(outcomes) == ["dog_oil"]
    assert warnings == ["outcomes/cat_oil.json: ignored, its picture or history is missing or of another size"]


@pytest.mark.parametrize("files", [{"image": b"imag"}, {"history": b"histories"}])
def test_a_marker_beside_files_of_another_size_does_not_count(out: str, files: dict[str, bytes]) -> None:
    publish(out, make_success(), **files)
    outcomes, warnings = load_earlier_outcomes(out, ["cat_oil"], 4)
    assert (outcomes, len(warnings)) == ({}, 1)


def test_image_of_another_format_does_not_count(out: str) -> None:
    publish(out, make_success(), make_success("dog_oil"))
    files.write(join_uri(out, "outcomes/cat_oil.json"), outcome.to_json(make_success(image="images/cat_oil.jpg")))
    assert list(load_earlier_outcomes(out, ["cat_oil", "dog_oil"], 4)[0]) == ["dog_oil"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        outcome.to_json(make_success())[:100],
        outcome.to_json(make_success()).replace(b'"images/cat_oil.png"', b"5"),
    ],
)
def test_a_damaged_marker_is_a_warning(out: str, data: bytes) -> None:
    publish(out, make_success(), make_success("dog_oil"))
    files.write(join_uri(out, "outcomes/cat_oil.json"), data)
    outcomes, (warning,) = load_earlier_outcomes(out, ["cat_oil", "dog_oil"], 4)
    assert list(outcomes) == ["dog_oil"]
    assert warning.startswith("outcomes/cat_oil.json: ignored, ")


def test_a_job_is_done_only_by_a_success_with_its_own_key(folder: Path) -> None:
    job = make_job(folder)
    assert is_done(job, {job.id: make_success(job.id, key=job.key)})
    assert not is_done(job, {})
    assert not is_done(job, {job.id: make_success(job.id, key="another")})
    assert not is_done(job, {job.id: make_success(job.id, key=job.key, status=Status.FAILED)})
    assert not is_done(job, {"another": make_success("another", key=job.key)})


# Pictures


def test_inspect_reads_identity_and_size(folder: Path) -> None:
    place = str(folder / "cat.png")
    entry = files.stat(place)
    assert entry is not None
    assert inspect_image(place, 10_000) == Source(place, hashlib.sha256(encode_flat("teal")).hexdigest(), entry.version, 60, 80)


def test_inspect_refuses_with_the_place(folder: Path, memory: str) -> None:
    with pytest.raises(PictureError, match=r"cat\.png: 0\.0048 megapixels \(80 x 60\) is above the limit of 0\.0047"):
        inspect_image(str(folder / "cat.png"), 4700)
    with pytest.raises(PictureError, match=r"m\.csv: not a picture"):
        inspect_image(str(folder / "m.csv"), 10_000)
    with pytest.raises(StorageError, match=r"none\.png: does not exist"):
        inspect_image(str(folder / "none.png"), 10_000)
    files.write(f"{memory}/a.png?token=SECRET", b"no picture")
    with pytest.raises(PictureError) as caught:
        inspect_image(f"{memory}/a.png?token=SECRET", 10_000)
    assert str(caught.value).startswith(f"{memory}/a.png: not a picture")
    assert "SECRET" not in str(caught.value)


def test_known_sources_are_reused_while_unchanged(folder: Path) -> None:
    cat, dog, oil = (inspect_image(str(folder / name), 10_000) for name in ("cat.png", "dog.png", "oil.jpg"))
    earlier = [
        make_success(content=cat, styles=(oil,)),
        make_success("dog_oil", content=dog, styles=(oil,)),
        make_success("old"),
    ]
    uris = [cat.uri, dog.uri, oil.uri, str(folder / "new.png")]
    assert find_known_sources(uris, earlier, 4) == {cat.uri: cat, dog.uri: dog, oil.uri: oil}
    assert find_known_sources([oil.uri], earlier, 4) == {oil.uri: oil}
    files.write(cat.uri, encode_flat("teal"))  # the same bytes, written again
    (folder / "dog.png").unlink()
    assert find_known_sources(uris, earlier, 4) == {oil.uri: oil}


class VersionlessStore(fsspec.AbstractFileSystem):
    """Store that reports only the size of an object, as some web servers do."""

    protocol = "versionless"

    def info(self, path: str, **options: object) -> dict[str, Any]:
        return {"name": path, "size": len(encode_flat("teal")), "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        return encode_flat("teal")


fsspec.register_implementation("versionless", VersionlessStore, clobber=True)


def test_known_masks_and_initial_pictures_are_reused(folder: Path) -> None:
    cat, dog = (inspect_image(str(folder / name), 10_000) for name in ("cat.png", "dog.png"))
    assert find_known_sources([cat.uri, dog.uri], [make_success(init=cat, mask=dog)], 4) == {cat.uri: cat, dog.uri: dog}


def test_source_without_a_version_is_never_reused() -> None:
    cat = inspect_image("versionless://cat.png", 10_000, Access(("versionless://cat.png",)))
    assert (cat.version, cat.height) == ("", 60)
    assert find_known_sources([cat.uri], [make_success(content=cat)], 4) == {}


def test_known_source_is_found_by_redacted_uri(memory: str) -> None:
    place = f"{memory}/cat.png?token=1"
    files.write(place, encode_flat("teal"))
    cat = inspect_image(place, 10_000)
    assert cat.redact_uri().uri == f"{memory}/cat.png"
    assert find_known_sources([place], [make_success(content=cat.redact_uri())], 4) == {place: cat}


def test_probe_names_each_bad_picture_once_with_its_first_row(folder: Path) -> None:
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "m.csv").write_text(
        "content,style\ncat.png,oil.jpg|bad.jpg\nnone.png,bad.jpg\ndog.png,oil.jpg\nbad.jpg,none.png\n"
    )
    _, manifest = read_manifest(str(folder / "m.csv"))
    first, second = probe_images(manifest.pairs, SETTINGS)
    assert first.startswith(f"row 2, column style: {folder}/bad.jpg: not a picture")
    assert second == f"row 3, column content: {folder}/none.png: does not exist; check the name"


def test_probe_opens_masks_and_initial_pictures_too(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "m.csv").write_text("content,style,init,mask\ncat.png,oil.jpg,noise,none.png\ndog.png,oil.jpg,bad.png,cat.png\n")
    _, manifest = read_manifest(str(folder / "m.csv"))
    first, second = probe_images(manifest.pairs, SETTINGS)
    assert first == f"row 2, column mask: {folder}/none.png: does not exist; check the name"
    assert second.startswith(f"row 3, column init: {folder}/bad.png: not a picture")


def test_every_picture_is_listed_once() -> None:
    pairs = [
        Pair(2, "a", "/c.png", ("/s.png", "/t.png"), (0.5, 0.5), init="/i.png", mask="/m.png"),
        Pair(3, "b", "/i.png", ("/s.png",), (1.0,), overrides=Overrides(init="noise")),
    ]
    assert list_image_uris(pairs) == ["/c.png", "/i.png", "/m.png", "/s.png", "/t.png"]


# Jobs


CAT = Source("/in/cat.png", "c", "1", 60, 80)
OIL = Source("/in/oil.jpg", "o", "1", 100, 100)
PAIR = Pair(2, "cat_oil", CAT.uri, (OIL.uri,), (1.0,))
SOURCES = {CAT.uri: CAT, OIL.uri: OIL}


def make_pair(**overrides: Any) -> Pair:
    return replace(PAIR, overrides=Overrides(**overrides))


FLOAT32_RECIPE = override(PAINTERLY, Overrides(precision="float32"))
"""The default recipe on machines without fast bfloat16."""


def make_job(folder: Path, pair: Pair = PAIR, **fields: Any) -> Job:
    return build_job(pair, SOURCES, request_of(folder, **fields)[2], "w")


def test_a_row_becomes_a_job(folder: Path) -> None:
    pair = replace(PAIR, seed=7, keep_color="match", format="jpg", styles=(OIL.uri, CAT.uri), style_weights=(0.25, 0.75))
    job = make_job(folder, pair, upscale=True)
    assert (job.id, job.row, job.content, job.styles) == ("cat_oil", 2, CAT, (OIL, CAT))
    assert (job.pair.style_weights, job.pair.seed, job.pair.keep_color, job.pair.format) == ((0.25, 0.75), 7, "match", "jpg")
    assert (job.recipe, job.upscale, job.weights_sha256) == (FLOAT32_RECIPE, True, "w")
    assert (job.width, job.height) == (512, 384)
    assert (job.init, job.mask) == (None, None)


def test_result_is_not_upscaled_by_default(folder: Path) -> None:
    assert (make_job(folder).width, make_job(folder).height) == (80, 60)
    assert (make_job(folder, size=64).width, make_job(folder, size=64).height) == (64, 48)


@pytest.mark.parametrize(
    ("row", "command_line", "expected"),
    [
        (PAIR, {}, ("painterly", 512, PAINTERLY.method.steps)),
        (PAIR, {"recipe": "tf-tutorial"}, ("tf-tutorial", 512, 1000)),
        (PAIR, {"size": 256, "steps": 5}, ("painterly", 256, 5)),
        (PAIR, {"steps": 0}, ("painterly", 512, 0)),
        (replace(PAIR, recipe="tf-tutorial"), {}, ("tf-tutorial", 512, 1000)),
        (replace(PAIR, recipe="tf-tutorial"), {"recipe": "painterly"}, ("tf-tutorial", 512, 1000)),
        (replace(PAIR, recipe="tf-tutorial"), {"size": 256, "steps": 5}, ("tf-tutorial", 256, 5)),
        (make_pair(size=128, steps=0), {"size": 256, "steps": 5}, ("painterly", 128, 0)),
        (make_pair(size=128), {"size": 256, "steps": 5}, ("painterly", 128, 5)),
    ],
)
def test_row_precedes_run_and_run_precedes_recipe(
    folder: Path, row: Pair, command_line: dict[str, Any], expected: tuple[str, int, int]
) -> None:
    recipe = make_job(folder, row, **command_line).recipe
    assert (recipe.name, recipe.size, recipe.method.steps) == expected


@pytest.mark.parametrize(
    ("row", "command_line", "recipe", "expected"),
    [
        (None, None, "painterly", "auto"),
        (None, None, "tf-tutorial", "float32"),
        (None, "auto", "tf-tutorial", "auto"),
        ("mixed", "float32", "painterly", "mixed"),
        ("auto", "mixed", "tf-tutorial", "auto"),
        (None, "mixed", "painterly", "mixed"),
    ],
)
@pytest.mark.parametrize("auto", ["float32", "mixed"])
def test_precision_comes_from_row_run_or_recipe(
    folder: Path, row: Any, command_line: Any, recipe: str, expected: str, auto: Any
) -> None:
    pair, request = (
        replace(make_pair(precision=row), recipe=recipe),
        request_of(folder, precision=command_line, backbone="vgg16-hed"),
    )
    job = build_job(pair, SOURCES, request[2], "w", auto_precision=auto)
    assert job.recipe.method.precision == (auto if expected == "auto" else expected)


def test_plateau_of_row_precedes_run_and_0_is_none(folder: Path) -> None:
    def get_plateau(row: float | None, command_line: float | None) -> Plateau | None:
        return make_job(folder, make_pair(plateau=row), plateau=command_line).recipe.method.plateau

    assert get_plateau(None, None) is None
    assert get_plateau(None, 0.02) == Plateau(tolerance=0.02)
    assert get_plateau(0.1, 0.02) == Plateau(tolerance=0.1)
    assert get_plateau(0.0, 0.02) is None
    with pytest.raises(InputError, match="^--plateau: 1.5 is not a share between 0 and 1; take one such as 0.01$"):
        prepare(*request_of(folder, plateau=1.5), SETTINGS)


def list_keys(folder: Path, precision: str, auto: str | None = None) -> list[str]:
    request = request_of(folder, precision=precision, size=64)
    inputs = prepare(*request, SETTINGS)
    inputs = replace(inputs, auto_precision=auto) if auto else inputs
    return [job.key for job in inspect_inputs(*request[1:], inputs, SETTINGS).rows.to_do]


def test_auto_precision_has_the_key_of_its_resolution(folder: Path) -> None:
    assert list_keys(folder, "auto") == list_keys(folder, detect_precision())
    for precision in ("float32", "mixed"):
        assert list_keys(folder, "auto", precision) == list_keys(folder, precision)
    assert not {*list_keys(folder, "float32")} & {*list_keys(folder, "mixed")}


OVERRIDES = {
    "size": 300, "steps": 7, "init": "noise", "content_weight": 2.0, "style_weight": 3.0, "tv_weight": 4.0,
    "precision": "mixed", "plateau": 0.1,
}  # fmt: skip


def test_equal_rows_share_one_recipe(folder: Path) -> None:
    """Checked with rows that differ in each column of a recipe."""
    pairs = [PAIR, replace(PAIR, recipe="gatys-2016"), *(make_pair(**{column: value}) for column, value in OVERRIDES.items())]
    rows = [replace(pair, id=f"{k}", row=k) for k, pair in enumerate([*pairs, *pairs])]
    inputs = LoadedManifest(
        Manifest((*rows,), (), (), (), len(rows)), b"", "w", presets.PRESETS, exclusive=True, auto_precision="float32"
    )
    jobs = triage(inputs, SOURCES, request_of(folder)[2], {}).to_do
    assert [job.key for job in jobs] == [make_job(folder, pair).key for pair in rows]
    assert len({job.key for job in jobs}) == len({id(job.recipe) for job in jobs}) == len(pairs)
    for job, copy in zip(jobs[: len(pairs)], jobs[len(pairs) :], strict=True):
        assert job.recipe is copy.recipe


@pytest.mark.parametrize("column", sorted({*COLUMNS} - {"content", "style", "id", "problem"}))
def test_every_column_of_a_row_decides_its_key(column: str) -> None:
    cells = ["", *example_cells()[column]]
    rows = "".join(f"{k},cat.png,oil.jpg|ink.jpg,{cell}\n" for k, cell in enumerate(cells))
    pairs = parse(f"id,content,style,{column}\n{rows}".encode(), "/in").pairs
    sources = {uri: Source(uri, uri, "1", 60, 80) for uri in list_image_uris(pairs)}
    plain_key, *other_keys = (build_job(pair, sources, RunOptions(backbone="tiny"), "w").key for pair in pairs)
    assert len(pairs) == len(cells) and {*other_keys} != {plain_key}


def test_result_counts_only_in_its_own_precision(folder: Path) -> None:
    plain, mixed = (make_job(folder, make_pair(precision=precision)) for precision in ("float32", "mixed"))
    outcomes = {plain.id: Outcome(plain.id, plain.row, Status.SUCCEEDED, key=plain.key)}
    assert (is_done(plain, outcomes), is_done(mixed, outcomes)) == (True, False)


@pytest.mark.parametrize(("precision", "expected"), [("auto", "done"), ("float32", "to do"), ("mixed", "done")])
def test_auto_result_of_another_machine_counts(folder: Path, precision: str, expected: str) -> None:
    request = request_of(folder, precision=precision)
    inputs = LoadedManifest(
        Manifest((PAIR,), (), (), (), 1), b"", "w", presets.PRESETS, exclusive=True, auto_precision="float32"
    )
    elsewhere = triage(replace(inputs, auto_precision="mixed"), SOURCES, request_of(folder, precision="mixed")[2], {}).to_do[0]
    outcomes = {elsewhere.id: Outcome(elsewhere.id, elsewhere.row, Status.SUCCEEDED, key=elsewhere.key)}
    rows = triage(inputs, SOURCES, request[2], outcomes)
    assert ([*rows.done], len(rows.to_do)) == (([elsewhere], 0) if expected == "done" else ([], 1))
    (fresh,) = triage(inputs, SOURCES, request[2], {}).to_do
    assert fresh.recipe.method.precision == ("mixed" if precision == "mixed" else "float32")


def test_unknown_precision_is_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="precision"):
        request_of(folder, precision="half")


def test_a_rows_weights_replace_the_recipes(folder: Path) -> None:
    method = make_job(folder, make_pair(content_weight=0.0, style_weight=2.0, tv_weight=3.0)).recipe.method
    assert (method.content.weight, method.style.weight, method.total_variation.weight) == (0.0, 2.0, 3.0)
    method = make_job(folder, make_pair(style_weight=2.0)).recipe.method
    assert (method.content.weight, method.style.weight, method.total_variation.weight) == (
        PAINTERLY.method.content.weight,
        2.0,
        PAINTERLY.method.total_variation.weight,
    )


def test_mask_and_init_image_go_to_the_job(folder: Path) -> None:
    job = make_image_job(folder, init=(120, 160), mask=(30, 40))
    assert (job.init, job.mask) == (replace(SKY, uri="/in/init.png"), replace(SKY, uri="/in/mask.png", height=30, width=40))
    assert job.recipe == FLOAT32_RECIPE
    plain = make_job(folder)
    others = [make_image_job(folder, **{column: (120, 160)}) for column in ("init", "mask")]
    assert len({plain.key, job.key, *(other.key for other in others)}) == 4
    style_job = make_job(folder, make_pair(init="style"))
    assert (style_job.init, style_job.recipe.method.init, plain.recipe.method.init) == (None, "style", "content")


SKY = Source("/in/sky.png", "s", "1", 120, 160)


def make_image_job(folder: Path, content: Source = CAT, **sizes: tuple[int, int]) -> Job:
    """Make the job of a row with pictures of these heights and widths as `init` or `mask`."""
    images = {column: replace(SKY, uri=f"/in/{column}.png", height=h, width=w) for column, (h, w) in sizes.items()}
    pair = replace(PAIR, **{column: source.uri for column, source in images.items()})
    sources = {**SOURCES, CAT.uri: content, **{source.uri: source for source in images.values()}}
    return build_job(pair, sources, request_of(folder)[2], "w")


@pytest.mark.parametrize("column", ["init", "mask"])
def test_mask_and_init_must_match_content_proportions(folder: Path, column: str) -> None:
    for size in ((60, 80), (3000, 4000), (15, 20), (600, 806), (14, 20)):
        make_image_job(folder, **{column: size})
    with pytest.raises(PictureError) as caught:
        make_image_job(folder, **{column: (80, 60)})
    assert str(caught.value) == (
        f"/in/{column}.png: 60 x 80 pixels have not the proportions of the content's 80 x 60; "
        f"give for {column} a picture framed as the content, of any size"
    )
    with pytest.raises(PictureError, match=f"^/in/{column}.png: 811 x 600 pixels"):
        make_image_job(folder, replace(CAT, height=600, width=800), **{column: (600, 811)})


def test_mask_may_be_below_the_smallest_network_side(folder: Path) -> None:
    assert make_image_job(folder, mask=(3, 4), init=(3, 4)).mask is not None


@pytest.mark.parametrize("column", ["init", "mask"])
def test_mask_or_init_error_fails_its_row(folder: Path, column: str) -> None:
    failure = StorageError("/in/sky.png: does not exist; check the name")
    with pytest.raises(StorageError) as caught:
        build_job(replace(PAIR, **{column: SKY.uri}), {**SOURCES, SKY.uri: failure}, request_of(folder)[2], "w")
    assert caught.value is failure


def test_image_error_fails_the_rows_that_use_it(folder: Path) -> None:
    failure = PictureError("/in/oil.jpg: not a picture")
    with pytest.raises(PictureError) as caught:
        build_job(PAIR, {CAT.uri: CAT, OIL.uri: failure}, request_of(folder)[2], "w")
    assert caught.value is failure


LEAST = min_side(PAINTERLY.method.layers)


def test_content_too_small_for_the_network_is_refused(folder: Path) -> None:
    narrow = replace(CAT, uri="memory://in/narrow.png?token=SECRET", height=LEAST - 1, width=300)
    pair = replace(PAIR, content=narrow.uri)
    with pytest.raises(PictureError) as caught:
        build_job(pair, {narrow.uri: narrow, OIL.uri: OIL}, request_of(folder)[2], "w")
    assert str(caught.value) == (
        f"memory://in/narrow.png: 300 x {LEAST - 1} pixels at size 512 leave a side below {LEAST}, "
        "the least that the network can see; give a larger or less narrow picture, or a larger size"
    )
    enough = replace(narrow, height=LEAST)
    assert build_job(pair, {narrow.uri: enough, OIL.uri: OIL}, request_of(folder)[2], "w").height == LEAST
    # a smaller size makes it too small, and upscaling makes it large enough
    with pytest.raises(PictureError, match="64 x 3 pixels at size 64"):
        build_job(pair, {narrow.uri: enough, OIL.uri: OIL}, request_of(folder, size=64)[2], "w")
    assert build_job(pair, {narrow.uri: narrow, OIL.uri: OIL}, request_of(folder, upscale=True)[2], "w").width == 512


def test_style_too_small_for_the_network_is_refused(folder: Path) -> None:
    with pytest.raises(PictureError, match="^/in/oil.jpg: 5 x 5 pixels at size 512 leave a side below"):
        build_job(PAIR, {CAT.uri: CAT, OIL.uri: replace(OIL, height=5, width=5)}, request_of(folder)[2], "w")


# Dry runs


def dry_run(request: tuple[str, str, RunOptions]) -> DryRunSummary:
    return summarize_dry_run(*request[1:], prepare(*request, SETTINGS), SETTINGS)


def test_dry_run_lists_the_work_and_writes_nothing(folder: Path) -> None:
    times = {name: os.stat(folder / name).st_mtime_ns for name in list_files(folder)}
    summary = dry_run(request_of(folder, size=64))
    assert summary == DryRunSummary(
        rows=2,
        done=0,
        to_do=(
            "row 2, cat_oil: cat x oil, painterly, 64 x 48, 40 steps",
            "row 3, dog_oil: dog x oil, painterly, 48 x 64, 40 steps",
        ),
        problems=(),
        warnings=(),
    )
    assert summary.format_lines()[-1] == "2 rows: 0 done, 2 to do"
    assert {name: os.stat(folder / name).st_mtime_ns for name in list_files(folder)} == times


def test_dry_run_counts_finished_jobs(folder: Path) -> None:
    request = request_of(folder, precision="float32")
    cat, oil = (inspect_image(str(folder / name), 10_000) for name in ("cat.png", "oil.jpg"))
    pair = prepare(*request, SETTINGS).manifest.pairs[0]
    job = build_job(pair, {cat.uri: cat, oil.uri: oil}, request[2], weights.compute_sha256("tiny", None))
    publish(request[1], make_success(job.id, key=job.key, content=cat, styles=(oil,)))
    assert (dry_run(request).done, len(dry_run(request).to_do)) == (1, 1)
    # other steps, or other bytes under the same name, make another job
    assert dry_run((*request[:2], request[2].model_copy(update={"steps": 5}))).done == 0
    files.write(oil.uri, encode_flat("red"))
    assert dry_run(request).done == 0


def test_dry_run_reports_a_mask_that_does_not_fit(folder: Path) -> None:
    (folder / "m.csv").write_text("content,style,mask\ncat.png,oil.jpg,dog.png\ncat.png,oil.jpg,cat.png\n")
    summary = dry_run(request_of(folder))
    (problem,) = summary.problems
    assert problem.startswith("row 2, cat_oil-")
    assert f"{folder}/dog.png: 60 x 80 pixels have not the proportions of the content's 80 x 60; give for mask" in problem
    assert len(summary.to_do) == 1


def test_dry_run_reports_every_problem(folder: Path) -> None:
    (folder / "m.csv").write_text("content,style,size\ncat.png,oil.jpg,\nnone.png,oil.jpg,\ncat.png,oil.jpg,9\n")
    request = request_of(folder)
    files.write(join_uri(request[1], "outcomes/cat_oil.json"), b"damaged")
    summary = dry_run(request)
    assert (summary.rows, summary.done, len(summary.to_do)) == (3, 0, 1)
    (row_4, row_3) = summary.problems
    assert row_4.startswith("row 4, column size: 9 is below the smallest size, 64")
    assert row_3 == f"row 3, none_oil: {folder}/none.png: does not exist; check the name"
    (warning,) = summary.warnings
    assert warning.startswith("outcomes/cat_oil.json: ignored, ")
    assert summary.format_lines() == [warning, row_4, row_3, *summary.to_do, "3 rows: 0 done, 1 to do"]
