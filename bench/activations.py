"""Mean activations of the HED trunk over the demo's images, from which `weights.HED_GAIN` is derived.

    .venv/bin/python bench/activations.py

Prints, for each layer, the mean over images and positions at 512 px, the mean published for VGG19 if there is one, and their
ratio. A gain is this ratio times 0.3; the reason is given at `weights.HED_GAIN`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from nst_tasks import images, samples, weights
from nst_tasks.core import backbones
from nst_tasks.core.architecture import layer_names


def main() -> None:
    """Print the table."""
    backbone = backbones.build("vgg16-hed", weights.load("vgg16-hed", None, rescale=False))
    layers = layer_names("vgg16")
    means = []
    for data in samples.samples().values():
        rgb = images.decode(data, 10**8).rgb
        found = backbones.features(backbone, tf.constant(rgb[None]), layers)
        means.append([float(tf.reduce_mean(found[layer])) for layer in layers])
    print(f"{'layer':14}{'HED':>8}{'VGG19':>8}{'ratio':>8}")
    for layer, mean in zip(layers, np.mean(means, axis=0), strict=True):
        published = weights.VGG19_MEAN.get(layer)
        print(f"{layer:14}{mean:8.2f}" + (f"{published:8.0f}{published / mean:8.1f}" if published else ""))


if __name__ == "__main__":
    main()
