"""A method is refused at construction where it is impossible, and has one plain form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan

import pytest

from nst_tasks.core.method import (
    INITS,
    LBFGS,
    SGD,
    TV_KINDS,
    Adam,
    ContentLoss,
    Method,
    Pyramid,
    StyleLoss,
    TotalVariation,
    as_plain,
)
from nst_tasks.errors import SettingsError

LAYERS = (("block4_conv2", 1.0),)
METHOD = Method(
    content=ContentLoss(LAYERS, 1.0),
    style=StyleLoss((("block2_conv1", 1.0), ("block1_conv1", 0.5)), 2.0),
    total_variation=TotalVariation(0.0),
    optimizer=Adam(0.02),
    steps=10,
    pyramid=Pyramid(64, 1.5, 20),
)

IMPOSSIBLE: dict[str, tuple[Callable[[], object], str, str]] = {
    # what: (how it is built, the field that the sentence names, the value that it gives)
    "content without layers": (lambda: ContentLoss((), 1.0), "content layers", "no layer"),
    "content layer twice": (lambda: ContentLoss(LAYERS * 2, 1.0), "content layers", "block4_conv2"),
    "content layer weight below 0": (lambda: ContentLoss((("block4_conv2", -1.0),), 1.0), "block4_conv2", "-1.0"),
    "content weight below 0": (lambda: ContentLoss(LAYERS, -0.5), "content_weight", "-0.5"),
    "content weight not a number": (lambda: ContentLoss(LAYERS, nan), "content_weight", "nan"),
    "content weight infinite": (lambda: ContentLoss(LAYERS, inf), "content_weight", "inf"),
    "content error": (lambda: ContentLoss(LAYERS, 1.0, error="max"), "content error", "'max'"),
    "content relative in sums": (lambda: ContentLoss(LAYERS, 1.0, error="sse", relative=True), "content relative", "mse"),
    "style without layers": (lambda: StyleLoss((), 1.0), "style layers", "no layer"),
    "style layer twice": (lambda: StyleLoss(LAYERS * 2, 1.0), "style layers", "block4_conv2"),
    "style layer weight infinite": (lambda: StyleLoss((("block4_conv2", inf),), 1.0), "block4_conv2", "inf"),
    "style weight below 0": (lambda: StyleLoss(LAYERS, -2.0), "style_weight", "-2.0"),
    "style statistic": (lambda: StyleLoss(LAYERS, 1.0, "median"), "style statistic", "'median'"),
    "style normalization": (lambda: StyleLoss(LAYERS, 1.0, normalization="c"), "style normalization", "'c'"),
    "style error": (lambda: StyleLoss(LAYERS, 1.0, error="max"), "style error", "'max'"),
    "wasserstein over C h w": (lambda: StyleLoss(LAYERS, 1.0, "wasserstein", "chw"), "style statistic wasserstein", "hw"),
    "wasserstein in sums": (lambda: StyleLoss(LAYERS, 1.0, "wasserstein", error="sse"), "style statistic wasserstein", "mse"),
    "relative Gram over C h w": (lambda: StyleLoss(LAYERS, 1.0, normalization="chw", relative=True), "style relative", "hw"),
    "relative Gram in sums": (lambda: StyleLoss(LAYERS, 1.0, error="sse", relative=True), "style relative", "mse"),
    "variation weight below 0": (lambda: TotalVariation(-3.0), "tv_weight", "-3.0"),
    "variation kind": (lambda: TotalVariation(1.0, "l3"), "total variation kind", "'l3'"),
    "rate 0": (lambda: Adam(0.0), "learning_rate", "0.0"),
    "rate not a number": (lambda: Adam(nan), "learning_rate", "nan"),
    "rate infinite": (lambda: Adam(inf), "learning_rate", "inf"),
    "beta_1 of 1": (lambda: Adam(0.1, beta_1=1.0), "beta_1", "1.0"),
    "beta_1 below 0": (lambda: Adam(0.1, beta_1=-0.1), "beta_1", "-0.1"),
    "beta_2 of 1": (lambda: Adam(0.1, beta_2=1.0), "beta_2", "1.0"),
    "beta_2 not a number": (lambda: Adam(0.1, beta_2=nan), "beta_2", "nan"),
    "epsilon 0": (lambda: Adam(0.1, epsilon=0.0), "epsilon", "0.0"),
    "epsilon infinite": (lambda: Adam(0.1, epsilon=inf), "epsilon", "inf"),
    "decay to 0": (lambda: Adam(0.1, decay_to=0.0), "decay_to", "0.0"),
    "decay above 1": (lambda: Adam(0.1, decay_to=1.5), "decay_to", "1.5"),
    "SGD rate 0": (lambda: SGD(0.0), "learning_rate", "0.0"),
    "SGD rate infinite": (lambda: SGD(inf), "learning_rate", "inf"),
    "SGD decay 0": (lambda: SGD(0.1, decay=0.0), "decay", "0.0"),
    "SGD decay above 1": (lambda: SGD(0.1, decay=1.01), "decay", "1.01"),
    "SGD decay over no steps": (lambda: SGD(0.1, decay=0.9, decay_steps=0), "decay_steps", "0"),
    "L-BFGS without history": (lambda: LBFGS(history=0), "history", "0"),
    "L-BFGS with too much history": (lambda: LBFGS(history=201), "history", "201"),
    "L-BFGS line search": (lambda: LBFGS(line_search="wolfe"), "line_search", "'wolfe'"),
    "L-BFGS rate 0": (lambda: LBFGS(learning_rate=0.0), "learning_rate", "0.0"),
    "L-BFGS rate not a number": (lambda: LBFGS(learning_rate=nan), "learning_rate", "nan"),
    "pyramid too small": (lambda: Pyramid(31, 1.5, 10), "pyramid smallest", "31"),
    "pyramid ratio too near 1": (lambda: Pyramid(64, 1.1, 10), "pyramid ratio", "1.1"),
    "pyramid ratio not a number": (lambda: Pyramid(64, nan, 10), "pyramid ratio", "nan"),
    "pyramid ratio infinite": (lambda: Pyramid(64, inf, 10), "pyramid ratio", "inf"),
    "pyramid steps below 0": (lambda: Pyramid(64, 1.5, -1), "pyramid coarse_steps", "-1"),
    "pyramid steps above the most": (lambda: Pyramid(64, 1.5, 100_001), "pyramid coarse_steps", "100001"),
    "first steps below 0": (lambda: Pyramid(64, 1.5, 10, first_steps=-1), "pyramid first_steps", "-1"),
    "first steps above the most": (lambda: Pyramid(64, 1.5, 10, first_steps=100_001), "pyramid first_steps", "100001"),
    "pyramid without levels": (lambda: Pyramid(64, 1.5, 10, levels=0), "pyramid levels", "0"),
    "steps below 0": (lambda: replace(METHOD, steps=-1), "steps", "-1"),
    "steps above the most": (lambda: replace(METHOD, steps=100_001), "steps", "100001"),
    "noise below 0": (lambda: replace(METHOD, init_noise=-0.1), "init_noise", "-0.1"),
    "noise above 1": (lambda: replace(METHOD, init_noise=1.1), "init_noise", "1.1"),
    "noise not a number": (lambda: replace(METHOD, init_noise=nan), "init_noise", "nan"),
    "pooling": (lambda: replace(METHOD, pooling="median"), "pooling", "'median'"),
    "padding": (lambda: replace(METHOD, padding="reflect"), "padding", "'reflect'"),
    "init": (lambda: replace(METHOD, init="gray"), "init", "'gray'"),
    "activation": (lambda: replace(METHOD, activation="gelu"), "activation", "'gelu'"),
    "feature scale 0": (lambda: replace(METHOD, feature_scale=0.0), "feature_scale", "0.0"),
    "feature scale infinite": (lambda: replace(METHOD, feature_scale=inf), "feature_scale", "inf"),
    "style shape": (lambda: replace(METHOD, style_shape="square"), "style_shape", "'square'"),
    "output": (lambda: replace(METHOD, output="first"), "output", "'first'"),
    "average decay of 1": (lambda: replace(METHOD, average_decay=1.0), "average_decay", "1.0"),
    "average decay below 0": (lambda: replace(METHOD, average_decay=-0.1), "average_decay", "-0.1"),
    "moments of L-BFGS carried": (
        lambda: replace(METHOD, optimizer=LBFGS(), pyramid=Pyramid(64, 1.5, 20, carry=True)),
        "pyramid carry",
        "adam",
    ),
    "moments of SGD carried": (
        lambda: replace(METHOD, optimizer=SGD(0.1), pyramid=Pyramid(64, 1.5, 20, carry=True)),
        "pyramid carry",
        "adam",
    ),
    "average of L-BFGS": (lambda: replace(METHOD, optimizer=LBFGS(), output="average"), "output average", "lbfgs"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_value_is_refused_with_its_field(case: tuple[Callable[[], object], str, str]) -> None:
    build, field, value = case
    with pytest.raises(SettingsError) as caught:
        build()
    name, colon, rest = str(caught.value).partition(":")
    assert colon
    assert field in name
    assert value in rest


def test_the_ends_of_each_range_are_allowed() -> None:
    Adam(1e-9, beta_1=0.0, beta_2=0.0, epsilon=1e-12, decay_to=1.0)
    SGD(1e-9, decay=1e-3, decay_steps=1)
    LBFGS(history=1)
    LBFGS(history=200, line_search="fixed")
    Pyramid(32, 1.11, 0, first_steps=0, levels=1)
    TotalVariation(0.0)
    for steps in (0, 100_000):
        replace(METHOD, steps=steps, init_noise=1.0, average_decay=0.0)


def test_every_named_choice_is_allowed() -> None:
    for kind in TV_KINDS:
        TotalVariation(1.0, kind)
    for init in INITS:
        replace(METHOD, init=init)
    for normalization in ("none", "hw", "chw", "sqrt_chw", "image_hw"):
        for error in ("mse", "sse"):
            StyleLoss(LAYERS, 1.0, normalization=normalization, error=error)
    StyleLoss(LAYERS, 1.0, relative=True)
    StyleLoss(LAYERS, 1.0, "wasserstein", relative=True)
    for output in ("last", "best"):
        replace(METHOD, optimizer=LBFGS(), output=output)
    replace(METHOD, output="average", pyramid=Pyramid(64, 1.5, 20, carry=True))


def test_method_layers_are_unique_and_in_network_order() -> None:
    shared = replace(METHOD, content=ContentLoss((("block4_conv2", 1.0), ("block1_conv1", 1.0)), 1.0))
    assert shared.layers == ("block1_conv1", "block2_conv1", "block4_conv2")


def test_the_plain_form_by_hand() -> None:
    assert as_plain(METHOD) == {
        "content": {"layers": [["block4_conv2", 1.0]], "weight": 1.0, "error": "mse", "relative": False},
        "style": {
            "layers": [["block2_conv1", 1.0], ["block1_conv1", 0.5]],
            "weight": 2.0,
            "statistic": "gram",
            "normalization": "hw",
            "error": "mse",
            "relative": False,
        },
        "total_variation": {"weight": 0.0, "kind": "l1_sum"},
        "optimizer": {"learning_rate": 0.02, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "decay_to": 1.0},
        "steps": 10,
        "pyramid": {
            "smallest": 64,
            "ratio": 1.5,
            "coarse_steps": 20,
            "first_steps": None,
            "levels": None,
            "carry": False,
        },
        "init": "content",
        "init_noise": 0.0,
        "pooling": "max",
        "padding": "zero",
        "activation": "relu",
        "feature_scale": 1.0,
        "style_shape": "own",
        "clip": True,
        "output": "last",
        "average_decay": 0.99,
        "plateau": None,
        "precision": "float32",
    }


def test_method_text_identifies_the_method() -> None:
    text = json.dumps(as_plain(METHOD), sort_keys=True, allow_nan=False)
    assert json.dumps(as_plain(replace(METHOD)), sort_keys=True, allow_nan=False) == text
    assert json.loads(text) == as_plain(METHOD)
    others = [Adam(0.03), SGD(0.02), LBFGS(), LBFGS(line_search="fixed"), LBFGS(history=5)]
    for other in (replace(METHOD, steps=11), replace(METHOD, pyramid=None), *(replace(METHOD, optimizer=o) for o in others)):
        assert json.dumps(as_plain(other), sort_keys=True) != text
