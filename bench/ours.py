"""Our own loop on one pair, without the flow around it: to time its steps, or as a script.

.venv/bin/python -m bench ours CONTENT STYLE OUT [--recipe NAME] [--precision mixed] [--size PX] [--steps N]
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nst_tasks.engine.runtime import import_tensorflow

import_tensorflow()  # as nst does it, and so before the modules that import it

import tensorflow as tf

from bench.peers.loop import load_resized
from bench.processes import create_parser
from bench.samples import write_samples
from nst_tasks.core import objective, transfer, vgg
from nst_tasks.core.method import Method
from nst_tasks.engine.hardware import detect_flipped_direction
from nst_tasks.images import codec
from nst_tasks.inputs import presets, weights


@functools.cache
def build_backbone() -> vgg.Backbone:
    """Return the default backbone, which all measurements use."""
    return vgg.build(
        weights.DEFAULT_BACKBONE, weights.load(weights.DEFAULT_BACKBONE, None), flipped_direction=detect_flipped_direction()
    )


def build_method(recipe: str, precision: str) -> Method:
    """Return the method of a recipe in this precision."""
    return replace(presets.find_preset(recipe).method, precision=precision)


def load_pair(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the content and style images on which steps are timed, each (h, w, 3), resized to this longest side."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_samples(Path(folder))
        return load_resized(paths["astronaut"], size), load_resized(paths["swirls"], size)


def choose_steps_per_round(size: int) -> int:
    """Return the number of steps to time together for an image of this longest side: about one second of work.

    On a GPU a step takes milliseconds; with few steps the overhead of the call would dominate.
    """
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    return max(1, round((180 if on_gpu else 3) * (256 / size) ** 2))


@dataclass
class Transfer:
    """Transfer of a batch at one size, from its start on."""

    backbone: vgg.Backbone
    method: Method
    targets: objective.Targets
    state: transfer.TransferState

    def advance(self, steps: int) -> np.ndarray:
        """Run this many steps and return the first pair's total loss before each, (steps,)."""
        self.state, terms = transfer.advance(self.backbone, self.method, self.targets, self.state, steps, steps)
        losses: np.ndarray = terms[:, 0].sum(axis=1)
        return losses


def start(backbone: vgg.Backbone, method: Method, content: np.ndarray, *styles: np.ndarray, pairs: int = 1) -> Transfer:
    """Return a transfer started from the content; content (H, W, 3) and styles (h, w, 3) in [0, 1].

    Args:
        styles: Images blended with equal weights.
        pairs: Batch size; pair k has the content shifted by k pixels.
    """
    statistics = [transfer.style_statistics(backbone, method, style) for style in styles]
    contents = np.stack([np.roll(content, k, axis=1) for k in range(pairs)])
    targets = transfer.build_targets(
        backbone, method, contents, [statistics] * pairs, [[1.0 / len(styles)] * len(styles)] * pairs
    )
    return Transfer(backbone, method, targets, transfer.start(method, contents, [0] * pairs))


def main(arguments: Sequence[str]) -> None:
    """Stylize one pair at one level."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("content")
    parser.add_argument("style")
    parser.add_argument("out")
    parser.add_argument("--recipe", default="tf-tutorial")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--size", type=int, default=256, help="longest side, in pixels")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--styles", type=int, default=1, help="blend so many: the style and its quarter turns")
    args = parser.parse_args(arguments)
    content, style = load_resized(args.content, args.size), load_resized(args.style, args.size)
    styles = [np.rot90(style, k) for k in range(args.styles)]
    loop = start(build_backbone(), build_method(args.recipe, args.precision), content, *styles)
    loop.advance(args.steps)
    image, _ = transfer.compute_result(loop.backbone, loop.method, loop.targets, loop.state)
    Path(args.out).write_bytes(codec.encode(np.clip(image.numpy()[0], 0.0, 1.0), None, "png", {}))
