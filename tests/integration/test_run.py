"""The whole job on a local disk, against a real Prefect server: what comes out, what is done again, what a failure leaves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nst_tasks.images import codec
from nst_tasks.images.color import luminance
from nst_tasks.images.picture import Picture
from nst_tasks.images.resize import resize
from nst_tasks.outputs import loss_history
from nst_tasks.outputs.outcome import Status
from tests.support.runs import read_losses, read_marker, run, write_shallow_recipe

pytestmark = pytest.mark.usefixtures("flow_api")

TWO_PAIRS = "id,content,style,recipe\na,cat.png,oil.png,\nb,dog.png,ink.png,tf-tutorial\n"


def test_run_writes_images_history_markers_and_report(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(pictures, TWO_PAIRS, out)
    assert (result.name, result.exit_code) == ("Completed", 0)
    assert result.message == "2 succeeded, 0 failed, 0 rejected, 0 skipped of 2 rows"
    for id, recipe in (("a", "painterly"), ("b", "tf-tutorial")):
        data = (out / f"images/{id}.png").read_bytes()
        marker = read_marker(out, id)
        assert codec.read_size(data, 10**6) == (48, 64) == (marker.height, marker.width)
        assert codec.read_metadata(data) == {"nst:key": marker.key, "nst:recipe": recipe, "nst:pair": id}
        assert (marker.status, marker.image_bytes, marker.image_sha256) == (
            Status.SUCCEEDED,
            len(data),
            hashlib.sha256(data).hexdigest(),
        )
        assert marker.content is not None
        assert marker.content.sha256 == hashlib.sha256(Path(marker.content.uri).read_bytes()).hexdigest()
        assert marker.recipe["name"] == recipe
        assert len(marker.weights_sha256) == 64
        assert set(marker.versions) == {"nst", "python", "tensorflow", "numpy", "pillow"}
        assert codec.read_size((out / f"thumbnails/{id}.jpg").read_bytes(), 10**6)[0] == 48

    history = pd.read_parquet(out / "history")
    assert tuple(history.columns) == loss_history.COLUMNS
    assert sorted(history.pair_id.unique()) == ["a", "b"]
    np.testing.assert_allclose(history.total, history["content"] + history["style"] + history["tv"], rtol=1e-6)
    b = history[history.pair_id == "b"]
    assert b.step.tolist() == [0, 1, 2, 3]
    assert b.total.iloc[-1] == pytest.approx(read_marker(out, "b").losses["total"], rel=1e-6)
    a = history[history.pair_id == "a"]
    assert a.total.iloc[-1] < a.total.iloc[0]

    assert result.report is not None
    folder = out / "runs" / result.report.run_id
    assert (folder / "manifest.csv").read_text() == TWO_PAIRS
    summary = pd.read_parquet(folder / "summary.parquet")
    assert summary.id.tolist() == ["a", "b"]
    assert summary.status.tolist() == ["succeeded", "succeeded"]
    record = json.loads((folder / "run.json").read_text())
    assert record["counts"] == {"succeeded": 2, "failed": 0, "rejected": 0, "skipped": 0}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert not list(out.rglob("*.tmp"))
    assert not list(out.glob("checkpoints/*"))


def test_rerun_skips_finished_pairs_and_redoes_changed_ones(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = TWO_PAIRS + "c,dog.png,oil.png,tf-tutorial\n"
    run(pictures, rows, out)
    before = {id: (out / f"images/{id}.png").stat().st_mtime_ns for id in "abc"}

    original_bytes = (pictures / "cat.png").read_bytes()
    entry = (pictures / "cat.png").stat()
    rerun = run(pictures, rows, out)
    assert rerun.message == "0 succeeded, 0 failed, 0 rejected, 3 skipped of 3 rows"
    assert rerun.exit_code == 0
    assert {id: (out / f"images/{id}.png").stat().st_mtime_ns for id in "abc"} == before
    assert rerun.report is not None
    page = (out / "runs" / rerun.report.run_id / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3  # skipped pairs are shown all the same

    # an atomic replacement by the same bytes is another version: opened, found the same, skipped
    (pictures / "new.png").write_bytes(original_bytes)
    (pictures / "new.png").rename(pictures / "cat.png")
    assert (pictures / "cat.png").stat().st_ino != entry.st_ino
    assert run(pictures, rows, out).message.startswith("0 succeeded, 0 failed, 0 rejected, 3 skipped")

    # other content, other recipe, a lost picture: each done again, the rest is not
    (pictures / "cat.png").write_bytes((pictures / "ink.png").read_bytes())
    assert run(pictures, rows, out).message.startswith("1 succeeded, 0 failed, 0 rejected, 2 skipped")
    assert read_marker(out, "a").content.sha256 == hashlib.sha256((pictures / "ink.png").read_bytes()).hexdigest()  # type: ignore[union-attr]
    changed = rows.replace("b,dog.png,ink.png,tf-tutorial", "b,dog.png,ink.png,painterly")
    assert run(pictures, changed, out).message.startswith("1 succeeded, 0 failed, 0 rejected, 2 skipped")
    (out / "images/c.png").unlink()
    assert run(pictures, changed, out).message.startswith("1 succeeded, 0 failed, 0 rejected, 2 skipped")


def test_finished_pictures_are_not_opened_by_a_rerun(pictures: Path, tmp_path: Path) -> None:
    """Unreadable bytes of the same size and version would fail if anybody looked."""
    import os

    out = tmp_path / "out"
    run(pictures, TWO_PAIRS, out)
    for path in [*(out / "images").iterdir(), *(out / "history").iterdir()]:
        path.write_bytes(b"x" * path.stat().st_size)
    opened_paths: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and watching:
            opened_paths.append(arguments[0])

    import sys

    watching = True
    sys.addaudithook(watch)
    try:
        assert run(pictures, TWO_PAIRS, out).message.startswith("0 succeeded, 0 failed, 0 rejected, 2 skipped")
    finally:
        watching = False
    touched_paths = {os.path.relpath(path, tmp_path) for path in opened_paths if path.startswith(str(tmp_path))}
    assert any(path.startswith("out/outcomes/") for path in touched_paths)  # the hook sees what is opened
    # the report draws a history's curves, and does without where it is none
    assert not [path for path in touched_paths if path.startswith(("in/", "out/images")) and path != "in/m.csv"]


def test_same_inputs_give_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        run(pictures, TWO_PAIRS, tmp_path / out)
    for id in "ab":
        one, two = ((tmp_path / out / f"images/{id}.png").read_bytes() for out in ("one", "two"))
        assert one == two
        assert read_marker(tmp_path / "one", id).key == read_marker(tmp_path / "two", id).key


def test_a_pairs_bytes_do_not_depend_on_its_neighbours(pictures: Path, tmp_path: Path) -> None:
    run(pictures, TWO_PAIRS, tmp_path / "both")
    run(pictures, "id,content,style,recipe\nb,dog.png,ink.png,tf-tutorial\n", tmp_path / "alone")
    assert (tmp_path / "both/images/b.png").read_bytes() == (tmp_path / "alone/images/b.png").read_bytes()


def test_bad_images_and_rows_spare_the_others(pictures: Path, tmp_path: Path) -> None:
    whole = (pictures / "cat.png").read_bytes()
    (pictures / "torn.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "text.png").write_text("not a picture")
    (pictures / "thin.png").write_bytes(codec.encode(np.zeros((3, 90, 3), np.float32), None, "png", {}))
    rows = (
        "id,content,style,recipe,size\n"
        "good,cat.png,oil.png,,\n"
        "missing,gone.png,oil.png,,\n"
        "torn,torn.png,oil.png,,\n"
        "text,text.png,oil.png,,\n"
        "thin,thin.png,oil.png,,\n"
        "badsize,cat.png,oil.png,,9\n"
        "badrecipe,cat.png,oil.png,painterley,\n"
        "style,cat.png,gone.png|oil.png,,\n"
    )
    out = tmp_path / "out"
    result = run(pictures, rows, out)
    assert result.message == "1 succeeded, 5 failed, 2 rejected, 0 skipped of 8 rows"
    assert (result.name, result.exit_code) == ("Completed with failures", 1)
    assert result.report is not None
    failures = "\n".join(result.report.failures)
    for sentence in (
        "row 3, missing: ",
        "gone.png: does not exist",
        "row 4, torn: ",
        "row 5, text: ",
        "not a picture",
        "row 6, thin: ",
        "leave a side below",
        "row 7, column size: 9 is below the smallest size, 64",
        "row 8, column recipe: ",
        "painterly",
        "row 9, style: ",
    ):
        assert sentence in failures
    assert [path.stem for path in (out / "images").iterdir()] == ["good"]
    assert read_marker(out, "torn").status == Status.FAILED
    folder = out / "runs" / result.report.run_id
    summary = pd.read_parquet(folder / "summary.parquet")
    assert len(summary) == 8
    assert summary.status.value_counts().to_dict() == {"failed": 5, "rejected": 2, "succeeded": 1}
    page = (folder / "report.html").read_text()
    assert "does not exist" in page

    # the rejected rows, corrected, are a manifest that runs as it is
    rejected = (folder / "rejected.csv").read_text()
    corrected = rejected.replace(",9", ",64").replace("painterley", "painterly")
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert run(other, corrected, out).message == "2 succeeded, 0 failed, 0 rejected, 0 skipped of 2 rows"


def test_strict_refuses_the_whole_manifest_and_runs_nothing(pictures: Path, tmp_path: Path) -> None:
    from nst_tasks.errors import InputError

    with pytest.raises(InputError, match="row 3, column content"):
        run(pictures, TWO_PAIRS.replace("b,dog.png", "b,"), tmp_path / "out", strict=True)
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("limit", "state"),
    [
        (None, "Completed with failures"),
        ("1", "Completed with failures"),
        ("0", "Failed"),
        ("50%", "Completed with failures"),
        ("49%", "Failed"),
    ],
)
def test_max_failures_decides_the_final_state(pictures: Path, tmp_path: Path, limit: str | None, state: str) -> None:
    rows = "id,content,style\ngood,cat.png,oil.png\nbad,gone.png,oil.png\n"
    result = run(pictures, rows, tmp_path / "out", steps=0, max_failures=limit)
    assert (result.name, result.exit_code) == (state, 1)
    assert "1 succeeded, 1 failed" in result.message
    assert result.report is not None
    assert Path(result.report.files["summary"]).exists()


def test_a_run_in_which_nothing_succeeds_is_failed(pictures: Path, tmp_path: Path) -> None:
    result = run(pictures, "content,style\ngone.png,oil.png\n", tmp_path / "out")
    assert (result.name, result.exit_code) == ("Failed", 1)


def test_several_styles_formats_alpha_and_kept_colors(pictures: Path, tmp_path: Path) -> None:
    rgb = codec.decode((pictures / "cat.png").read_bytes(), 10**6).rgb
    alpha = np.tile(np.linspace(0, 1, rgb.shape[1], dtype=np.float32), (rgb.shape[0], 1))
    (pictures / "clear.png").write_bytes(codec.encode(rgb, alpha, "png", {}))
    rows = (
        "id,content,style,style_weights,keep_color,format\n"
        "two,cat.png,oil.png|ink.png,3|1,,\n"
        "kept,cat.png,ink.png,,yes,\n"
        "clear,clear.png,ink.png,,,webp\n"
        "jpeg,clear.png,ink.png,,,jpg\n"
    )
    out = tmp_path / "out"
    assert run(pictures, rows, out).message.startswith("4 succeeded")
    assert read_marker(out, "two").style_weights == (0.75, 0.25)
    kept_color = codec.decode((out / "images/kept.png").read_bytes(), 10**6)
    small = resize(Picture(rgb, None), 48, 64).rgb
    chroma = [image - luminance(image)[..., None] for image in (kept_color.rgb, small)]
    assert np.abs(chroma[0] - chroma[1]).mean() < 0.03
    clear = codec.decode((out / "images/clear.webp").read_bytes(), 10**6)
    assert clear.alpha is not None
    assert np.abs(clear.alpha[24] - np.linspace(0, 1, 64)).max() < 0.05
    assert codec.decode((out / "images/jpeg.jpg").read_bytes(), 10**6).alpha is None


def test_weights_sha256_is_part_of_the_key(pictures: Path, tmp_path: Path) -> None:
    from keras import applications, utils

    for seed in (1, 2):
        utils.set_random_seed(seed)
        applications.VGG16(include_top=False, weights=None).save_weights(tmp_path / f"{seed}.weights.h5")
    rows, recipe = "id,content,style\na,cat.png,oil.png\n", write_shallow_recipe(pictures)
    keys = []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.weights.h5"
        result = run(pictures, rows, tmp_path / "out", backbone="vgg16", weights=str(file), recipe=recipe, steps=1)
        assert result.message.startswith("1 succeeded")  # other weights: nothing to skip
        marker = read_marker(tmp_path / "out", "a")
        assert (marker.backbone, marker.weights_sha256) == ("vgg16", hashlib.sha256(file.read_bytes()).hexdigest())
        keys.append(marker.key)
    assert keys[0] != keys[1]


def test_history_every_thins_and_keeps_first_and_last(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = "id,content,style,recipe,steps\na,cat.png,oil.png,tf-tutorial,7\n"
    run(pictures, rows, out, history_every=3)
    assert pd.read_parquet(out / "history").step.tolist() == [0, 3, 6, 7]


def test_upscale_enlarges_and_a_pyramid_tells_its_levels(pictures: Path, tmp_path: Path) -> None:
    rows = "id,content,style,size\na,cat.png,oil.png,128\n"
    run(pictures, rows, tmp_path / "kept")
    run(pictures, rows, tmp_path / "large", upscale=True)
    assert codec.read_size((tmp_path / "kept/images/a.png").read_bytes(), 10**6) == (72, 96)
    assert codec.read_size((tmp_path / "large/images/a.png").read_bytes(), 10**6) == (96, 128)
    history = pd.read_parquet(tmp_path / "large/history")
    assert history.groupby("level").width.first().tolist() == [80, 128]
    assert history.groupby("level").step.max().tolist() == [4, 3]  # 60 coarse steps for 40 fine ones: 4 for 3


def test_rows_of_both_precisions_have_different_keys(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = "id,content,style,recipe,precision\na,cat.png,oil.png,tf-tutorial,{}\nb,cat.png,oil.png,tf-tutorial,mixed\n"
    assert run(pictures, rows.format("float32"), out).message.startswith("2 succeeded")
    plain, mixed = read_marker(out, "a"), read_marker(out, "b")
    assert (plain.precision, mixed.precision) == ("float32", "mixed")
    assert 0 < abs(plain.losses["total"] / mixed.losses["total"] - 1) < 0.02
    one, other = (codec.decode((out / f"images/{id}.png").read_bytes(), 10**6).rgb for id in "ab")
    assert np.abs(one - other).mean() < 2 / 255
    result = run(pictures, rows.format(""), out, precision="mixed", plateau=0.0)
    assert result.message.startswith("1 succeeded, 0 failed, 0 rejected, 1 skipped")
    assert read_marker(out, "a").key == mixed.key != plain.key
    rerun = codec.decode((out / "images/a.png").read_bytes(), 10**6).rgb
    np.testing.assert_array_equal(rerun, other)


def test_zero_steps_give_the_initial_picture(pictures: Path, tmp_path: Path) -> None:
    rows = "id,content,style,recipe,steps\na,cat.png,oil.png,tf-tutorial,0\n"
    run(pictures, rows, tmp_path / "out")
    resized_content = resize(codec.decode((pictures / "cat.png").read_bytes(), 10**6), 48, 64)
    initial = codec.decode((tmp_path / "out/images/a.png").read_bytes(), 10**6)
    np.testing.assert_allclose(initial.rgb, resized_content.rgb, atol=0.5 / 255 + 1e-6)


def test_pair_does_not_depend_on_its_batch(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "p0,cat.png,oil.png,tf-tutorial\np1,dog.png,oil.png,tf-tutorial\np2,cat.png,ink.png,tf-tutorial\n".splitlines(True)

    def stylize_in_batches(out: Path, batch: str, *chosen: str) -> tuple[bytes, pd.DataFrame]:
        monkeypatch.setenv("NST_BATCH", batch)
        run(pictures, "id,content,style,recipe\n" + "".join(chosen), out)
        return (out / "images/p1.png").read_bytes(), read_losses(out, "p1")

    image, history = stylize_in_batches(tmp_path / "alone", "0", rows[1])
    for name, batch in (("four", "4"), ("one", "1")):
        other, other_losses = stylize_in_batches(tmp_path / name, batch, *rows)
        assert other == image
        pd.testing.assert_frame_equal(other_losses, history, check_exact=True)


def test_flow_takes_recipe_files_and_snapshots(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(pictures)  # the run's recipe is found from here, a row's from the manifest's folder
    (pictures / "run.toml").write_text('base = "tf-tutorial"\nsteps = 3\nsize = 64\n')
    (pictures / "my.toml").write_text('base = "painterly"\nsteps = 2\nsize = 64\n')
    rows = "id,content,style,recipe\na,cat.png,oil.png,my.toml\nb,cat.png,oil.png,\nc,cat.png,oil.png,none.toml\n"
    result = run(pictures, rows, out, recipe="run.toml", size=None, steps=None, snapshots=2)
    assert result.exit_code == 1
    assert result.report is not None
    assert result.report.counts == {"succeeded": 2, "failed": 0, "rejected": 1, "skipped": 0}
    recipes = {id: read_marker(out, id).recipe for id in "ab"}
    assert {id: (recipe["name"], recipe["method"]["steps"]) for id, recipe in recipes.items()} == {
        "a": ("my", 2),
        "b": ("run", 3),
    }
    record = json.loads((out / "runs" / result.report.run_id / "run.json").read_text())
    assert (record["request"]["recipe"], record["request"]["snapshots"]) == (str(pictures / "run.toml"), 2)
    assert f"row 4, column recipe: {pictures}/none.toml: does not exist; check the name" in result.report.failures
