"""A batch through the core: what its steps leave behind, whatever the chunks, and what becomes of each pair."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import metrics, objective, transfer
from nst_tasks.core.method import SGD, StyleLoss
from nst_tasks.core.vgg import Backbone
from nst_tasks.engine import optimization
from nst_tasks.engine.devices import Device
from nst_tasks.engine.optimization import TransferResult
from nst_tasks.engine.preprocessing import load_job, postprocess, prepare_content, prepare_initial_image
from nst_tasks.engine.targets import StyleStatistics, measure_styles
from nst_tasks.errors import DivergedError, Interrupted, StorageError
from nst_tasks.images import codec
from nst_tasks.images.picture import Picture
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.recipe import Recipe
from nst_tasks.inputs.run import Run
from nst_tasks.outputs.layout import snapshot_path
from nst_tasks.progress import Progress
from tests.support.changes import change_job
from tests.support.jobs import LIGHT, TINY_SHA256, run_into, two_jobs
from tests.support.pictures import Array, picture, write_source

STEPS = 4 + 5  # of the light recipe, over its two levels


@pytest.fixture
def two(tmp_path: Path) -> list[Job]:
    """Two pairs of different contents and styles."""
    return two_jobs(tmp_path)


def optimize(
    jobs: Sequence[Job], run: Run, device: Device, observer: Progress | None = None
) -> list[TransferResult | DivergedError]:
    return optimization.optimize([load_job(one, run) for one in jobs], run, device, observer or Progress())


def succeeded(jobs: Sequence[Job], run: Run, device: Device) -> list[TransferResult]:
    found = optimize(jobs, run, device)
    assert all(isinstance(result, TransferResult) for result in found)
    return found  # type: ignore[return-value]


def with_method(**fields: object) -> Recipe:
    return replace(LIGHT, method=replace(LIGHT.method, **fields))


# --- history and progress ---


def test_each_level_tells_the_losses_of_every_image(two: list[Job], tmp_path: Path, device: Device) -> None:
    run = run_into(tmp_path)
    observer = Progress()
    found = optimize(two, run, device, observer)
    assert (observer.steps_done, observer.work_done) == (2 * STEPS, sum(one.pixel_steps for one in two))
    backbone = device.backbones[TINY_SHA256]
    for one, result in zip(two, found, strict=True):
        assert isinstance(result, TransferResult)
        assert [(at.level, at.height, at.width, len(at.terms)) for at in result.histories] == [(0, 32, 43, 5), (1, 48, 64, 6)]
        for at, steps in zip(result.histories, (4, 5), strict=True):
            assert at.terms.shape == (steps + 1, len(objective.TERMS))
            assert len(at.learning_rate) == len(at.seconds) == steps + 1
            assert np.all(np.diff(at.seconds) >= 0)
            assert at.terms[-1].sum() < at.terms[0].sum()
        # the first row is of the initial image, the last of the result
        ready = load_job(one, run)
        first, last = result.histories[0].terms[0], result.histories[1].terms[-1]
        for (height, width), image, expected in (((32, 43), None, first), ((48, 64), result.image, last)):
            content = prepare_content(ready, height, width)
            aims = transfer.build_targets(
                backbone,
                LIGHT.method,
                content[None],
                [measure_styles(ready, (height, width), backbone, device)],
                [one.pair.style_weights],
            )
            shown = content if image is None else image
            terms = transfer.compute_terms(backbone, LIGHT.method, aims, tf.constant(shown[None]))[0]
            np.testing.assert_allclose(terms, expected, rtol=1e-4, atol=1e-6)
        assert result.image.shape == (48, 64, 3)
        assert result.seconds == result.histories[-1].seconds[-1] > 0


def test_no_steps_leave_the_initial_image(two: list[Job], tmp_path: Path, device: Device) -> None:
    still = replace(LIGHT, method=replace(LIGHT.method, steps=0, pyramid=None))
    run = run_into(tmp_path)
    result = succeeded([replace(two[0], recipe=still)], run, device)[0]
    np.testing.assert_array_equal(result.image, load_job(two[0], run).content.rgb)
    assert [len(at.terms) for at in result.histories] == [1]


def test_a_run_that_is_asked_to_stop_stops(two: list[Job], tmp_path: Path, device: Device) -> None:
    """After the chunk that is under way, and without a result."""
    observer = Progress(on_change=lambda watch: watch.stop.set() if watch.steps_done else None)
    with pytest.raises(Interrupted, match="between two chunks of steps"):
        optimize(two, run_into(tmp_path), device, observer)
    assert observer.steps_done == 2  # the first chunk is one step, of two pairs


def test_the_states_before_are_let_go(two: list[Job], tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """While steps are taken, only the state that they are taken from is there: of a large picture each has gigabytes."""
    original_advance, earlier_means, alive = transfer.advance, [], []

    def advance(*given: Any) -> Any:
        alive.append([k for k, before in enumerate(earlier_means) if before() is not None])
        earlier_means.append(weakref.ref(given[3].optimizer.mean))
        return original_advance(*given)

    monkeypatch.setattr(transfer, "advance", advance)
    succeeded(two[:1], run_into(tmp_path, snapshots=1, checkpoint_seconds=0.0), device)  # each chunk is one step
    assert alive == [[]] * STEPS


def test_a_weights_file_that_changed_is_refused(two: list[Job], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="--weights: the file changed while the run was going on"):
        optimize(two, run_into(tmp_path, weights_sha256="of another file"), Device("/CPU:0"))


# --- the initial image ---


def test_noise_is_each_pairs_own_and_spares_a_chosen_picture(two: list[Job], tmp_path: Path, device: Device) -> None:
    noisy = replace(LIGHT, method=replace(LIGHT.method, steps=0, pyramid=None, init_noise=0.1))
    initial = write_source(tmp_path, "chosen", picture(9, 48, 64))
    alike = [change_job(two[0], recipe=noisy, seed=seed, id=str(seed)) for seed in (5, 6)]
    first, second, third = succeeded([*alike, replace(two[0], recipe=noisy, init=initial)], run_into(tmp_path), device)
    content = load_job(two[0], run_into(tmp_path)).content.rgb
    assert 0.05 < np.std(first.image - content) < 0.1
    assert np.abs(first.image - second.image).mean() > 0.05
    expected = transfer.start(noisy.method, content[None], [5]).image[0]
    np.testing.assert_array_equal(first.image, expected)
    np.testing.assert_allclose(third.image, picture(9, 48, 64), atol=1 / 255)


@pytest.mark.parametrize("init", ["content", "style", "noise"])
def test_optimization_starts_from_the_given_init(two: list[Job], tmp_path: Path, device: Device, init: str) -> None:
    light = LIGHT.method
    still = replace(  # a step down a loss of almost nothing moves nothing
        light, steps=0, init=init, pyramid=replace(light.pyramid, coarse_steps=1), content=replace(light.content, weight=0.0),
        style=replace(light.style, weight=0.0), total_variation=replace(light.total_variation, weight=1e-20),
    )  # fmt: skip
    still_job = replace(two[0], recipe=replace(LIGHT, method=still))
    run = run_into(tmp_path)
    result = succeeded([still_job], run, device)[0]
    first = prepare_initial_image(load_job(still_job, run), still, 32, 43)
    raised = np.clip(tf.image.resize(first, (48, 64), "bicubic"), 0.0, 1.0)
    np.testing.assert_allclose(result.image, raised, atol=1e-6)


# --- snapshots ---


def snapshots(out: Path) -> dict[str, Array]:
    return {str(path.relative_to(out)): codec.decode(path.read_bytes(), 10**6).rgb for path in sorted(out.rglob("step-*.png"))}


@pytest.mark.parametrize(("every", "steps"), [(3, [3, 6, 9]), (4, [4, 8]), (9, [9]), (10, [])])
def test_snapshots_come_every_so_many_steps_over_all_levels(
    two: list[Job], tmp_path: Path, device: Device, every: int, steps: list[int]
) -> None:
    out = tmp_path / "out"
    found = succeeded(two, run_into(out, snapshots=every), device)
    pictures_by_path = snapshots(out)
    assert list(pictures_by_path) == sorted(snapshot_path(id, step) for id in "ab" for step in steps)
    assert all(path.startswith(("images/a.snapshots/step-00000", "images/b.snapshots/step-00000")) for path in pictures_by_path)
    for id, result in zip("ab", found, strict=True):
        for step in steps:
            path = snapshot_path(id, step)
            assert pictures_by_path[path].shape[:2] == ((32, 43) if step <= 4 else (48, 64))
            assert codec.read_metadata((out / path).read_bytes()) == {"nst:pair": id, "nst:step": str(step)}
            if step == STEPS:
                np.testing.assert_allclose(pictures_by_path[path], result.image, atol=0.5 / 255 + 1e-6)
    # and change nothing else, though they cut the steps into other chunks
    for result, plain in zip(found, succeeded(two, run_into(tmp_path), device), strict=True):
        np.testing.assert_array_equal(result.image, plain.image)
        for at, expected in zip(result.histories, plain.histories, strict=True):
            np.testing.assert_array_equal(at.terms, expected.terms)


def test_without_snapshots_nothing_is_written(two: list[Job], tmp_path: Path, device: Device) -> None:
    succeeded(two, run_into(tmp_path / "out"), device)
    assert not (tmp_path / "out" / "images").exists()


def test_a_snapshot_shows_what_the_result_would(two: list[Job], tmp_path: Path, device: Device) -> None:
    """Colours and what a mask keeps put back, and the image that the method gives at that step."""
    mask = np.zeros((48, 64, 3), np.float32)
    mask[:, :32] = 1.0
    masked_job = change_job(
        two[0], recipe=with_method(output="best"), keep_color="luminance", mask=write_source(tmp_path, "mask", mask)
    )
    out = tmp_path / "out"
    run = run_into(out, snapshots=STEPS)
    result = succeeded([masked_job], run, device)[0]
    expected = postprocess(load_job(masked_job, run), result.image)
    np.testing.assert_allclose(snapshots(out)[snapshot_path("a", STEPS)], expected, atol=0.5 / 255 + 1e-6)


def test_a_store_that_refuses_snapshots_costs_no_pair(two: list[Job], tmp_path: Path, device: Device) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "images").write_text("in the way")
    found = succeeded(two, run_into(out, snapshots=2), device)
    assert [len(result.histories) for result in found] == [2, 2]
    assert (out / "images").read_text() == "in the way"


# --- what a device keeps ---


@pytest.fixture
def own(tiny: Backbone) -> tuple[Device, Backbone]:
    return Device("/CPU:0", {TINY_SHA256: tiny}), tiny


def test_shared_style_is_measured_once_per_size(two: list[Job], tmp_path: Path, own: tuple[Device, Backbone]) -> None:
    device, backbone = own

    def measure(level: tuple[int, int] = (48, 64), **fields: object) -> list[StyleStatistics]:
        ready = load_job(change_job(two[0], **fields), run_into(tmp_path))
        return measure_styles(ready, level, backbone, device)

    other_content, other_style = two[1].content, two[1].styles
    first = measure()
    assert measure(content=other_content)[0] is first[0]
    assert len(device.style_cache) == 1
    measure(level=(32, 43))  # another size
    measure(styles=other_style)
    measure(recipe=with_method(pooling="average"))
    assert len(device.style_cache) == 4
    heavy = with_method(style=replace(LIGHT.method.style, weight=9.0), steps=3)
    assert measure(recipe=heavy)[0] is first[0]  # other numbers, and the same arithmetic
    # recoloured, a style is another for each way and each content, but one for the same
    recolored = [measure(keep_color=keep_color) for keep_color in ("luminance", "match")]
    others = [measure(keep_color=keep_color, content=other_content) for keep_color in ("luminance", "match")]
    assert len({id(one[0]) for one in (first, *recolored, *others)}) == 5
    assert measure(keep_color="match")[0] is recolored[1][0]


def test_a_style_is_seen_on_white(two: list[Job], tmp_path: Path, own: tuple[Device, Backbone]) -> None:
    device, backbone = own
    ready = load_job(two[0], run_into(tmp_path))
    rgb = ready.styles[0].rgb
    statistics_by_style = []
    for style in (Picture(rgb, np.zeros(rgb.shape[:2], np.float32)), Picture(np.ones_like(rgb), None)):
        device.style_cache.clear()
        statistics_by_style.append(measure_styles(replace(ready, styles=(style,)), (48, 64), backbone, device)[0])
    for layer, statistics in statistics_by_style[1].items():
        for name, value in statistics.items():
            np.testing.assert_allclose(statistics_by_style[0][layer][name], value, rtol=1e-5, atol=1e-5)


# --- masks, quality, failures ---


def masked(two: list[Job], tmp_path: Path) -> list[Job]:
    left, top = np.zeros((2, 48, 64, 3), np.float32)
    left[:, :32], top[:24] = 1.0, 1.0
    return [
        replace(one, mask=write_source(tmp_path, name, mask))
        for one, name, mask in zip(two, ("left", "top"), (left, top), strict=True)
    ]


def test_only_inside_its_own_mask_a_pair_changes(two: list[Job], tmp_path: Path, device: Device) -> None:
    run = run_into(tmp_path)
    jobs = masked(two, tmp_path)
    for one, result in zip(jobs, succeeded(jobs, run, device), strict=True):
        ready = load_job(one, run)
        outside = ready.mask == 0.0
        assert 0.4 < outside.mean() < 0.6
        np.testing.assert_array_equal(result.image[outside], ready.content.rgb[outside])
        assert np.abs(result.image - ready.content.rgb)[ready.mask == 1.0].mean() > 0.02


@pytest.mark.parametrize("keep_color", ["", "luminance"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_the_quality_is_that_of_what_the_network_was_shown(
    two: list[Job], tmp_path: Path, device: Device, keep_color: str, with_mask: bool
) -> None:
    run = run_into(tmp_path)
    recolored_job = change_job(masked(two, tmp_path)[0] if with_mask else two[0], keep_color=keep_color)
    result = succeeded([recolored_job], run, device)[0]
    ready, backbone = load_job(recolored_job, run), device.backbones[TINY_SHA256]
    layers = ["block1_conv1", "block2_conv1"]
    expected = metrics.measure(
        backbone,
        layers,
        result.image,
        metrics.content_moments(backbone, prepare_content(ready, 48, 64), layers, ready.mask),
        [metrics.style_moments(backbone, ready.styles[0].rgb, layers)],
        [1.0],
        [at.terms.sum(axis=1) for at in result.histories],
    )
    assert result.quality.as_plain() == expected.as_plain()
    assert result.quality.flags == expected.flags == ()
    assert expected.used is not None
    assert keep_color or expected.used > 0.1


def test_content_is_measured_once_for_all_its_results(two: list[Job], tmp_path: Path, tiny: Backbone) -> None:
    """For its targets and for its quality: once for each size and each mask."""
    fresh = Device("/CPU:0", {TINY_SHA256: tiny})
    other_style = change_job(two[0], id="b", styles=two[1].styles)
    alike = [succeeded([one], run_into(tmp_path), fresh)[0] for one in (two[0], other_style)]
    assert len(fresh.content_cache) == 3  # two levels and the quality
    (alone,) = succeeded([other_style], run_into(tmp_path), Device("/CPU:0", {TINY_SHA256: tiny}))
    assert alike[1].quality == alone.quality
    np.testing.assert_array_equal(alike[1].image, alone.image)
    smaller, gray = replace(two[0], height=36, width=48), change_job(two[0], keep_color="luminance")
    for another, more in ((smaller, 2), (masked(two, tmp_path)[0], 1), (gray, 3)):  # a mask changes no target
        before = len(fresh.content_cache)
        succeeded([another], run_into(tmp_path), fresh)
        assert len(fresh.content_cache) == before + more


def test_steps_that_go_nowhere_are_flagged(two: list[Job], tmp_path: Path, device: Device) -> None:
    timid = with_method(optimizer=replace(LIGHT.method.optimizer, learning_rate=1e-7))
    assert succeeded([replace(two[0], recipe=timid)], run_into(tmp_path), device)[0].quality.flags == ("no_progress",)


LOST = {
    # a recipe, and a style weight at which its loss or the next image's is not finite
    "gram": (with_method(), 1e38),
    # unclipped, it comes to eigenvalues of what is not finite: TensorFlow would raise for the whole batch
    "wasserstein": (
        with_method(
            style=StyleLoss(LIGHT.method.style.layers, 1.0, "wasserstein", relative=True), optimizer=SGD(0.1), clip=False
        ),
        1e30,
    ),
}


@pytest.mark.parametrize(("recipe", "weight"), LOST.values(), ids=LOST)
def test_a_pair_that_leaves_the_finite_numbers_fails_alone(
    two: list[Job], tmp_path: Path, device: Device, recipe: Recipe, weight: float
) -> None:
    good, bad = replace(two[0], recipe=recipe), change_job(two[1], recipe=recipe, style_weights=(weight,))
    run = run_into(tmp_path)
    alone = succeeded([good], run, device)[0]
    for order in ([good, bad], [bad, good]):
        found = optimize(order, run, device)
        diverged, result = found[order.index(bad)], found[order.index(good)]
        assert isinstance(diverged, DivergedError)
        assert isinstance(result, TransferResult)
        pattern = (
            r"the (style|tv|content) loss is not a finite number at step [01] of level 0 \(43 x 32\)"
            r"(, and did before at 10 times the learning rate)?; lower the weights"
        )
        assert re.match(pattern, str(diverged))
        np.testing.assert_allclose(result.image, alone.image, atol=1e-2)
        assert np.abs(result.image - alone.image).mean() < 1e-4
