"""Jobs over pictures in a folder, for the tests of what is done with them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from transfers import picture

from nst_tasks import images, weights
from nst_tasks.batching import Job
from nst_tasks.core.method import Adam, ContentLoss, Method, Pyramid, StyleLoss, TotalVariation
from nst_tasks.recipes import Recipe
from nst_tasks.settings import Run, Settings
from nst_tasks.source import Source

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

TINY_SHA256 = weights.sha256("tiny", None)


def saved(folder: Path, name: str, rgb: np.ndarray, alpha: np.ndarray | None = None) -> Source:
    """A picture (H, W, 3) in [0, 1] as a PNG in the folder, known as an inspection leaves it."""
    path, data = folder / f"{name}.png", images.encode(rgb, alpha, "png", {})
    path.write_bytes(data)
    return Source(str(path), hashlib.sha256(data).hexdigest(), "1", *rgb.shape[:2])


def job(content: Source, *styles: Source, **fields: Any) -> Job:
    """A job of the light recipe at 48 x 64."""
    usual = dict(
        id="a", row=2, content=content, styles=styles, style_weights=(1.0 / len(styles),) * len(styles), recipe=LIGHT, seed=0,
        init=None, keep_color="", mask=None, upscale=False, format="png", height=48, width=64, weights_sha256=TINY_SHA256,
    )  # fmt: skip
    return Job(**{**usual, **fields})


def run_into(out: Path | str, **fields: Any) -> Run:
    """A run with the tiny backbone."""
    usual = dict(
        id="run", out=str(out), backbone="tiny", weights=None, weights_sha256=TINY_SHA256, history_every=1, settings=Settings()
    )
    return Run(**{**usual, **fields})


def two_jobs(folder: Path) -> list[Job]:
    """Two jobs of different contents and styles."""
    contents = [saved(folder, f"content{k}", picture(k, 48, 64)) for k in (1, 2)]
    styles = [saved(folder, f"style{k}", picture(k, 72, 60)) for k in (3, 4)]
    return [job(content, style, id=id) for id, content, style in zip("ab", contents, styles, strict=True)]
