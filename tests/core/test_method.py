"""A method is refused at construction where it is impossible, and has one plain form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan

import pytest

from nst_tasks.core.method import Adam, ContentLoss, Method, Pyramid, StyleLoss, TotalVariation, as_plain
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
    "style without layers": (lambda: StyleLoss((), 1.0), "style layers", "no layer"),
    "style layer twice": (lambda: StyleLoss(LAYERS * 2, 1.0), "style layers", "block4_conv2"),
    "style layer weight infinite": (lambda: StyleLoss((("block4_conv2", inf),), 1.0), "block4_conv2", "inf"),
    "style weight below 0": (lambda: StyleLoss(LAYERS, -2.0), "style_weight", "-2.0"),
    "style statistic": (lambda: StyleLoss(LAYERS, 1.0, "median"), "style statistic", "'median'"),
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
    "pyramid too small": (lambda: Pyramid(31, 1.5, 10), "pyramid smallest", "31"),
    "pyramid ratio too near 1": (lambda: Pyramid(64, 1.1, 10), "pyramid ratio", "1.1"),
    "pyramid ratio not a number": (lambda: Pyramid(64, nan, 10), "pyramid ratio", "nan"),
    "pyramid ratio infinite": (lambda: Pyramid(64, inf, 10), "pyramid ratio", "inf"),
    "pyramid steps below 0": (lambda: Pyramid(64, 1.5, -1), "pyramid coarse_steps", "-1"),
    "pyramid steps above the most": (lambda: Pyramid(64, 1.5, 100_001), "pyramid coarse_steps", "100001"),
    "steps below 0": (lambda: replace(METHOD, steps=-1), "steps", "-1"),
    "steps above the most": (lambda: replace(METHOD, steps=100_001), "steps", "100001"),
    "noise below 0": (lambda: replace(METHOD, init_noise=-0.1), "init_noise", "-0.1"),
    "noise above 1": (lambda: replace(METHOD, init_noise=1.1), "init_noise", "1.1"),
    "noise not a number": (lambda: replace(METHOD, init_noise=nan), "init_noise", "nan"),
    "pooling": (lambda: replace(METHOD, pooling="median"), "pooling", "'median'"),
    "padding": (lambda: replace(METHOD, padding="reflect"), "padding", "'reflect'"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_setting_is_refused_with_its_field_and_value(case: tuple[Callable[[], object], str, str]) -> None:
    build, field, value = case
    with pytest.raises(SettingsError) as caught:
        build()
    name, colon, rest = str(caught.value).partition(":")
    assert colon
    assert field in name
    assert value in rest


def test_the_ends_of_each_range_are_allowed() -> None:
    Adam(1e-9, beta_1=0.0, beta_2=0.0, epsilon=1e-12, decay_to=1.0)
    Pyramid(32, 1.11, 0)
    TotalVariation(0.0)
    for steps in (0, 100_000):
        replace(METHOD, steps=steps, init_noise=1.0)


def test_layers_are_those_of_both_losses_once_and_in_the_networks_order() -> None:
    shared = replace(METHOD, content=ContentLoss((("block4_conv2", 1.0), ("block1_conv1", 1.0)), 1.0))
    assert shared.layers == ("block1_conv1", "block2_conv1", "block4_conv2")


def test_the_plain_form_by_hand() -> None:
    assert as_plain(METHOD) == {
        "content": {"layers": [["block4_conv2", 1.0]], "weight": 1.0, "relative": False},
        "style": {
            "layers": [["block2_conv1", 1.0], ["block1_conv1", 0.5]],
            "weight": 2.0,
            "statistic": "gram",
            "relative": False,
        },
        "total_variation": {"weight": 0.0, "kind": "l1_sum"},
        "optimizer": {"learning_rate": 0.02, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "decay_to": 1.0},
        "steps": 10,
        "pyramid": {"smallest": 64, "ratio": 1.5, "coarse_steps": 20},
        "init_noise": 0.0,
        "pooling": "max",
        "padding": "zero",
    }


def test_equal_methods_have_the_same_text_and_different_ones_do_not() -> None:
    text = json.dumps(as_plain(METHOD), sort_keys=True, allow_nan=False)
    assert json.dumps(as_plain(replace(METHOD)), sort_keys=True, allow_nan=False) == text
    assert json.loads(text) == as_plain(METHOD)
    for other in (replace(METHOD, steps=11), replace(METHOD, pyramid=None), replace(METHOD, optimizer=Adam(0.03))):
        assert json.dumps(as_plain(other), sort_keys=True) != text
