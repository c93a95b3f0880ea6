"""The schedule of sizes, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nst_tasks.core.method import Method, Pyramid
from nst_tasks.core.pyramid import Level, plan_levels
from nst_tasks.inputs.presets import PAINTERLY

FLAT = replace(PAINTERLY.method, steps=60, pyramid=None)


def with_pyramid(smallest: int, ratio: float, coarse_steps: int = 80) -> Method:
    return replace(FLAT, pyramid=Pyramid(smallest, ratio, coarse_steps))


def test_without_a_pyramid_there_is_the_final_level_only() -> None:
    assert plan_levels(FLAT, 300, 512) == (Level(300, 512, 60),)


def test_halving_by_hand() -> None:
    assert plan_levels(with_pyramid(100, 2.0), 300, 400) == (Level(75, 100, 80), Level(150, 200, 80), Level(300, 400, 60))


def test_sizes_are_rounded_from_the_final_one_each() -> None:
    # 511 / 1.6 = 319.375, / 1.6 = 199.609, / 1.6 = 124.756; 301 / 1.6 = 188.125, 117.578, 73.486
    expected = (Level(73, 125, 80), Level(118, 200, 80), Level(188, 319, 80), Level(301, 511, 60))
    assert plan_levels(with_pyramid(96, 1.6), 301, 511) == expected


def test_a_picture_below_the_next_size_up_has_one_level() -> None:
    assert plan_levels(with_pyramid(100, 2.0), 150, 198) == (Level(150, 198, 60),)
    assert len(plan_levels(with_pyramid(100, 2.0), 150, 200)) == 2


def test_a_size_is_measured_as_it_will_be_rounded() -> None:
    """Four times sqrt(2) down from 512 is 128, though not in floating point."""
    sides = [level.width for level in plan_levels(with_pyramid(128, 2.0**0.5), 512, 512)]
    assert sides == [128, 181, 256, 362, 512]


def test_pyramid_of_a_narrow_image_keeps_its_short_side() -> None:
    assert plan_levels(with_pyramid(32, 2.0), 64, 1024) == (Level(32, 512, 80), Level(64, 1024, 60))


def test_the_coarsest_level_may_have_steps_of_its_own() -> None:
    method = replace(FLAT, pyramid=Pyramid(100, 2.0, 80, first_steps=200))
    assert plan_levels(method, 300, 400) == (Level(75, 100, 200), Level(150, 200, 80), Level(300, 400, 60))
    # a picture of one level has no coarser one
    assert plan_levels(method, 150, 198) == (Level(150, 198, 60),)
    # the first of two levels is both the coarsest and the last but one
    assert plan_levels(method, 150, 200) == (Level(75, 100, 200), Level(150, 200, 60))


def test_a_level_without_steps_is_left_out_but_for_the_last() -> None:
    none = replace(FLAT, pyramid=Pyramid(100, 2.0, 80, first_steps=0))
    assert plan_levels(none, 150, 200) == (Level(150, 200, 60),)
    assert plan_levels(none, 300, 400) == (Level(150, 200, 80), Level(300, 400, 60))
    assert plan_levels(replace(FLAT, steps=0, pyramid=Pyramid(100, 2.0, 0)), 300, 400) == (Level(300, 400, 0),)


def test_levels_are_at_most_as_many_as_given() -> None:
    three = plan_levels(replace(FLAT, pyramid=Pyramid(100, 2.0, 80, first_steps=200)), 300, 400)
    for most in (1, 2, 3, 4):
        method = replace(FLAT, pyramid=Pyramid(100, 2.0, 80, levels=most))
        assert [level.height for level in plan_levels(method, 300, 400)] == [level.height for level in three[-most:]]
    two = plan_levels(replace(FLAT, pyramid=Pyramid(100, 2.0, 80, first_steps=200, levels=2)), 300, 400)
    assert two == (Level(150, 200, 200), Level(300, 400, 60))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (511, 301), (1080, 1920), (8192, 8192)])
@pytest.mark.parametrize("ratio", [1.2, 1.6, 2.0])
def test_levels_grow_to_the_final_size(height: int, width: int, ratio: float) -> None:
    found = plan_levels(with_pyramid(96, ratio), height, width)
    assert found[-1] == Level(height, width, 60)
    assert all(level.steps == 80 for level in found[:-1])
    assert all(max(level.height, level.width) >= 96 for level in found[:-1])
    for small, large in zip(found, found[1:], strict=False):
        assert small.height < large.height
        assert small.width < large.width
        assert small.height / small.width == pytest.approx(height / width, rel=0.05)
