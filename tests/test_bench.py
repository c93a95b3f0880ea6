"""The benchmarks measure what they say: peers have our objective, verdicts are arithmetic, docs show the newest results."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from bench import ours
from bench.peers import keras_example, tensorflow_tutorial
from nst_tasks import presets, weights
from nst_tasks.core import backbones

CONTENT, STYLE = np.random.default_rng(1).random((2, 48, 64, 3), np.float32)


@pytest.mark.parametrize(("peer", "recipe"), [(keras_example, "keras-io"), (tensorflow_tutorial, "tf-tutorial")])
def test_a_peer_has_the_objective_and_the_steps_of_our_recipe(peer: ModuleType, recipe: str) -> None:
    arrays = weights.load("tiny", None)
    loop = peer.start(arrays, CONTENT, STYLE)
    mine = ours.start(backbones.build("tiny", arrays), presets.find(recipe).method, CONTENT, STYLE)
    theirs = [float(loop.step()) for _ in range(4)]
    assert mine.advance(4) == pytest.approx(theirs, rel=1e-3)
    assert theirs[3] != pytest.approx(theirs[0], rel=1e-3)  # the image has moved
    assert loop.image() == pytest.approx(mine.state.image.numpy()[0], abs=1e-3)
    assert loop.loss(CONTENT) == pytest.approx(theirs[0], rel=1e-5)
