"""Mean activations of the HED trunk over the demo's images, the source of `inputs.weights.HED_GAINS`.

    .venv/bin/python -m bench activations

Prints, for each layer, the mean over images and positions at 512 px, the mean published for VGG19 if there is one, and their
ratio. A gain is this ratio times 0.3; the reason is given at `inputs.weights.HED_GAINS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from bench.processes import create_parser
from manifests import samples
from nst_tasks.core import vgg
from nst_tasks.core.vgg_layers import layer_names
from nst_tasks.images import codec
from nst_tasks.inputs import weights


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    create_parser(__name__, __doc__).parse_args(arguments)
    backbone = vgg.build("vgg16-hed", weights.load("vgg16-hed", None, rescale=False))
    layers = layer_names("vgg16")
    means = []
    for data in samples.samples().values():
        rgb = codec.decode(data, 10**8).rgb
        activations = vgg.extract_activations(backbone, tf.constant(rgb[None]), layers)
        means.append([float(tf.reduce_mean(activations[layer])) for layer in layers])
    print(f"{'layer':14}{'HED':>8}{'VGG19':>8}{'ratio':>8}")
    for layer, mean in zip(layers, np.mean(means, axis=0), strict=True):
        published = weights.VGG19_MEAN_ACTIVATIONS.get(layer)
        print(f"{layer:14}{mean:8.2f}" + (f"{published:8.0f}{published / mean:8.1f}" if published else ""))
