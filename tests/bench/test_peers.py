"""Peers have the objectives and the steps of our recipes, and our loop imports TensorFlow as a run does."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from bench import ours
from bench.peers import keras_example, tensorflow_tutorial
from bench.processes import ROOT
from nst_tasks.core import vgg
from nst_tasks.inputs import presets, weights

CONTENT, STYLE = np.random.default_rng(1).random((2, 48, 64, 3), np.float32)


@pytest.mark.parametrize(("peer", "recipe"), [(keras_example, "keras-io"), (tensorflow_tutorial, "tf-tutorial")])
def test_peer_has_objective_and_steps_of_our_recipe(peer: ModuleType, recipe: str) -> None:
    arrays = weights.load("tiny", None)
    loop = peer.start(arrays, CONTENT, STYLE)
    mine = ours.start(vgg.build("tiny", arrays), presets.find_preset(recipe).method, CONTENT, STYLE)
    theirs = [float(loop.step()) for _ in range(4)]
    assert mine.advance(4) == pytest.approx(theirs, rel=1e-3)
    assert theirs[3] != pytest.approx(theirs[0], rel=1e-3)  # the image has moved
    assert loop.image() == pytest.approx(mine.state.image.numpy()[0], abs=1e-3)
    assert loop.loss(CONTENT) == pytest.approx(theirs[0], rel=1e-5)


def test_our_loop_does_not_import_keras() -> None:
    program = "import sys, bench.ours; print(sorted({'keras', 'tensorflow'} & {*sys.modules}))"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "['tensorflow']\n"  # otherwise its memory would be more than a run's
