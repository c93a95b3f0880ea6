"""Built-in recipes: `PRESETS` is the list that `nst recipes` prints."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from nst_tasks.core.method import LBFGS, SGD, Adam, ContentLoss, Method, Pyramid, StyleLoss, TotalVariation
from nst_tasks.errors import SettingsError
from nst_tasks.inputs.recipe import Recipe

DEFAULT = "painterly"

_FIRST_LAYERS = tuple(f"block{block}_conv1" for block in range(1, 6))

_BACKBONE_NOTE = "for VGG19; on vgg16-hed it is the recipe on VGG16, activations scaled to VGG19's order"

_UNIT_VARIANCE_NOTE = (
    "for torchvision's VGG19, whose unit-variance input features divided by 57.4 stand for; on vgg16-hed, on VGG16"
)

_UNIT_VARIANCE_SCALE = 1.0 / (255.0 * 0.225)
"""Factor from features of a network fed with 0-255 to those for input divided by the pixels' standard deviation.

VGG is homogeneous except for its biases: dividing its features equals dividing its input and its biases.
"""

PAINTERLY = Recipe(
    name="painterly",
    summary="our default: feature distributions matched from coarse to fine by L-BFGS; paints skies, keeps edges",
    source="nst; optimal transport of Gaussian feature statistics, coarse to fine, as crowsonkb/style-transfer-pytorch does",
    differs="our own: features normalized per layer, content held by local contrast, L-BFGS, other layers, sizes and steps",
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block4_conv2", 1.0),), weight=0.6, relative=True),
        style=StyleLoss(
            layers=tuple((f"block{block}_conv1", 1.0) for block in range(1, 5)),
            weight=1.2,
            statistic="wasserstein",
            relative=True,
        ),
        total_variation=TotalVariation(weight=1.0, kind="l2_mean"),
        optimizer=LBFGS(history=20, line_search="decrease"),
        steps=40,
        pyramid=Pyramid(smallest=64, ratio=1.6, coarse_steps=60),
        init_noise=0.15,
        padding="replicate",
        precision="auto",
    ),
)

GATYS_2016 = Recipe(
    name="gatys-2016",
    summary="Gatys, Ecker and Bethge: Gram matrices and L-BFGS, at half size and then at the whole",
    source="arXiv 1508.06576 and CVPR 2016, constants of the authors' code, github.com/leongatys/PytorchNeuralStyleTransfer",
    differs=f"sizes are longest sides, not shortest; {_BACKBONE_NOTE}",
    size=1024,
    method=Method(
        content=ContentLoss(layers=(("block4_conv2", 1.0),), weight=1.0),
        style=StyleLoss(
            layers=tuple(
                (layer, 1.0 / channels**2) for layer, channels in zip(_FIRST_LAYERS, (64, 128, 256, 512, 512), strict=True)
            ),
            weight=1e3,
        ),
        total_variation=TotalVariation(weight=0.0),
        optimizer=LBFGS(history=100, line_search="fixed"),
        steps=200,
        pyramid=Pyramid(smallest=64, ratio=2.0, coarse_steps=500, levels=2),
        clip=False,
    ),
)

NEURAL_STYLE = Recipe(
    name="neural-style",
    summary="jcjohnson's neural-style: Gram matrices and L-BFGS from faint noise",
    source="github.com/jcjohnson/neural-style, neural_style.lua and its defaults",
    differs=f"the picture's scale is 255, not 256; its tolerances do not stop it before the last step; {_BACKBONE_NOTE}",
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block4_conv2", 1.0),), weight=5.0),
        style=StyleLoss(layers=tuple((layer, 1.0) for layer in _FIRST_LAYERS), weight=100.0, normalization="chw"),
        total_variation=TotalVariation(weight=1e-3 * 255.0**2, kind="squared_sum"),
        optimizer=LBFGS(history=100, line_search="fixed"),
        steps=1000,
        init="noise",
        init_noise=0.001 / 255.0,
        clip=False,
    ),
)

KERAS_IO = Recipe(
    name="keras-io",
    summary="the Keras example: sums of squares, gradient descent with a falling rate",
    source="keras.io/examples/generative/neural_style_transfer",
    differs=f"400 px are the longest side, not the height; {_BACKBONE_NOTE}",
    size=400,
    method=Method(
        content=ContentLoss(layers=(("block5_conv2", 1.0),), weight=2.5e-8, error="sse"),
        style=StyleLoss(
            layers=tuple((layer, 1.0 / (5 * 4 * 3**2)) for layer in _FIRST_LAYERS),
            weight=1e-6,
            normalization="image_hw",
            error="sse",
        ),
        total_variation=TotalVariation(weight=1e-6 * 255.0**2.5, kind="power_sum"),
        optimizer=SGD(learning_rate=100.0 / 255.0**2, decay=0.96, decay_steps=100),
        steps=4000,
        style_shape="content",
        clip=False,
    ),
)

TF_TUTORIAL = Recipe(
    name="tf-tutorial",
    summary="the TensorFlow 2 tutorial: Gram matrices, Adam from the content picture",
    source="tensorflow.org/tutorials/generative/style_transfer",
    differs=_BACKBONE_NOTE,
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block5_conv2", 1.0),), weight=1e4),
        style=StyleLoss(layers=tuple((layer, 0.2) for layer in _FIRST_LAYERS), weight=1e-2),
        total_variation=TotalVariation(weight=30.0, kind="l1_sum"),
        optimizer=Adam(learning_rate=0.02, beta_1=0.99, beta_2=0.999, epsilon=1e-1),
        steps=1000,
    ),
)

TF_EAGER_2018 = Recipe(
    name="tf-eager-2018",
    summary="the TensorFlow eager notebook of 2018: Gram matrices, Adam in large steps, the best image kept",
    source="Raymond Yuan, Neural Style Transfer with tf.keras and eager execution, 2018",
    differs=f"the best image is the one that had the least loss, where the notebook keeps its successor; {_BACKBONE_NOTE}",
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block5_conv2", 1.0),), weight=1e3),
        style=StyleLoss(layers=tuple((layer, 0.2) for layer in _FIRST_LAYERS), weight=1e-2),
        total_variation=TotalVariation(weight=0.0),
        # published for pixels in 0-255, where gradients are 255 times smaller and steps 255 times larger
        optimizer=Adam(learning_rate=5.0 / 255.0, beta_1=0.99, beta_2=0.999, epsilon=1e-1 * 255.0),
        steps=1000,
        output="best",
    ),
)

TF_SCRATCH = Recipe(
    name="tf-scratch",
    summary="from scratch in TensorFlow 2: content and Gram losses averaged over layers, total variation, Adam",
    source="the from-scratch form that TensorFlow 2 articles teach: losses averaged over layers, after arXiv 1508.06576",
    differs=f"its weights, layers, rate and steps were not published: those here are our choice; {_BACKBONE_NOTE}",
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block4_conv2", 0.5), ("block5_conv2", 0.5)), weight=1e2),
        style=StyleLoss(layers=tuple((layer, 0.2) for layer in _FIRST_LAYERS), weight=1e-2),
        total_variation=TotalVariation(weight=10.0, kind="l1_sum"),
        optimizer=Adam(learning_rate=0.02),
        steps=500,
        style_shape="content",
    ),
)

PYTORCH_COURSE = Recipe(
    name="pytorch-course",
    summary="the PyTorch course: unnormalized Gram matrices, Adam in small steps from the content picture",
    source="Udacity, deep-learning-v2-pytorch, style-transfer: the exercise's solution",
    differs=f"one rate for the three colours, which its normalized pixels scale by 0.224 to 0.229; {_UNIT_VARIANCE_NOTE}",
    size=400,
    method=Method(
        content=ContentLoss(layers=(("block4_conv2", 1.0),), weight=1.0),
        style=StyleLoss(
            layers=tuple(zip(_FIRST_LAYERS, (1.0, 0.75, 0.2, 0.2, 0.2), strict=True)), weight=1e6, normalization="sqrt_chw"
        ),
        total_variation=TotalVariation(weight=0.0),
        optimizer=Adam(learning_rate=0.003 * 0.226, epsilon=1e-8),
        steps=2000,
        feature_scale=_UNIT_VARIANCE_SCALE,
        style_shape="content",
        clip=False,
    ),
)

PYTORCH_TUTORIAL = Recipe(
    name="pytorch-tutorial",
    summary="the PyTorch tutorial: shallow layers before their ReLU, L-BFGS within [0, 1]",
    source="Alexis Jacq, Neural Transfer Using PyTorch, pytorch.org/tutorials/advanced/neural_style_tutorial",
    differs=f"the picture keeps its proportions; {_UNIT_VARIANCE_NOTE}",
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block2_conv2", 1.0),), weight=1.0),
        style=StyleLoss(
            layers=tuple((f"block{at}", 1.0) for at in ("1_conv1", "1_conv2", "2_conv1", "2_conv2", "3_conv1")),
            weight=1e6,
            normalization="chw",
        ),
        total_variation=TotalVariation(weight=0.0),
        optimizer=LBFGS(history=100, line_search="fixed"),
        steps=300,
        activation="linear",
        feature_scale=_UNIT_VARIANCE_SCALE,
        style_shape="content",
    ),
)

WASSERSTEIN = Recipe(
    name="wasserstein",
    summary="crowsonkb's: means and covariances by optimal transport, coarse to fine, averaged images",
    source="github.com/crowsonkb/style-transfer-pytorch",
    differs=f"several styles are blended by their losses, not by their moments; {_UNIT_VARIANCE_NOTE}",
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block4_conv2", 1.0),), weight=0.015),
        style=StyleLoss(
            layers=tuple((layer, part / 341.0) for layer, part in zip(_FIRST_LAYERS, (256, 64, 16, 4, 1), strict=True)),
            weight=1.0,
            statistic="wasserstein",
        ),
        total_variation=TotalVariation(weight=2.0, kind="nine_point"),
        optimizer=Adam(learning_rate=0.02, beta_1=0.9, beta_2=0.99, epsilon=1e-8),
        steps=500,
        pyramid=Pyramid(smallest=128, ratio=2.0**0.5, coarse_steps=500, first_steps=1000, carry=True),
        padding="replicate",
        feature_scale=_UNIT_VARIANCE_SCALE,
        output="average",
    ),
)

PRESETS: Mapping[str, Recipe] = {
    recipe.name: recipe for recipe in (
        PAINTERLY, GATYS_2016, NEURAL_STYLE, KERAS_IO, TF_TUTORIAL, TF_EAGER_2018, TF_SCRATCH, PYTORCH_COURSE, PYTORCH_TUTORIAL,
        WASSERSTEIN,
    )
}  # fmt: skip


def find_preset(name: str) -> Recipe:
    """Return the preset of this name.

    Raises:
        SettingsError: The name is unknown; the message suggests the nearest known one.
    """
    if name in PRESETS:
        return PRESETS[name]
    similar = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {similar[0]}?" if similar else f"choose one of {', '.join(PRESETS)}"
    if "/" in name or "." in name:
        hint = "a file with a recipe has a name that ends in .toml"
    raise SettingsError(f"recipe: {name!r} is not known; {hint}")
