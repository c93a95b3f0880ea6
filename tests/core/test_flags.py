"""Each flag on the near and the far side of its rule, with pictures whose numbers are known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nst_tasks.core.flags import FLAGS, channel_deviation, clipped_share, find_flags, has_no_progress

Array = np.ndarray


def stripes(low: float, high: float, size: int = 8) -> Array:
    """Columns of two grays in turn: mean in their middle, standard deviation half their distance."""
    columns = np.where(np.arange(size) % 2 == 0, low, high).astype(np.float32)
    return np.broadcast_to(columns[None, :, None], (size, size, 3))


def partly(value: float, share: float, size: int = 10) -> Array:
    """Middle gray, with this share of its pixels at another value."""
    flat = np.full(size * size, 0.5, np.float32)
    flat[: round(share * size * size)] = value
    return np.broadcast_to(flat.reshape(size, size)[..., None], (size, size, 3))


BUSY = stripes(0.3, 0.7)
ON_LEFT = np.repeat([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]], 8, axis=0)


CALLERS = ("not_finite", "stepped_back", "quarantined")


def test_every_flag_has_a_meaning_and_a_remedy() -> None:
    assert set(FLAGS) == {"blank", "saturated", "no_progress", *CALLERS}
    for meaning, remedy in FLAGS.values():
        assert meaning and remedy
        assert not meaning.endswith(".") and not remedy.endswith(".")


def test_channel_deviation_is_about_each_mean() -> None:
    assert channel_deviation(stripes(0.2, 0.6)) == pytest.approx(0.2)
    tinted = np.broadcast_to(np.array([0.1, 0.5, 0.9]), (4, 4, 3))
    assert channel_deviation(tinted) == pytest.approx(0.0, abs=1e-12)  # one flat colour, however colourful


def test_the_spread_counts_by_weight() -> None:
    half = np.concatenate([stripes(0.5, 0.5)[:, :4], stripes(0.1, 0.9)[:, 4:]], axis=1)
    assert channel_deviation(half, ON_LEFT) == pytest.approx(0.0, abs=1e-7)
    assert channel_deviation(half, 1 - ON_LEFT) == pytest.approx(0.4)


@pytest.mark.parametrize(("value", "is_clipped"), [(0.0, 1), (0.0019, 1), (0.002, 0), (0.998, 0), (0.9981, 1), (1.0, 1)])
def test_clipped_is_what_8_bits_hold_as_0_or_255(value: float, is_clipped: int) -> None:
    assert clipped_share(np.full((2, 2, 3), value, np.float32)) == is_clipped


def test_clipped_is_a_share_of_values_by_weight() -> None:
    red = np.full((8, 8, 3), 0.5, np.float32)
    red[:, :4, 0] = 1.0
    assert clipped_share(red) == pytest.approx(1 / 6)
    assert clipped_share(red, ON_LEFT) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("out", "content", "is_blank"),
    [
        (stripes(0.5, 0.538), BUSY, True),
        (stripes(0.5, 0.542), BUSY, False),
        (stripes(0.5, 0.5), stripes(0.5, 0.582), True),
        (stripes(0.5, 0.5), stripes(0.5, 0.578), False),  # a content with as little to show
    ],
)
def test_blank_flag_needs_a_varied_content(out: Array, content: Array, is_blank: bool) -> None:
    assert find_flags(out, content, [0.0]) == (("blank",) if is_blank else ())


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize(
    ("share", "of_content", "of_styles", "is_saturated"),
    [
        (0.21, 0.0, [0.0], True),
        (0.19, 0.0, [0.0], False),
        (0.41, 0.2, [0.0], True),
        (0.39, 0.2, [0.0], False),
        (0.41, 0.0, [0.0, 0.2], True),
        (0.39, 0.0, [0.0, 0.2], False),
        (0.41, 0.2, [0.2], True),  # beyond the largest, not beyond their sum
    ],
)
def test_saturated_is_clipped_far_beyond_content_and_styles(
    value: float, share: float, of_content: float, of_styles: list[float], is_saturated: bool
) -> None:
    found = find_flags(partly(value, share), partly(value, of_content), of_styles)
    assert found == (("saturated",) if is_saturated else ())


@pytest.mark.parametrize(
    ("losses", "is_so"),
    [
        ([], False),
        ([[5.0]], False),  # no steps, so none without effect
        ([[100.0, 99.1]], True),
        ([[100.0, 98.9]], False),
        ([[100.0, 50.0, 99.5]], True),  # what the level ended with counts
        ([[100.0, 200.0]], True),
        ([[100.0, 100.0], [80.0, 79.0]], False),  # one level is enough
        ([[100.0, 100.0], [80.0, 79.9]], True),
        ([[100.0, 100.0], [3.0]], True),
        ([[0.0, 0.0]], False),  # nothing to fall
    ],
)
def test_no_progress_is_no_level_whose_loss_fell_by_1_percent(losses: list[list[float]], is_so: bool) -> None:
    arrays = [np.array(level) for level in losses]
    assert has_no_progress(arrays) is is_so
    assert find_flags(BUSY, BUSY, [0.0], arrays) == (("no_progress",) if is_so else ())


def test_flags_keep_their_order() -> None:
    both = find_flags(np.ones((8, 8, 3), np.float32), BUSY, [0.0], [np.array([1.0, 1.0])])
    assert both == ("blank", "saturated", "no_progress")
    assert list(both) == [name for name in FLAGS if name not in CALLERS]


def test_flags_look_only_where_the_weight_is() -> None:
    out = np.concatenate([np.ones((8, 4, 3), np.float32), BUSY[:, 4:]], axis=1)
    assert find_flags(out, BUSY, [0.0], weight=ON_LEFT) == ("blank", "saturated")
    assert find_flags(out, BUSY, [0.0], weight=1 - ON_LEFT) == ()
