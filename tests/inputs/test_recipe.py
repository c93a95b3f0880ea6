"""Published constants of the presets, and overrides of a recipe's numbers."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from nst_tasks.core.method import MAX_SIZE, MAX_STEPS, MIN_SIZE, Adam, ContentLoss, Method, StyleLoss, TotalVariation
from nst_tasks.core.vgg_layers import CONVOLUTIONS_PER_BLOCK, check_layers
from nst_tasks.errors import SettingsError
from nst_tasks.inputs.columns import COLUMNS
from nst_tasks.inputs.presets import DEFAULT, PAINTERLY, PRESETS, TF_TUTORIAL, find_preset
from nst_tasks.inputs.recipe import Overrides, Recipe, override
from tests.support.examples import example_cells

RECIPES = [pytest.param(recipe, id=name) for name, recipe in PRESETS.items()]


def test_tf_tutorial_has_the_published_constants() -> None:
    # style_weight 1e-2 over 5 layers, content_weight 1e4, total_variation_weight 30, Adam(0.02, 0.99, epsilon 1e-1),
    # 10 epochs of 100 steps, longest side 512; the picture starts as the content, clipped to [0, 1]
    assert TF_TUTORIAL.method == Method(
        content=ContentLoss((("block5_conv2", 1.0),), weight=1e4, relative=False),
        style=StyleLoss(
            (
                ("block1_conv1", 1 / 5),
                ("block2_conv1", 1 / 5),
                ("block3_conv1", 1 / 5),
                ("block4_conv1", 1 / 5),
                ("block5_conv1", 1 / 5),
            ),
            weight=1e-2,
            statistic="gram",
            relative=False,
        ),
        total_variation=TotalVariation(30.0, "l1_sum"),
        optimizer=Adam(learning_rate=0.02, beta_1=0.99, beta_2=0.999, epsilon=0.1, decay_to=1.0),
        steps=1000,
        pyramid=None,
        init_noise=0.0,
        pooling="max",
        padding="zero",
    )
    assert TF_TUTORIAL.size == 512


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_has_a_summary_and_a_source(recipe: Recipe) -> None:
    assert PRESETS[recipe.name] is recipe
    for text in (recipe.summary, recipe.source, recipe.differs):
        assert text.strip()
        assert "\n" not in text


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_names_layers_that_both_architectures_have(recipe: Recipe) -> None:
    for architecture in CONVOLUTIONS_PER_BLOCK:
        check_layers(architecture, recipe.method.layers)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_has_a_stable_text(recipe: Recipe) -> None:
    text = json.dumps(recipe.as_plain(), allow_nan=False)
    assert json.loads(text)["method"]["steps"] == recipe.method.steps
    assert json.dumps(replace(recipe).as_plain(), allow_nan=False) == text


def test_the_default_is_a_preset() -> None:
    assert DEFAULT in PRESETS


# --- override ---


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_override_keeps_the_recipe(recipe: Recipe) -> None:
    assert override(recipe, Overrides()) == recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_override_changes_only_its_own_number(recipe: Recipe) -> None:
    method = recipe.method
    assert override(recipe, Overrides(size=100)) == replace(recipe, size=100)
    assert override(recipe, Overrides(content_weight=7.5)) == replace(
        recipe, method=replace(method, content=replace(method.content, weight=7.5))
    )
    assert override(recipe, Overrides(style_weight=7.5)) == replace(
        recipe, method=replace(method, style=replace(method.style, weight=7.5))
    )
    assert override(recipe, Overrides(tv_weight=0.0)) == replace(
        recipe, method=replace(method, total_variation=replace(method.total_variation, weight=0.0))
    )


def test_steps_replace_those_of_a_recipe_of_one_level() -> None:
    assert override(TF_TUTORIAL, Overrides(steps=10)).method == replace(TF_TUTORIAL.method, steps=10)


@pytest.mark.parametrize(("steps", "coarse"), [(40, 60), (30, 45), (80, 120), (1, 2), (0, 0), (MAX_STEPS, MAX_STEPS)])
def test_steps_scale_a_pyramids_coarse_levels(steps: int, coarse: int) -> None:
    # 40 steps of the last level go with 60 of each coarse one; 100,000 would ask for 150,000, above the most
    pyramid = PAINTERLY.method.pyramid
    assert pyramid is not None
    assert (PAINTERLY.method.steps, pyramid.coarse_steps) == (40, 60)
    method = override(PAINTERLY, Overrides(steps=steps)).method
    assert method == replace(PAINTERLY.method, steps=steps, pyramid=replace(pyramid, coarse_steps=coarse))


def test_steps_scale_a_first_level_that_has_steps_of_its_own() -> None:
    pyramid = PAINTERLY.method.pyramid
    assert pyramid is not None
    recipe = replace(PAINTERLY, method=replace(PAINTERLY.method, pyramid=replace(pyramid, first_steps=200)))
    scaled_pyramid = override(recipe, Overrides(steps=10)).method.pyramid  # a quarter
    assert scaled_pyramid == replace(pyramid, coarse_steps=15, first_steps=50)
    largest_pyramid = override(recipe, Overrides(steps=MAX_STEPS)).method.pyramid
    assert largest_pyramid == replace(pyramid, coarse_steps=MAX_STEPS, first_steps=MAX_STEPS)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("init", ["content", "style"])
def test_init_override_keeps_the_noise(recipe: Recipe, init: Any) -> None:
    assert override(recipe, Overrides(init=init)) == replace(recipe, method=replace(recipe.method, init=init))


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 0.1), (0.3, 0.3)])
def test_noise_init_has_a_default_noise_level(noise: float, expected: float) -> None:
    recipe = replace(TF_TUTORIAL, method=replace(TF_TUTORIAL.method, init_noise=noise))
    assert override(recipe, Overrides(init="noise")) == replace(
        recipe, method=replace(recipe.method, init="noise", init_noise=expected)
    )
    assert override(recipe, Overrides(init="style")).method.init_noise == noise


@pytest.mark.parametrize("name", [field.name for field in fields(Overrides)])
def test_every_override_changes_the_recipe(name: str) -> None:
    values = [COLUMNS[name].read(cell) for cell in example_cells()[name] if not COLUMNS[name].names_file(cell)]
    assert any(override(PAINTERLY, Overrides(**{name: value})) != PAINTERLY for value in values)


def test_a_rows_overrides_win_over_the_runs() -> None:
    row, run = Overrides(size=128, steps=0, plateau=0.0), Overrides(size=256, steps=5, precision="mixed")
    assert row.with_defaults(run) == Overrides(size=128, steps=0, precision="mixed", plateau=0.0)
    assert Overrides().with_defaults(run) == run.with_defaults(Overrides()) == run


def test_an_unknown_initial_image_is_refused() -> None:
    with pytest.raises(SettingsError, match="init: 'photo' is not content, style or noise"):
        override(PAINTERLY, Overrides(init="photo"))


def test_a_recipe_without_fine_steps_keeps_its_coarse_ones() -> None:
    coarse_only = replace(PAINTERLY, method=replace(PAINTERLY.method, steps=0))
    method = override(coarse_only, Overrides(steps=5)).method
    assert method.steps == 5
    assert method.pyramid == PAINTERLY.method.pyramid


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"steps": -1}, r"steps: -1 is not in 0\.\.100000"),
        ({"steps": MAX_STEPS + 1}, r"steps: 100001 is not in 0\.\.100000"),
        ({"size": MIN_SIZE - 1}, r"size: 63 is not in 64\.\.8192 pixels"),
        ({"size": MAX_SIZE + 1}, r"size: 8193 is not in 64\.\.8192 pixels"),
        ({"content_weight": -1.0}, r"content_weight: -1\.0 is not"),
        ({"style_weight": float("nan")}, r"style_weight: nan is not"),
        ({"tv_weight": float("inf")}, r"tv_weight: inf is not"),
    ],
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_number_out_of_range_is_refused_by_name(recipe: Recipe, numbers: dict[str, float], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        override(recipe, Overrides(**numbers))


# --- find ---


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_preset_is_found_by_its_name(recipe: Recipe) -> None:
    assert find_preset(recipe.name) is recipe


def test_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"recipe: 'paintrly' is not known; did you mean painterly\?"):
        find_preset("paintrly")
    with pytest.raises(SettingsError, match=r"recipe: 'tf-tutorail' is not known; did you mean tf-tutorial\?"):
        find_preset("tf-tutorail")


def test_file_like_recipe_name_gets_a_hint() -> None:
    for name in ("recipes/mine", "painterly.yaml"):
        with pytest.raises(SettingsError, match=r"is not known; a file with a recipe has a name that ends in \.toml"):
            find_preset(name)


def test_unknown_name_lists_all_presets() -> None:
    with pytest.raises(SettingsError, match=f"recipe: 'zzz' is not known; choose one of {', '.join(PRESETS)}"):
        find_preset("zzz")
