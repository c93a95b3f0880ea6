"""Levels that end early: where the rule says, and there whatever the chunks, the batch, checkpoints and interruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nst_tasks.core.method import LBFGS, Adam, Method, Plateau
from nst_tasks.engine import checkpoint, optimization
from nst_tasks.engine.devices import Device
from nst_tasks.engine.optimization import TransferResult
from nst_tasks.engine.preprocessing import load_job
from nst_tasks.errors import Interrupted, SettingsError
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.run import Run
from nst_tasks.progress import Progress
from tests.support.jobs import LIGHT, run_into, two_jobs

RULE = Plateau(window=3, tolerance=0.06)
COARSE, FINE = 40, 60


def flat(method: Method, **fields: object) -> Method:
    """Return the method with many steps on both levels, and a plateau."""
    assert method.pyramid is not None
    pyramid = replace(method.pyramid, coarse_steps=COARSE)
    return replace(method, steps=FINE, pyramid=pyramid, **{"plateau": RULE} | fields)


@pytest.fixture
def two(tmp_path: Path) -> list[Job]:
    recipe = replace(LIGHT, method=flat(LIGHT.method))
    return [replace(job, recipe=recipe) for job in two_jobs(tmp_path)]


def optimize(jobs: Sequence[Job], run: Run, device: Device, observer: Progress | None = None) -> list[TransferResult]:
    found = optimization.optimize([load_job(job, run) for job in jobs], run, device, observer or Progress())
    assert all(isinstance(result, TransferResult) for result in found)
    return found  # type: ignore[return-value]


def steps(result: TransferResult) -> list[int]:
    return [len(level.terms) - 1 for level in result.histories]


def test_level_ends_when_the_window_mean_stops_falling() -> None:
    rule = Plateau(window=2, tolerance=0.1)
    assert not rule.is_reached([])
    assert not rule.is_reached([5.0, 5.0])  # no window before
    assert not rule.is_reached([5.0, 5.0, 5.0])  # between two windows
    assert rule.is_reached([5.0, 5.0, 5.0, 5.0])
    assert rule.is_reached([6.0, 4.0, 9.0, 0.25])  # 4.625 is not 10 % below 5
    assert not rule.is_reached([6.0, 4.0, 8.0, 0.75])  # 4.375 is, though one of them is a rise
    assert rule.is_reached([1.0, 1.0, 2.0, 2.0])
    assert rule.is_reached([0.0, 0.0, 0.0, 0.0])  # nothing is left to fall
    assert Plateau(window=2, tolerance=0.5).is_reached([4.0, 4.0, 2.0, 2.0])
    assert not Plateau(window=2, tolerance=0.5).is_reached([4.0, 4.0, 2.0, 1.9])
    assert not rule.is_reached([5.0, 5.0, np.inf, 5.0])
    assert not rule.is_reached([np.nan, 5.0, 5.0, 5.0])


def test_a_plateau_that_could_never_or_always_be_is_refused() -> None:
    for tolerance in (0.0, 1.0, float("nan")):
        with pytest.raises(SettingsError, match="^plateau: .* is not a share between 0 and 1; take one such as 0.01$"):
            Plateau(tolerance=tolerance)
    with pytest.raises(SettingsError, match="^plateau window: 0 is not in 1..100000$"):
        Plateau(window=0)


@pytest.mark.parametrize("optimizer", [LIGHT.method.optimizer, LBFGS(history=3)])
def test_each_level_ends_at_its_first_flat_window(two: list[Job], tmp_path: Path, device: Device, optimizer: object) -> None:
    run, observer = run_into(tmp_path), Progress()
    method = flat(LIGHT.method, optimizer=optimizer)
    job = replace(two[0], recipe=replace(LIGHT, method=method))
    observer.add(steps=job.steps, work=job.pixel_steps)
    (found,) = optimize([job], run, device, observer)
    (whole,) = optimize([replace(job, recipe=replace(LIGHT, method=replace(method, plateau=None)))], run, device)
    totals = [float(terms.sum(dtype=np.float64)) for terms in whole.histories[0].terms[:COARSE]]
    means = [np.mean(totals[k : k + 3]) for k in range(0, COARSE - 2, 3)]
    expected = next(3 * (k + 2) for k in range(len(means) - 1) if means[k + 1] > (1 - 0.06) * means[k])
    coarse, fine = steps(found)
    assert coarse == expected < COARSE
    assert fine < FINE
    assert fine % 3 == 0
    for level, whole_level in zip(found.histories, whole.histories, strict=True):
        rows = len(level.terms)
        assert (len(level.learning_rate), len(level.seconds)) == (rows, rows)
        np.testing.assert_array_equal(level.learning_rate, whole_level.learning_rate[:rows])
    np.testing.assert_array_equal(found.histories[0].terms[:-1], whole.histories[0].terms[:coarse])
    # what is not done is not waited for
    assert observer.steps == observer.steps_done == coarse + fine
    assert observer.work == observer.work_done == coarse * 32 * 43 + fine * 48 * 64


def assert_same(found: TransferResult, expected: TransferResult) -> None:
    """Bit for bit, but for the seconds."""
    np.testing.assert_array_equal(found.image, expected.image)
    for one, other in zip(found.histories, expected.histories, strict=True):
        np.testing.assert_array_equal(one.terms, other.terms)
        np.testing.assert_array_equal(one.learning_rate, other.learning_rate)


def test_plateau_does_not_depend_on_chunks_or_resume(two: list[Job], tmp_path: Path, device: Device) -> None:
    job = two[0]
    (calm,) = optimize([job], run_into(tmp_path / "calm"), device)
    (cut,) = optimize([job], run_into(tmp_path / "cut", snapshots=7, checkpoint_steps=4), device)
    assert_same(cut, calm)
    for stop in (2, steps(calm)[0], sum(steps(calm)) - 1):
        run = run_into(tmp_path / f"stopped{stop}", checkpoint_steps=1)

        def interrupt(watch: Progress, stop: int = stop) -> None:
            if watch.steps_done >= stop:
                watch.stop.set()

        with pytest.raises(Interrupted):
            optimize([job], run, device, Progress(on_change=interrupt))
        observer = Progress()
        observer.add(steps=job.steps, work=job.pixel_steps)
        (resumed,) = optimize([job], run, device, observer)
        assert_same(resumed, calm)
        assert observer.steps == observer.steps_done == sum(steps(calm))
        assert observer.work == observer.work_done


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"output": "average"},
        {"output": "best", "clip": False},
        {"optimizer": LBFGS(history=3), "plateau": Plateau(window=3, tolerance=0.03)},
    ],
    ids=["last", "average", "best", "lbfgs"],
)
def test_flat_pair_keeps_its_image_while_another_moves(
    two: list[Job], tmp_path: Path, device: Device, fields: dict[str, object]
) -> None:
    """Each ends with the image, and with the losses, of a batch that took just so many steps without a plateau."""

    def batch(**changes: object) -> list[TransferResult]:
        method = replace(flat(LIGHT.method, **fields), pyramid=None, **changes)
        jobs = [replace(job, recipe=replace(LIGHT, method=method), height=32, width=43) for job in two]
        return optimize(jobs, run_into(tmp_path), device)

    found = batch()
    ends = [steps(result)[0] for result in found]
    assert ends[0] != ends[1]
    assert max(ends) < FINE
    for k, end in enumerate(ends):
        assert_same(found[k], batch(plateau=None, steps=end)[k])


def test_each_pair_of_a_batch_ends_by_its_own_losses(two: list[Job], tmp_path: Path, device: Device) -> None:
    alone = [optimize([job], run_into(tmp_path / "alone"), device)[0] for job in two]
    assert steps(alone[0]) != steps(alone[1])
    observer = Progress()
    observer.add(steps=sum(job.steps for job in two), work=sum(job.pixel_steps for job in two))
    together = optimize(two, run_into(tmp_path, snapshots=7), device, observer)
    assert observer.steps == observer.steps_done == sum(sum(steps(result)) for result in alone)
    assert observer.work == observer.work_done
    for job, one, other in zip(two, together, alone, strict=True):
        assert steps(one) == steps(other)
        for ours, theirs in zip(one.histories, other.histories, strict=True):
            np.testing.assert_allclose(ours.terms.sum(axis=1), theirs.terms.sum(axis=1), rtol=1e-2)
        shown = sorted(path.name for path in (tmp_path / "images" / f"{job.id}.snapshots").iterdir())
        assert shown == [f"step-{step:06d}.png" for step in range(7, sum(steps(one)) + 1, 7)]  # by the pair's own steps


def test_moments_carried_up_are_of_the_steps_that_a_pair_took(two: list[Job], tmp_path: Path, device: Device) -> None:
    """Adam corrects for the start by the number of steps: that of the pair, not of the batch, which took more."""
    pyramid = replace(LIGHT.method.pyramid, coarse_steps=COARSE, carry=True)
    optimizer = Adam(0.05, beta_2=0.9, epsilon=1e-3)
    method = replace(LIGHT.method, pyramid=pyramid, plateau=RULE, optimizer=optimizer, steps=1)
    jobs = [replace(job, recipe=replace(LIGHT, method=method)) for job in two]
    together = optimize(jobs, run_into(tmp_path / "together"), device)
    assert steps(together[0])[0] != steps(together[1])[0]
    for job, one in zip(jobs, together, strict=True):
        (alone,) = optimize([job], run_into(tmp_path / "alone"), device)
        assert steps(one) == steps(alone)
        np.testing.assert_allclose(one.image, alone.image, atol=1e-3)


def test_pairs_at_one_step_resume_with_unequal_histories(two: list[Job], tmp_path: Path, device: Device) -> None:
    calm = [optimize([job], run_into(tmp_path / "calm"), device)[0] for job in two]
    coarse = [steps(result)[0] for result in calm]
    assert coarse[0] != coarse[1]
    run = run_into(tmp_path / "cut", checkpoint_steps=1)
    for job, before in zip(two, coarse, strict=True):

        def interrupt(watch: Progress, last: int = before + 2) -> None:
            if watch.steps_done == last:
                watch.stop.set()

        with pytest.raises(Interrupted):
            optimize([job], run, device, Progress(on_change=interrupt))
    for found, expected in zip(optimize(two, run, device), calm, strict=True):
        assert steps(found) == steps(expected)
        np.testing.assert_array_equal(found.histories[0].terms, expected.histories[0].terms)
        for level, other in zip(found.histories, expected.histories, strict=True):
            np.testing.assert_allclose(level.terms.sum(axis=1), other.terms.sum(axis=1), rtol=1e-2)


def test_time_of_a_step_is_shared_by_the_pairs_that_move(two: list[Job], tmp_path: Path, device: Device) -> None:
    early, late = sorted(optimize(two, run_into(tmp_path), device), key=lambda result: steps(result)[0])
    end = steps(early)[0]
    coarse = [result.histories[0].seconds for result in (early, late)]
    np.testing.assert_array_equal(coarse[0], coarse[1][: end + 1])
    assert coarse[1][-1] > coarse[0][-1] == early.histories[1].seconds[0]  # what it waited is not its time
    assert early.seconds == early.histories[-1].seconds[-1]


def test_pair_timeout_holds_for_the_mean_of_a_batch(two: list[Job], tmp_path: Path, device: Device) -> None:
    with pytest.raises(Interrupted):
        optimize(
            two, run_into(tmp_path), device, Progress(on_change=lambda watch: watch.stop.set() if watch.steps_done else None)
        )
    for job, seconds in zip(two, (200.0, 1800.0), strict=True):
        path = tmp_path / "checkpoints" / f"{job.key}.0-000001.npz"
        at = checkpoint.decode(path.read_bytes(), job.key)
        history = replace(at.histories[0], seconds=(np.array([0.0, seconds]),))
        path.write_bytes(checkpoint.encode(replace(at, histories=(history,)), job.key))
    for result, seconds in zip(optimize(two, run_into(tmp_path, pair_timeout=1500.0), device), (200.0, 1800.0), strict=True):
        assert seconds < result.histories[-1].seconds[-1] == result.seconds < seconds + 300
