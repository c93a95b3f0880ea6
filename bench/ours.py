"""Our own loop with the interface of the peers: a step to time, an objective to compare, and a script that stylizes one pair.

.venv/bin/python -m bench.ours CONTENT STYLE OUT [--recipe NAME] [--precision mixed] [--size PX] [--steps N]
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nst_tasks import quiet

quiet.import_tensorflow()

import tensorflow as tf

from bench.peers.loop import sized
from bench.rows.row import write_samples
from nst_tasks import hardware, images, presets, weights
from nst_tasks.core import backbones, transfer
from nst_tasks.core.method import Method


@functools.cache
def backbone() -> backbones.Backbone:
    """Return the default backbone, which all measurements use."""
    return backbones.build(weights.DEFAULT, weights.load(weights.DEFAULT, None), turns=hardware.turns())


def method(recipe: str, precision: str) -> Method:
    """Return the method of a recipe in this precision."""
    return replace(presets.find(recipe).method, precision=precision)


def pair(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the content and style images on which steps are timed, each (h, w, 3), resized to this longest side."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_samples(Path(folder))
        return sized(str(pictures["astronaut"]), size), sized(str(pictures["swirls"]), size)


def steps_in_a_round(size: int) -> int:
    """Return the number of steps to time together for an image of this longest side: about one second of work.

    On a GPU a step takes milliseconds; with few steps the overhead of the call would dominate.
    """
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    return max(1, round((180 if on_gpu else 3) * (256 / size) ** 2))


@dataclass
class Ours:
    """A started transfer of one pair at one size."""

    backbone: backbones.Backbone
    method: Method
    targets: transfer.Targets
    state: transfer.TransferState

    def advance(self, steps: int) -> np.ndarray:
        """Run this many steps and return the total loss before each, (steps,)."""
        self.state, terms = transfer.advance(self.backbone, self.method, self.targets, self.state, steps, steps)
        total: np.ndarray = terms[:, 0].sum(axis=1)
        return total


def start(network: backbones.Backbone, method: Method, content: np.ndarray, *styles: np.ndarray, pairs: int = 1) -> Ours:
    """Return a transfer started from the content; content (H, W, 3) and styles (h, w, 3) in [0, 1].

    Args:
        styles: Images blended with equal weights.
        pairs: Batch size; pair k has the content shifted by k pixels.
    """
    statistics = [transfer.style_statistics(network, method, style) for style in styles]
    contents = np.stack([np.roll(content, k, axis=1) for k in range(pairs)])
    targets = transfer.targets(network, method, contents, [statistics] * pairs, [[1.0 / len(styles)] * len(styles)] * pairs)
    return Ours(network, method, targets, transfer.start(method, contents, [0] * pairs))


def main() -> None:
    """Stylize one pair at one level."""
    parser = argparse.ArgumentParser(description="Our loop on one pair, without the flow around it.")
    parser.add_argument("content")
    parser.add_argument("style")
    parser.add_argument("out")
    parser.add_argument("--recipe", default="tf-tutorial")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--size", type=int, default=256, help="longest side, in pixels")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--styles", type=int, default=1, help="blend so many: the style and its quarter turns")
    asked = parser.parse_args()
    content, style = sized(asked.content, asked.size), sized(asked.style, asked.size)
    turned = [np.rot90(style, k) for k in range(asked.styles)]
    ours = start(backbone(), method(asked.recipe, asked.precision), content, *turned)
    ours.advance(asked.steps)
    image, _ = transfer.result(ours.backbone, ours.method, ours.targets, ours.state)
    Path(asked.out).write_bytes(images.encode(np.clip(image.numpy()[0], 0.0, 1.0), None, "png", {}))


if __name__ == "__main__":
    main()
