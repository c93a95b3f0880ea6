"""Jobs of small pictures, and the runs that do them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nst_tasks.core.method import Adam, ContentLoss, Method, Pyramid, StyleLoss, TotalVariation
from nst_tasks.images.picture import Source
from nst_tasks.inputs import weights
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.manifest import Pair
from nst_tasks.inputs.recipe import Recipe
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from tests.support.changes import change_job
from tests.support.pictures import picture, write_source

LIGHT = Recipe(
    name="light",
    summary="shallow layers and few steps, at two sizes",
    source="these tests",
    differs="",
    size=64,
    method=Method(
        content=ContentLoss((("block2_conv1", 1.0),), 100.0),
        style=StyleLoss((("block1_conv1", 1.0), ("block2_conv1", 1.0)), 1000.0),
        total_variation=TotalVariation(100.0, "l2_mean"),
        optimizer=Adam(0.05, epsilon=1e-3),
        steps=5,
        pyramid=Pyramid(smallest=40, ratio=1.5, coarse_steps=4),
    ),
)
"""At 48 x 64 pixels: four steps at 32 x 43, then five."""

TINY_SHA256 = weights.compute_sha256("tiny", None)


def job(content: Source, *styles: Source, **fields: Any) -> Job:
    """Return a job of the light recipe at 48 x 64, with these fields instead of the usual ones."""
    weights_of_styles = (1.0 / len(styles),) * len(styles)
    pair = Pair(2, "a", content.uri, tuple(style.uri for style in styles), weights_of_styles)
    plain = Job(
        pair, LIGHT, content, styles, init=None, mask=None, upscale=False, height=48, width=64, weights_sha256=TINY_SHA256
    )
    return change_job(plain, **fields)


def run_into(out: Path | str, **fields: Any) -> Run:
    """Return a run into this folder with the tiny backbone, with these fields instead of the usual ones."""
    usual = dict(
        id="run", out=str(out), backbone="tiny", weights=None, weights_sha256=TINY_SHA256, history_every=1, settings=Settings()
    )
    return Run(**{**usual, **fields})


def two_jobs(folder: Path) -> list[Job]:
    """Return two jobs of different contents and styles, whose pictures are written into the folder."""
    contents = [write_source(folder, f"content{k}", picture(k, 48, 64)) for k in (1, 2)]
    styles = [write_source(folder, f"style{k}", picture(k, 72, 60)) for k in (3, 4)]
    return [job(content, style, id=id) for id, content, style in zip("ab", contents, styles, strict=True)]
