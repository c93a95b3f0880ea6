"""Rows of the table in docs/speed.md: their arithmetic, and the measurements of descents and style gaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench import row
from bench.peers import tensorflow_tutorial
from bench.rows import arithmetic, descent, gap
from nst_tasks.core import vgg
from nst_tasks.core.method import LBFGS, Pyramid
from nst_tasks.inputs import presets, weights

CONTENT, STYLE = np.random.default_rng(1).random((2, 48, 64, 3), np.float32)


def test_ratio_is_taken_round_by_round_against_its_goal() -> None:
    ratio = row.build_ratio_row("a step", "a loop", 3.0, theirs=[2.0, 9.0, 4.0], ours=[1.0, 3.0, 1.0])
    assert (ratio.measured, ratio.least, ratio.largest, ratio.verdict) == (3.0, 2.0, 4.0, "met")
    assert ratio.detail == "4 s against our 1 s"
    assert row.build_ratio_row("a step", "a loop", 3.1, [2.0, 9.0, 4.0], [1.0, 3.0, 1.0]).verdict == "not met"
    assert row.build_ratio_row("a step", "a loop", None, [1.0], [1.0]).verdict == ""


def test_cost_must_not_exceed_its_goal() -> None:
    assert row.build_cost_row("a pair", 25.0, [30.0, 25.0, 10.0], "ms", "").verdict == "met"
    cost = row.build_cost_row("a pair", 24.9, [30.0, 25.0, 10.0], "ms", "")
    assert cost.verdict == "not met"
    assert cost.format_cells()[2:6] == ("≤ 24.9 ms", "25 ms", "10 to 30", "not met")


def test_sides_alternate_and_odd_rounds_run_in_reverse() -> None:
    calls: list[str] = []
    seconds = row.time_alternating(3, {name: lambda name=name: calls.append(name) for name in "ab"})  # type: ignore[misc]
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(seconds[name]) for name in "ab"] == [3, 3]


def test_operations_of_convolutions_equal_a_count_by_hand() -> None:
    kernels = {"block1_conv1": (3, 3, 3, 8), "block2_conv1": (3, 3, 8, 5), "block2_conv2": (3, 3, 5, 5)}
    expected = 4 * 9 * (3 * 8 * 7 * 9 + 8 * 5 * 3 * 4)  # 7 x 9 px, then 3 x 4; multiply and add, forward and backward
    assert arithmetic.count_operations(kernels, ["block2_conv1", "block1_conv1"], 7, 9) == expected


def test_timed_transfers_reach_the_peers_loss() -> None:
    arrays = weights.load("tiny", None)
    backbone = vgg.build("tiny", arrays)
    peer = tensorflow_tutorial.start(arrays, CONTENT, STYLE)
    coarse = Pyramid(smallest=32, ratio=1.4, coarse_steps=3, levels=2)
    method = replace(presets.find_preset("tf-tutorial").method, optimizer=LBFGS(), pyramid=coarse, steps=6)
    target = peer.loss(descent.run_transfer(backbone, method, CONTENT, STYLE, 6)) * (1.0 + 1e-5)
    assert target < 0.9 * peer.loss(CONTENT)
    complete = descent.count_evaluations(backbone, method, CONTENT, STYLE, peer, target, most=8)
    assert (complete.evaluations, complete.loss <= target) == (6, True)
    cut_short = descent.count_evaluations(backbone, method, CONTENT, STYLE, peer, 0.0, most=2)
    assert cut_short.evaluations is None
    assert (cut_short.loss > target, cut_short.seconds > 0.0) == (True, True)
    adam = descent.run_peer(peer, 2)
    assert adam.loss < adam.first_loss == pytest.approx(peer.loss(CONTENT))
    ratio = descent.compare("work", backbone, method, (CONTENT, STYLE), peer, adam._replace(loss=target), rounds=1, most=8)
    assert ratio.measured > 0.0
    assert f"6 evaluations after 3 of a quarter to {target:.4g} from {adam.first_loss:.4g}; the 2 steps " in ratio.detail
    points = list(gap.run_timed_transfer(backbone, method, CONTENT, STYLE, every=4, shorten=1))
    assert [image.shape for _, image in points] == [(34, 46, 3), *[(48, 64, 3)] * 2]  # after 3 steps, then after 4 and 6
    assert 0.0 < points[0][0] < points[1][0] < points[2][0]
    assert peer.loss(points[2][1]) <= target


def test_style_gap_of_content_is_0_and_of_style_is_1() -> None:
    backbone = vgg.build("tiny", weights.load("tiny", None))
    assert gap.measure_quality(backbone, CONTENT, CONTENT, STYLE) == pytest.approx((0.0, 1.0), abs=1e-3)
    style, cosine = gap.measure_quality(backbone, STYLE, CONTENT, STYLE)
    assert style == pytest.approx(1.0, abs=1e-2)
    assert cosine < 0.999
