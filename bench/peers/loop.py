"""Interface of a peer: a step to time, an objective to compare, an image; and a script to stylize one pair."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nst_tasks.images import codec
from nst_tasks.images.resize import fit_size, resize
from nst_tasks.inputs import weights


class Loop(NamedTuple):
    """A peer's loop from its first step on. Images are (H, W, 3) float32 in [0, 1]."""

    step: Callable[[], object]
    """Update the image once and return the loss before the update, as a scalar of its framework."""
    loss: Callable[[np.ndarray], float]
    """Return the objective's value at an image."""
    image: Callable[[], np.ndarray]
    """Return the current image."""


def load_resized(path: str | Path, size: int, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image, resized to this longest side or stretched to this (height, width)."""
    picture = codec.decode(Path(path).read_bytes(), 10**9)
    return resize(picture, *(shape or fit_size(*picture.rgb.shape[:2], size, upscale=True))).rgb


def run_script(
    start: Callable[..., Loop], parser: argparse.ArgumentParser, arguments: Sequence[str], stretch: bool = False
) -> None:
    """Stylize one pair as the peer's own script does; print losses, the first included, and the mean seconds of a later step.

    Args:
        parser: Parser without arguments yet.
        stretch: Resize the style to the content's shape; otherwise it keeps its own proportions.
    """
    parser.add_argument("content")
    parser.add_argument("style")
    parser.add_argument("out")
    parser.add_argument("--size", type=int, default=256, help="longest side, in pixels")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args(arguments)
    content = load_resized(args.content, args.size)
    style = load_resized(args.style, args.size, content.shape[:2] if stretch else None)
    loop = start(weights.load(weights.DEFAULT_BACKBONE, None), content, style)
    print(f"step 0: loss {float(loop.step()):.6g}", flush=True)
    start_time = time.perf_counter()
    for step in range(1, args.steps):
        loss = loop.step()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {float(loss):.6g}", flush=True)
    seconds = (time.perf_counter() - start_time) / max(args.steps - 1, 1)
    Path(args.out).write_bytes(codec.encode(np.clip(loop.image(), 0.0, 1.0), None, "png", {}))
    print(f"{seconds:.6f} seconds a step")
