"""Mean activations of the HED trunk over the demo's images, from which `inputs.weights.HED_GAINS` is derived.

    .venv/bin/python bench/activations.py

Prints, for each layer, the mean over images and positions at 512 px, the mean published for VGG19 if there is one, and their
ratio. A gain is this ratio times 0.3; the reason is given at `inputs.weights.HED_GAINS`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from manifests import samples
from nst_tasks.core import vgg
from nst_tasks.core.vgg_layers import layer_names
from nst_tasks.images import codec
from nst_tasks.inputs import weights


def main() -> None:
    """Print the table."""
    backbone = vgg.build("vgg16-hed", weights.load("vgg16-hed", None, rescale=False))
    layers = layer_names("vgg16")
    means = []
    for data in samples.samples().values():
        rgb = codec.decode(data, 10**8).rgb
        found = vgg.extract_activations(backbone, tf.constant(rgb[None]), layers)
        means.append([float(tf.reduce_mean(found[layer])) for layer in layers])
    print(f"{'layer':14}{'HED':>8}{'VGG19':>8}{'ratio':>8}")
    for layer, mean in zip(layers, np.mean(means, axis=0), strict=True):
        published = weights.VGG19_MEAN_ACTIVATIONS.get(layer)
        print(f"{layer:14}{mean:8.2f}" + (f"{published:8.0f}{published / mean:8.1f}" if published else ""))


if __name__ == "__main__":
    main()
