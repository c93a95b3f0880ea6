"""Every recipe against its source: losses and updates as published, written out in NumPy and SciPy alone.

No number here is read from a recipe, so that a constant mistyped there fails here. Pixels are 0-255 where the source's are.
Only painterly has no source: its losses are those of its documentation; weights, sizes and steps are its own to choose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import tensorflow as tf

from nst_tasks.core import losses, optimizers, transfer, vgg
from nst_tasks.core.method import LBFGS, SGD, Adam
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.core.vgg import Backbone
from nst_tasks.inputs import weights
from nst_tasks.inputs.presets import PRESETS
from tests.support.pictures import picture
from tests.support.transfers import loss_terms, run_eagerly, targets, targets64

Array = np.ndarray
FIRSTS = ("block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1")
MEAN_BGR = np.array([103.939, 116.779, 123.68])
TORCH_SPREAD = 255 * 0.225
"""Networks of torchvision see pixels divided by about so much."""


# --- the network, in float64: no TensorFlow, and none of our core ---


@dataclass(frozen=True)
class Activations:
    """Activations of one picture: layer -> (h, w, C), before and after the ReLU."""

    before: dict[str, Array]
    after: dict[str, Array]


def run_plain_vgg16(arrays: weights.Weights, image: Array, spread: float = 1.0, border: str = "constant") -> Activations:
    """Run VGG16 on a picture (H, W, 3) RGB in [0, 1] whose 0-255 pixels are divided by `spread`, and biases with them.

    `border` is how the first convolution sees beyond it: `constant` is 0, `edge` repeats it.
    """
    x = (image.astype(np.float64)[..., ::-1] * 255 - MEAN_BGR) / spread
    before, after = {}, {}
    for layer, (kernel, bias) in arrays.items():
        if layer.endswith("conv1") and layer != "block1_conv1":
            height, width, channels = x.shape
            x = x[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), border if layer == "block1_conv1" else "constant")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))  # (H, W, C_in, 3, 3)
        before[layer] = np.einsum("hwcij,ijco->hwo", windows, kernel.astype(np.float64), optimize=True) + bias / spread
        after[layer] = x = np.maximum(before[layer], 0.0)
    return Activations(before, after)


def test_the_plain_convolution_is_scipys() -> None:
    """The network above is itself checked once, on its first layer, against a library's convolution."""
    arrays = weights.load("tiny", None)
    kernel, bias = arrays["block1_conv1"]
    image = picture(3, 9, 8)
    for border, boundary in (("constant", "fill"), ("edge", "symm")):
        x = (image[..., ::-1] * 255.0 - MEAN_BGR) / 3
        expected = [
            sum(scipy.signal.correlate2d(x[..., i], kernel[..., i, o], "same", boundary) for i in range(3)) + bias[o] / 3
            for o in range(kernel.shape[-1])
        ]
        found = run_plain_vgg16({"block1_conv1": arrays["block1_conv1"]}, image, 3.0, border).before["block1_conv1"]
        np.testing.assert_allclose(found, np.stack(expected, axis=-1), rtol=1e-6, atol=1e-6)


# --- what the sources measure ---


def gram(x: Array) -> Array:
    """Sum over positions, without normalizing."""
    flat = x.reshape(-1, x.shape[-1])
    return flat.T @ flat


def mse(x: Array, y: Array) -> float:
    return float(np.mean((x - y) ** 2))


def sse(x: Array, y: Array) -> float:
    return float(np.sum((x - y) ** 2))


def positions(x: Array) -> int:
    return x.shape[0] * x.shape[1]


def absolute_variation(image: Array) -> float:
    """tf.image.total_variation."""
    return float(np.abs(np.diff(image, axis=0)).sum() + np.abs(np.diff(image, axis=1)).sum())


def squared_differences(image: Array) -> tuple[Array, Array]:
    """Squared differences from the pixel below and the one to the right, where there are both."""
    here = image[:-1, :-1]
    return (image[1:, :-1] - here) ** 2, (image[:-1, 1:] - here) ** 2


def wasserstein(x: Array, style: Array) -> float:
    """Mean squared difference of the means, and the mean of the diagonal of `K + K* - 2 (K*^1/2 K K*^1/2)^1/2`.

    Outside of what the features of both span, K and K* are the same 1e-4 I and cancel: so the roots are small.
    """
    means, rows = [], []
    for features in (x, style):
        flat = features.reshape(-1, features.shape[-1])
        means.append(flat.mean(axis=0))
        rows.append((flat - means[-1]) / np.sqrt(len(flat)))  # R^T R is the covariance
    span = np.linalg.qr(np.concatenate(rows).T).Q  # (C, d), d the number of positions but at most C
    covariance, style_covariance = (span.T @ (r.T @ (r @ span)) + 1e-4 * np.eye(span.shape[1]) for r in rows)
    root = scipy.linalg.sqrtm(style_covariance)
    cross = scipy.linalg.sqrtm(root @ covariance @ root)
    return mse(*means) + float(np.trace(covariance + style_covariance - 2 * cross).real) / len(means[0])


See = Callable[..., Activations]
Terms = tuple[float, float, float]


def gatys_2016(see: See, image: Array, content: Array, style: Array) -> Terms:
    x, c, s = see(image).after, see(content).after, see(style).after
    drawn = sum(
        1e3 / channels**2 * mse(gram(x[layer]) / positions(x[layer]), gram(s[layer]) / positions(s[layer]))
        for layer, channels in zip(FIRSTS, (64, 128, 256, 512, 512), strict=True)
    )
    return mse(x["block4_conv2"], c["block4_conv2"]), drawn, 0.0


def neural_style(see: See, image: Array, content: Array, style: Array) -> Terms:
    x, c, s = see(image).after, see(content).after, see(style).after
    drawn = sum(100 * mse(gram(x[layer]) / x[layer].size, gram(s[layer]) / s[layer].size) for layer in FIRSTS)
    down, right = squared_differences(255 * image)
    return 5 * mse(x["block4_conv2"], c["block4_conv2"]), drawn, 1e-3 * float(np.sum(down + right)) / 2


def keras_io(see: See, image: Array, content: Array, style: Array) -> Terms:
    x, c, s = see(image).after, see(content).after, see(style).after
    size = positions(image)
    drawn = sum(1e-6 / 5 * sse(gram(x[layer]), gram(s[layer])) / (4 * 3**2 * size**2) for layer in FIRSTS)
    down, right = squared_differences(255 * image)
    return 2.5e-8 * sse(x["block5_conv2"], c["block5_conv2"]), drawn, 1e-6 * float(np.sum((down + right) ** 1.25))


def mean_gram_mse(x: dict[str, Array], s: dict[str, Array]) -> float:
    return sum(mse(gram(x[layer]) / positions(x[layer]), gram(s[layer]) / positions(s[layer])) for layer in FIRSTS) / 5


def tf_tutorial(see: See, image: Array, content: Array, style: Array) -> Terms:
    x, c, s = see(image).after, see(content).after, see(style).after
    return 1e4 * mse(x["block5_conv2"], c["block5_conv2"]), 1e-2 * mean_gram_mse(x, s), 30 * absolute_variation(image)


def tf_eager_2018(see: See, image: Array, content: Array, style: Array) -> Terms:
    x, c, s = see(image).after, see(content).after, see(style).after
    return 1e3 * mse(x["block5_conv2"], c["block5_conv2"]), 1e-2 * mean_gram_mse(x, s), 0.0


def tf_scratch(see: See, image: Array, content: Array, style: Array) -> Terms:
    """Averages over layers, as such articles have them; the weights are the recipe's own choice."""
    x, c, s = see(image).after, see(content).after, see(style).after
    content_error = sum(mse(x[layer], c[layer]) for layer in ("block4_conv2", "block5_conv2")) / 2
    return 1e2 * content_error, 1e-2 * mean_gram_mse(x, s), 10 * absolute_variation(image)


def pytorch_course(see: See, image: Array, content: Array, style: Array) -> Terms:
    x, c, s = (see(one, TORCH_SPREAD).after for one in (image, content, style))
    drawn = sum(
        1e6 * weight * mse(gram(x[layer]), gram(s[layer])) / x[layer].size
        for layer, weight in zip(FIRSTS, (1, 0.75, 0.2, 0.2, 0.2), strict=True)
    )
    return mse(x["block4_conv2"], c["block4_conv2"]), drawn, 0.0


def pytorch_tutorial(see: See, image: Array, content: Array, style: Array) -> Terms:
    x, c, s = (see(one, TORCH_SPREAD).before for one in (image, content, style))
    layers = ("block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "block3_conv1")
    drawn = sum(1e6 * mse(gram(x[layer]) / x[layer].size, gram(s[layer]) / s[layer].size) for layer in layers)
    return mse(x["block2_conv2"], c["block2_conv2"]), drawn, 0.0


def crowsonkb(see: See, image: Array, content: Array, style: Array) -> Terms:
    x, c, s = (see(one, TORCH_SPREAD, "edge").after for one in (image, content, style))
    total = 256 + 64 + 16 + 4 + 1
    drawn = sum(
        weight / total * wasserstein(x[layer], s[layer]) for layer, weight in zip(FIRSTS, (256, 64, 16, 4, 1), strict=True)
    )
    edged = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
    down, right = edged[2:, 1:-1] - edged[1:-1, 1:-1], edged[1:-1, 2:] - edged[1:-1, 1:-1]
    falling, rising = edged[1:, 1:] - edged[:-1, :-1], edged[1:, :-1] - edged[:-1, 1:]
    straight, diagonal = np.mean(down**2) + np.mean(right**2), np.mean(falling**2) + np.mean(rising**2)
    return 0.015 * mse(x["block4_conv2"], c["block4_conv2"]), drawn, 2.0 * 2 * float(straight / 3 + diagonal / 12)


def painterly(see: See, image: Array, content: Array, style: Array) -> Terms:
    """Our own: as its documentation says, each term by its own weight."""
    method = PRESETS["painterly"].method
    x, c, s = (see(one, 1.0, "edge").after for one in (image, content, style))
    of_content = c["block4_conv2"]
    energy = np.mean(of_content**2, axis=2)
    edged = np.pad(of_content, ((1, 1), (1, 1), (0, 0)), "edge")
    around = (edged[2:, 1:-1], edged[:-2, 1:-1], edged[1:-1, 2:], edged[1:-1, :-2])
    contrast = sum(np.mean((of_content - other) ** 2, axis=2) for other in around) / 4
    salience = contrast / energy + 0.05
    error = np.mean((x["block4_conv2"] - of_content) ** 2, axis=2) / (energy + 0.1 * energy.mean())
    content_error = float(np.mean(salience / salience.mean() * error))
    drawn = 0.0
    for layer in FIRSTS[:4]:
        scale = np.sqrt(np.mean(s[layer] ** 2))
        drawn += wasserstein(x[layer] / scale, s[layer] / scale)
    variation = np.mean(np.diff(image, axis=0) ** 2) + np.mean(np.diff(image, axis=1) ** 2)
    return method.content.weight * content_error, method.style.weight * drawn, method.total_variation.weight * float(variation)


PUBLISHED: dict[str, Callable[[See, Array, Array, Array], Terms]] = {
    "painterly": painterly,
    "gatys-2016": gatys_2016,
    "neural-style": neural_style,
    "keras-io": keras_io,
    "tf-tutorial": tf_tutorial,
    "tf-eager-2018": tf_eager_2018,
    "tf-scratch": tf_scratch,
    "pytorch-course": pytorch_course,
    "pytorch-tutorial": pytorch_tutorial,
    "wasserstein": crowsonkb,
}


@pytest.fixture(scope="module")
def see() -> See:
    """Run the plain network on the default backbone's weights."""
    arrays, results = weights.load("vgg16-hed", None), {}

    def compute(image: Array, spread: float = 1.0, border: str = "constant") -> Activations:
        key = (image.tobytes(), image.shape, spread, border)
        if key not in results:
            results[key] = run_plain_vgg16(arrays, image, spread, border)
        return results[key]

    return compute


@pytest.fixture(scope="module")
def hed64() -> Backbone:
    return vgg.build("hed64", weights.load("vgg16-hed", None), tf.float64)


STRETCHED = {"keras-io", "tf-scratch", "pytorch-course", "pytorch-tutorial"}
"""Sources that stretch the style to the content's shape."""

OPTIMAL_TRANSPORT = {"painterly", "wasserstein"}


@pytest.mark.parametrize("name", PRESETS)
def test_first_losses_are_the_published_formula(hed: Backbone, hed64: Backbone, see: See, name: str) -> None:
    """Of the initial image, and of a perturbed content, at which no term is 0 that has a weight.

    Distances of Gaussians are held to it in float64. In float32, rounding adds to each of the many eigenvalues that are
    nearly 0 where a layer has fewer positions than channels, as these small pictures have: up to 1 % at the deepest layers.

    Eagerly: test_every_recipe.py runs each recipe in its graphs.
    """
    method = PRESETS[name].method
    content, style = picture(4), picture(5) if name in STRETCHED else picture(5, 36, 33)
    with run_eagerly():
        aims = targets(hed, method, [content], [[style]])
    gray = np.broadcast_to(MEAN_BGR[::-1] / 255, content.shape)
    initial = transfer.start(method, (gray if name == "neural-style" else content)[None], [7]).image.numpy()[0]
    perturbed = np.clip(content + 0.1 * np.random.default_rng(6).standard_normal(content.shape, np.float32), 0.0, 1.0)
    for image in (initial, perturbed):
        expected = np.array(PUBLISHED[name](see, image.astype(np.float64), content, style))
        rtol, atol = (5e-3 if name in OPTIMAL_TRANSPORT else 1e-4), np.where(expected == 0, 1e-6 * expected[1], 0)
        with run_eagerly():
            found = transfer.compute_terms(hed, method, aims, tf.constant(image[None]))[0]
        assert np.all(np.abs(found - expected) <= rtol * expected + atol), f"{found} is not {expected}"
        if name in OPTIMAL_TRANSPORT and image is perturbed:
            aims64 = targets64(hed64, method, content, style)
            exact = loss_terms(hed64, method, tf.constant(image[None], tf.float64), aims64)[0]
            np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-12)
    weighted = [method.content.weight, method.style.weight, method.total_variation.weight]
    np.testing.assert_array_equal(expected > 0, np.array(weighted) > 0)


def test_neural_style_variation_has_the_published_gradient() -> None:
    """neural-style never computes its total variation, only this gradient: differences scattered to both their ends."""
    method = PRESETS["neural-style"].method
    image = picture(8, 6, 7)
    pixels, gradient = 255 * image.astype(np.float64), np.zeros(image.shape)
    right, down = pixels[:-1, :-1] - pixels[:-1, 1:], pixels[:-1, :-1] - pixels[1:, :-1]
    gradient[:-1, :-1] += right + down
    gradient[:-1, 1:] -= right
    gradient[1:, :-1] -= down
    with tf.GradientTape() as tape:
        variable = tf.constant(image[None], tf.float64)
        tape.watch(variable)
        value = method.total_variation.weight * losses.total_variation(method.total_variation, variable)
    # by the chain rule: of pixels in [0, 1] a step is 255 times larger
    np.testing.assert_allclose(tape.gradient(value, variable)[0], 255 * 1e-3 * gradient, rtol=1e-10, atol=1e-10)


# --- where it starts, for how long and at which sizes, and what it gives ---


SCHEDULES = {
    # name: longest sides and steps of each level of a picture at the recipe's own size
    "gatys-2016": [(512, 500), (1024, 200)],
    "neural-style": [(512, 1000)],
    "keras-io": [(400, 4000)],
    "tf-tutorial": [(512, 1000)],
    "tf-eager-2018": [(512, 1000)],
    "tf-scratch": [(512, 500)],
    "pytorch-course": [(400, 2000)],
    "pytorch-tutorial": [(512, 300)],
    "wasserstein": [(128, 1000), (181, 500), (256, 500), (362, 500), (512, 500)],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_sizes_and_steps_are_the_published_ones(name: str) -> None:
    recipe, expected = PRESETS[name], SCHEDULES[name]
    assert recipe.size == expected[-1][0]
    found = plan_levels(recipe.method, round(0.75 * recipe.size), recipe.size)
    assert [(level.width, level.steps) for level in found] == expected


def test_what_else_is_published() -> None:
    def those(has: Callable[..., bool]) -> set[str]:
        return {name for name, recipe in PRESETS.items() if name != "painterly" and has(recipe.method)}

    assert those(lambda m: m.style_shape == "content") == STRETCHED
    assert those(lambda m: not m.clip) == {"gatys-2016", "neural-style", "keras-io", "pytorch-course"}
    assert those(lambda m: m.init != "content") == those(lambda m: m.init == "noise") == {"neural-style"}
    assert those(lambda m: m.init_noise > 0) == {"neural-style"}
    assert those(lambda m: m.output == "best") == {"tf-eager-2018"}
    assert those(lambda m: m.output == "average" and m.average_decay == 0.99) == {"wasserstein"}
    assert those(lambda m: m.output != "last") == {"tf-eager-2018", "wasserstein"}
    assert those(lambda m: m.pyramid is not None and m.pyramid.carry) == {"wasserstein"}
    assert those(lambda m: m.pooling != "max") == set()


def test_neural_style_noise_is_a_thousandth_gray_level() -> None:
    gray = np.full((1, 64, 64, 3), 0.45, np.float32)
    noise = transfer.start(PRESETS["neural-style"].method, gray, [1]).image.numpy().astype(np.float64) - gray
    assert np.std(noise) == pytest.approx(0.001 / 255, rel=0.03)


# --- updates, in the sources' units of pixels ---


@dataclass(frozen=True)
class Published:
    """Adam as a source sets it, on pixels that are `unit` times ours and held in `held` of them, if they are."""

    unit: float | Array
    rate: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    corrected: bool = False
    """Whether epsilon joins the root after its bias correction, as in PyTorch, or before."""
    held: tuple[float, float] = (-np.inf, np.inf)


ADAMS = {
    "tf-tutorial": Published(1.0, 0.02, beta_1=0.99, epsilon=1e-1, held=(0, 1)),
    "tf-eager-2018": Published(255.0, 5.0, beta_1=0.99, epsilon=1e-1, held=(0, 255)),
    "tf-scratch": Published(1.0, 0.02, epsilon=1e-7, held=(0, 1)),
    "wasserstein": Published(1.0, 0.02, beta_2=0.99, corrected=True, held=(0, 1)),
    # pixels divided by the standard deviations of ImageNet's colours
    "pytorch-course": Published(1 / np.array([0.229, 0.224, 0.225]), 0.003, corrected=True),
}


def published_path(adam: Published, x: Array, gradients: Array) -> Array:
    """Return the pixels after each update, in the source's units."""
    mean, square, path = np.zeros_like(x), np.zeros_like(x), []
    for t, gradient in enumerate(gradients, start=1):
        mean = adam.beta_1 * mean + (1 - adam.beta_1) * gradient
        square = adam.beta_2 * square + (1 - adam.beta_2) * gradient**2
        first, second = 1 - adam.beta_1**t, 1 - adam.beta_2**t
        if adam.corrected:
            step = mean / first / (np.sqrt(square / second) + adam.epsilon)
        else:
            step = np.sqrt(second) / first * mean / (np.sqrt(square) + adam.epsilon)
        x = np.clip(x - adam.rate * step, *adam.held)
        path.append(x)
    return np.stack(path)


@pytest.mark.parametrize("name", ADAMS)
def test_several_updates_of_adam_are_the_published_ones(name: str) -> None:
    method, published = PRESETS[name].method, ADAMS[name]
    assert isinstance(method.optimizer, Adam)
    random = np.random.default_rng(9)
    start = random.random((1, 4, 5, 3))
    # gradients in the source's units, from a tenth of an epsilon of 0.1 to a hundred of them
    gradients = random.uniform(0.5, 2, (12, *start.shape)) * 10.0 ** random.uniform(-2, 1, start.shape)
    gradients *= random.choice([-1.0, 1.0], start.shape)
    image, path = tf.constant(start), []
    state = optimizers.init(method.optimizer, image)
    for k, gradient in enumerate(gradients):
        step = tf.constant(k)
        rate = optimizers.learning_rate(method.optimizer, step, tf.constant(method.steps))
        ours = tf.constant(published.unit * gradient)  # a unit of theirs is 1 / unit of ours
        loss = tf.zeros(1, tf.float64)
        rate = tf.cast(rate, tf.float64)
        state, image = optimizers.update(method.optimizer, state, image, loss, ours, rate, method.clip, step)
        path.append(published.unit * image.numpy())
    expected = published_path(published, published.unit * start, gradients)
    changes, expected_changes = np.stack(path) - published.unit * start, expected - published.unit * start
    # pytorch-course: one rate for the three colours
    np.testing.assert_allclose(changes, expected_changes, rtol=0.015 if name == "pytorch-course" else 1e-4)
    if method.clip:
        assert np.any(np.isin(expected, published.held))  # it does hold some pixels


@pytest.mark.parametrize("step", [0, 1, 50, 100, 333, 4000])
def test_an_update_of_keras_io_is_the_published_one(step: int) -> None:
    """On 0-255 pixels: `x - 100 * 0.96^(t / 100) * gradient`, not held in any range."""
    method = PRESETS["keras-io"].method
    assert isinstance(method.optimizer, SGD)
    random = np.random.default_rng(10)
    pixels, gradient = 255 * random.random((1, 4, 5, 3)), random.standard_normal((1, 4, 5, 3))
    image = tf.constant(pixels / 255)
    rate = tf.cast(optimizers.learning_rate(method.optimizer, tf.constant(step), tf.constant(4000)), tf.float64)
    state = optimizers.init(method.optimizer, image)
    loss, ours = tf.zeros(1, tf.float64), tf.constant(255 * gradient)
    _, following = optimizers.update(method.optimizer, state, image, loss, ours, rate, method.clip, tf.constant(step))
    expected = pixels - 100 * 0.96 ** (step / 100) * gradient
    np.testing.assert_allclose(255 * following.numpy(), expected, rtol=1e-5, atol=1e-4)
    assert step > 400 or expected.min() < 0


@pytest.mark.parametrize("name", ["gatys-2016", "neural-style", "pytorch-tutorial"])
def test_l_bfgs_is_set_as_in_torch(name: str) -> None:
    """The defaults of torch.optim.LBFGS and of Torch 7's optim.lbfgs: a hundred differences, whole steps, no line search."""
    assert PRESETS[name].method.optimizer == LBFGS(history=100, line_search="fixed", learning_rate=1.0)


def test_every_recipe_has_its_formula_and_its_optimizer_here() -> None:
    assert set(PUBLISHED) == {*SCHEDULES, "painterly"} == set(PRESETS)
    of_lbfgs = {name for name, recipe in PRESETS.items() if isinstance(recipe.method.optimizer, LBFGS)}
    assert of_lbfgs - {"painterly"} == {"gatys-2016", "neural-style", "pytorch-tutorial"}
    assert {*ADAMS, *of_lbfgs, "keras-io", "painterly"} == set(PRESETS)
