"""Jobs over pictures in a folder, for the tests of what is done with them."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nst_tasks.core.method import Adam, ContentLoss, Method, Pyramid, StyleLoss, TotalVariation
from nst_tasks.engine import devices, run_batch
from nst_tasks.images import codec
from nst_tasks.images.picture import Source
from nst_tasks.inputs import weights
from nst_tasks.inputs.jobs import Batch, Job
from nst_tasks.inputs.manifest import Pair
from nst_tasks.inputs.recipe import Recipe
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import claims
from nst_tasks.outputs.layout import CHECKPOINTS_FOLDER, CLAIMS_FOLDER
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.progress import Progress
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri
from tests.support.changes import change_job
from tests.support.transfers import picture

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


def saved(folder: Path, name: str, rgb: np.ndarray, alpha: np.ndarray | None = None) -> Source:
    """A picture (H, W, 3) in [0, 1] as a PNG in the folder, known as an inspection leaves it."""
    path, data = folder / f"{name}.png", codec.encode(rgb, alpha, "png", {})
    path.write_bytes(data)
    return Source(str(path), hashlib.sha256(data).hexdigest(), "1", *rgb.shape[:2])


def job(content: Source, *styles: Source, **fields: Any) -> Job:
    """A job of the light recipe at 48 x 64."""
    weights_of_styles = (1.0 / len(styles),) * len(styles)
    pair = Pair(2, "a", content.uri, tuple(style.uri for style in styles), weights_of_styles)
    plain = Job(
        pair, LIGHT, content, styles, init=None, mask=None, upscale=False, height=48, width=64, weights_sha256=TINY_SHA256
    )
    return change_job(plain, **fields)


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


def check_two_rows_of_one_pair(folder: Path, out: str) -> None:
    """Two rows of one pair that a run does at the same time: both succeed with the same picture, and nothing is left behind."""
    first = two_jobs(folder)[0]
    run = run_into(out, exclusive=True, checkpoint_steps=1)

    def made(id: str) -> Outcome:
        while not (outcomes := run_batch.stylize(Batch((change_job(first, id=id),)), run)):
            time.sleep(0.1)  # the other one has the claim just now: the flow, too, tries it again
        return outcomes[0]

    with ThreadPoolExecutor(2) as threads:
        with devices.acquire(Progress()):  # which both wait for, each with its claim
            doing = [threads.submit(made, id) for id in "ab"]
            until = time.monotonic() + 60
            while not (found := claims.current_claims(out)) or found[first.key].generation < 1:
                assert time.monotonic() < until
                time.sleep(0.01)
        done = [future.result(timeout=60) for future in doing]
    assert [(one.id, one.status, one.error) for one in done] == [(id, Status.SUCCEEDED, "") for id in "ab"]
    one, other = (codec.decode(files.read(join_uri(out, each.image)), 10**6).rgb for each in done)
    np.testing.assert_array_equal(one, other)
    assert done[0].losses == done[1].losses
    assert files.list_files(join_uri(out, CLAIMS_FOLDER)) == files.list_files(join_uri(out, CHECKPOINTS_FOLDER)) == {}
