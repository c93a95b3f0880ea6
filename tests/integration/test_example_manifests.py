"""The example manifests run as they are, on the sample pictures; the demo's with real features."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pandas as pd
import pytest

from flows.console import run_flow
from flows.demo import write_samples
from manifests.samples import samples
from nst_tasks.inputs import manifest, presets
from nst_tasks.inputs.columns import COLUMNS
from nst_tasks.inputs.options import RunOptions
from nst_tasks.outputs import outcome
from nst_tasks.outputs.report import SUMMARY_COLUMNS, build_summary
from nst_tasks.storage import files

pytestmark = pytest.mark.usefixtures("flow_api")

EXAMPLES = {path.name: path.read_bytes() for path in resources.files("manifests").iterdir() if path.name.endswith(".csv")}


def test_the_example_of_every_column_has_every_column_and_runs(tmp_path: Path) -> None:
    parsed_manifest = manifest.parse(EXAMPLES["every-column.csv"], "/")
    assert set(parsed_manifest.header) == set(COLUMNS) - {"problem"}
    assert {pair.keep_color for pair in parsed_manifest.pairs} == {"", "luminance", "match"}
    assert {column for pair in parsed_manifest.pairs for column, _ in pair.image_uris} == {"content", "style", "init", "mask"}
    for name, data in samples().items():
        files.write(str(tmp_path / name), data)
    (tmp_path / "m.csv").write_bytes(EXAMPLES["every-column.csv"])
    options = RunOptions(backbone="tiny", size=96, steps=2)
    result = run_flow(str(tmp_path / "m.csv"), str(tmp_path / "out"), options)
    assert result.message == "8 succeeded, 0 failed, 0 rejected, 0 skipped of 8 rows"
    assert sorted(path.name for path in (tmp_path / "out/images").iterdir()) == [
        "bright-parts.png",
        "from-a-picture.png",
        "from-noise.png",
        "own-luminance.webp",
        "own-palette.png",
        "plain.png",
        "published.jpg",
        "two-styles.png",
    ]


def test_demo_halves_every_style_loss(tmp_path: Path) -> None:
    manifest_path = Path(write_samples(str(tmp_path)))
    text = manifest_path.read_text()
    assert ",240,30," in text
    manifest_path.write_text(text.replace(",240,30,", ",128,8,"))  # smaller and fewer steps, to be quick
    result = run_flow(str(manifest_path), str(tmp_path), RunOptions())
    assert result.message == "5 succeeded, 0 failed, 0 rejected, 0 skipped of 5 rows"
    history = pd.read_parquet(tmp_path / "history")
    for _, of_pair in history.groupby("pair_id"):
        first, last = of_pair["style"].iloc[0], of_pair["style"].iloc[-1]
        assert last < 0.5 * first
        content = of_pair[of_pair.level == of_pair.level.max()]["content"]
        assert content.iloc[-1] < content.iloc[0]
    marker = outcome.from_json((tmp_path / "outcomes/chelsea_swirls.json").read_bytes())
    assert marker.backbone == "vgg16-hed"
    assert max(marker.height, marker.width) == 128


def test_every_recipe_is_found_from_a_manifests_row(tmp_path: Path) -> None:
    manifest_path = Path(write_samples(str(tmp_path))).with_name("recipes.csv")
    rows = [line.split(",") for line in manifest_path.read_text().splitlines()]
    assert {row[3] for row in rows[1:]} == set(presets.PRESETS)
    small = [rows[0]] + [[*row[:4], "64", "0"] for row in rows[1:]]  # without steps, which tests/core takes by every recipe
    manifest_path.write_text("\n".join(",".join(row) for row in small))
    result = run_flow(str(manifest_path), str(tmp_path), RunOptions(backbone="tiny"))
    assert result.message == "10 succeeded, 0 failed, 0 rejected, 0 skipped of 10 rows"
    for name, recipe in presets.PRESETS.items():
        marker = outcome.from_json((tmp_path / f"outcomes/{name}.json").read_bytes())
        assert marker.recipe["source"] == recipe.source
        assert set(marker.quality) == {"style_gap", *outcome.QUALITY_KEYS}
        assert set(marker.quality["style_gap"]) >= {layer for layer, _ in recipe.method.style.layers if layer < "block5"}
    assert list(build_summary([marker]).columns) == list(SUMMARY_COLUMNS)
