"""A batch that is interrupted anywhere resumes from its checkpoints to the same bytes; and how checkpoints are written."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from nst_tasks.core.method import LBFGS, SGD, Adam, Method, Plateau, Pyramid
from nst_tasks.core.pyramid import Level
from nst_tasks.engine import checkpoint, checkpoint_store, lockstep, optimization
from nst_tasks.engine.devices import Device
from nst_tasks.engine.divergence import find_divergence
from nst_tasks.engine.optimization import TransferResult
from nst_tasks.engine.preprocessing import load_job
from nst_tasks.errors import DeadlineError, DivergedError, Interrupted, PairError
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.run import Run
from nst_tasks.progress import Progress
from nst_tasks.storage import files
from tests.support.changes import change_job
from tests.support.jobs import LIGHT, job, run_into, two_jobs
from tests.support.pictures import picture, write_source
from tests.support.stores import MemoryStore

STEPS = 4 + 5  # of the light recipe, over its two levels


@pytest.fixture
def two(tmp_path: Path) -> list[Job]:
    """Return two pairs of different contents and styles."""
    return two_jobs(tmp_path)


def make_jobs(jobs: Sequence[Job], method: Method) -> list[Job]:
    return [replace(one, recipe=replace(LIGHT, method=method)) for one in jobs]


def run_jobs(
    jobs: Sequence[Job], run: Run, device: Device, observer: Progress | None = None
) -> list[TransferResult | PairError]:
    return optimization.optimize([load_job(one, run) for one in jobs], run, device, observer or Progress())


def stop_after(chunks: int) -> Progress:
    """Return progress that stops the run after this number of chunks of steps."""
    counts: list[int] = []

    def record(progress: Progress) -> None:
        if progress.computing and counts[-1:] != [progress.steps_done]:
            counts.append(progress.steps_done)  # the first one is that of earlier runs
            if len(counts) > chunks:
                progress.stop.set()

    return Progress(on_change=record)


def list_files(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("*")) if (out / "checkpoints").exists() else []


def assert_same(one: Sequence[TransferResult | PairError], two: Sequence[TransferResult | PairError]) -> None:
    for a, b in zip(one, two, strict=True):
        assert isinstance(a, TransferResult)
        assert isinstance(b, TransferResult)
        assert a.image.tobytes() == b.image.tobytes()
        assert a.restarted == b.restarted
        assert a.quality.as_plain() == b.quality.as_plain()
        for at, other in zip(a.histories, b.histories, strict=True):
            assert (at.level, at.height, at.width) == (other.level, other.height, other.width)
            assert at.terms.tobytes() == other.terms.tobytes()
            assert at.learning_rate.tobytes() == other.learning_rate.tobytes()
            assert len(at.seconds) == len(at.terms)
            assert np.all(np.diff(at.seconds) >= 0)


DESCENT = SGD(0.1, decay=0.97, decay_steps=3)

METHODS: dict[str, Method] = {
    "adam": LIGHT.method,
    "adam, best, no bounds": replace(LIGHT.method, output="best", clip=False),
    "adam, averaged, moments carried up": replace(
        LIGHT.method,
        pyramid=Pyramid(smallest=40, ratio=1.5, coarse_steps=4, carry=True),
        optimizer=Adam(0.05, decay_to=0.1),
        output="average",
        average_decay=0.7,
    ),
    "gradient descent": replace(LIGHT.method, optimizer=DESCENT, clip=False),
    "lbfgs": replace(LIGHT.method, optimizer=LBFGS(3)),
    "noise": replace(LIGHT.method, init="noise", init_noise=0.1, pyramid=None),
}
"""A method for each kind of state; the descent's graph is also that of the methods below whose losses blow up."""


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_run_interrupted_repeatedly_gives_the_same_bytes(
    two: list[Job], tmp_path: Path, device: Device, method: Method, pairs: int
) -> None:
    jobs = make_jobs(two[:pairs], method)
    calm = run_jobs(jobs, run_into(tmp_path / "calm"), device)
    run = run_into(tmp_path / "cut", checkpoint_steps=1)  # each chunk is one step
    interruptions = 0
    while True:
        try:
            found = run_jobs(jobs, run, device, stop_after(2))
            break
        except Interrupted:
            interruptions += 1
            keys = {name.partition(".")[0] for name in list_files(tmp_path / "cut")}
            assert keys == {one.key for one in jobs}
            assert len(list_files(tmp_path / "cut")) == pairs
    assert interruptions >= 2
    assert_same(found, calm)
    # a batch of several pairs ends with checkpoints of their results
    assert [result.has_checkpoints for result in calm if isinstance(result, TransferResult)] == [pairs > 1] * pairs
    assert all(result.has_checkpoints for result in found if isinstance(result, TransferResult))


class RecordingMemory(MemoryStore):
    """Memory that records its contents after each change."""

    protocol = "recorded"
    states: list[dict[str, bytes]] = []

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        super().pipe_file(path, value, mode, **more)
        self.states.append({path: file.getvalue() for path, file in self.store.items()})

    def rm_file(self, path: str) -> None:
        super()._rm(path)
        self.states.append({path: file.getvalue() for path, file in self.store.items()})


@pytest.mark.parametrize("pairs", [1, 2])
def test_kill_loses_no_more_than_one_interval(two: list[Job], tmp_path: Path, device: Device, pairs: int) -> None:
    """Any content of the store after a write or removal of a checkpoint leads to the same bytes."""
    RecordingMemory.store.clear()
    RecordingMemory.states.clear()
    jobs = two[:pairs]
    calm = run_jobs(jobs, run_into(tmp_path / "calm"), device)
    run_jobs(jobs, run_into("recorded://out", checkpoint_steps=4), device)
    states = list(RecordingMemory.states)
    assert {len(state) for state in states} == set(range(1, 2 * pairs + 1))
    for state in states:
        RecordingMemory.store.clear()
        for path, data in state.items():
            files.write(f"recorded:/{path}", data)
        observer = Progress()
        assert_same(run_jobs(jobs, run_into("recorded://out", checkpoint_seconds=0.0), device, observer), calm)
        assert observer.steps_done == pairs * STEPS  # those of before count
        assert observer.work_done == sum(one.pixel_steps for one in jobs)


def test_a_finished_batch_is_not_computed_again(two: list[Job], tmp_path: Path, device: Device) -> None:
    """A kill between the markers of its first and its last pair: the others are there, alone or together."""
    run = run_into(tmp_path)
    found = run_jobs(two, run, device)
    assert list_files(tmp_path) == sorted(f"{one.key}.2-000000.npz" for one in two)
    for jobs in ([two[1]], two):
        observer = stop_after(1)  # the first count is that of before; a step taken would be the second
        assert_same(run_jobs(jobs, run, device, observer), [found[two.index(one)] for one in jobs])
        assert observer.steps_done == STEPS * len(jobs)


def test_pairs_at_different_steps_go_on_apart(two: list[Job], tmp_path: Path, device: Device) -> None:
    run = run_into(tmp_path, checkpoint_steps=1)
    for one, chunks in zip(two, (2, 6), strict=True):
        with pytest.raises(Interrupted):
            run_jobs([one], run, device, stop_after(chunks))
    assert {name.partition(".")[2] for name in list_files(tmp_path)} == {"0-000002.npz", "1-000002.npz"}
    alone = [run_jobs([one], run_into(tmp_path / "calm"), device)[0] for one in two]
    assert_same(run_jobs(two, run, device), alone)


@pytest.mark.parametrize("damage", ["torn", "empty", "another pair's", "another method's"])
def test_useless_checkpoint_is_reported_and_ignored(two: list[Job], tmp_path: Path, device: Device, damage: str) -> None:
    one = two[0]
    calm = run_jobs([one], run_into(tmp_path / "calm"), device)
    run = run_into(tmp_path / "cut", checkpoint_steps=1)
    with pytest.raises(Interrupted):
        run_jobs([one], run, device, stop_after(3))
    (name,) = list_files(tmp_path / "cut")
    path = tmp_path / "cut" / "checkpoints" / name
    whole = path.read_bytes()
    other = make_jobs([one], METHODS["adam, best, no bounds"])[0]
    held = checkpoint.decode(whole, one.key)
    path.write_bytes(
        {
            "torn": whole[: len(whole) // 2],
            "empty": b"",
            "another pair's": checkpoint.encode(held, two[1].key),
            "another method's": checkpoint.encode(held, other.key),
        }[damage]
    )
    pair = one
    if damage == "another method's":
        pair, calm = other, run_jobs([other], run_into(tmp_path / "other"), device)
        path.rename(path.with_name(name.replace(one.key, other.key)))
    observer = Progress()
    assert_same(run_jobs([pair], run, device, observer), calm)
    (warning,) = observer.warnings
    assert warning.startswith(f"checkpoints/{pair.key}.0-000003.npz: ignored, it ")


def test_an_older_checkpoint_serves_where_the_newest_is_damaged(two: list[Job], tmp_path: Path, device: Device) -> None:
    one = two[0]
    calm = run_jobs([one], run_into(tmp_path / "calm"), device)
    run = run_into(tmp_path / "cut", checkpoint_steps=1)
    with pytest.raises(Interrupted):
        run_jobs([one], run, device, stop_after(3))
    newest = tmp_path / "cut" / "checkpoints" / f"{one.key}.1-000001.npz"
    newest.write_bytes(b"torn")
    observer = stop_after(100)
    assert_same(run_jobs([one], run, device, observer), calm)
    assert len(observer.warnings) == 1


# --- steps back ---

# at this rate the loss is soon no number any more, at a tenth of it it falls
WILD = replace(LIGHT.method, optimizer=DESCENT, clip=False, init="noise", init_noise=0.2, pyramid=None, steps=12)
TAME = replace(WILD, optimizer=replace(DESCENT, learning_rate=0.1 * optimization.LR_BACKOFF))
# the same on the second level only
WILD_ABOVE = replace(
    WILD, optimizer=replace(DESCENT, learning_rate=0.05), pyramid=Pyramid(smallest=40, ratio=1.5, coarse_steps=1)
)


def test_a_loss_that_blows_up_steps_back_once(two: list[Job], tmp_path: Path, device: Device) -> None:
    observer = Progress()
    (found,) = run_jobs(make_jobs(two[:1], WILD), run_into(tmp_path), device, observer)
    (expected,) = run_jobs(make_jobs(two[:1], TAME), run_into(tmp_path), device)
    assert isinstance(found, TransferResult)
    assert isinstance(expected, TransferResult)
    assert (found.restarted, expected.restarted) == (True, False)
    assert_same([replace(found, restarted=False)], [expected])
    assert observer.steps_done == 12  # what was in vain is taken back


def test_only_the_level_that_blew_up_is_repeated(two: list[Job], tmp_path: Path, device: Device) -> None:
    """The coarse level ends before its loss is lost, the fine one does not."""
    (found,) = run_jobs(make_jobs(two[:1], WILD_ABOVE), run_into(tmp_path), device)
    (coarse,) = run_jobs(make_jobs(two[:1], replace(WILD_ABOVE, steps=0)), run_into(tmp_path), device)
    assert isinstance(found, TransferResult)
    assert isinstance(coarse, TransferResult)
    assert found.restarted
    assert found.histories[0].terms.tobytes() == coarse.histories[0].terms.tobytes()
    assert np.isfinite(found.histories[1].terms).all()
    assert found.histories[1].terms[0].tobytes() == coarse.histories[1].terms[0].tobytes()  # from the level's first image
    rates = [at.learning_rate[0] for at in found.histories]
    assert rates == pytest.approx([0.05, 0.05 * optimization.LR_BACKOFF])


@pytest.mark.parametrize("method", [WILD, WILD_ABOVE])
def test_restarted_level_survives_interruptions(two: list[Job], tmp_path: Path, device: Device, method: Method) -> None:
    jobs = make_jobs(two[:1], method)
    calm = run_jobs(jobs, run_into(tmp_path / "calm"), device)
    run = run_into(tmp_path / "cut", checkpoint_steps=1)
    for _ in range(40):
        try:
            found = run_jobs(jobs, run, device, stop_after(2))
            break
        except Interrupted:
            continue
    assert_same(found, calm)


def test_pair_that_blows_up_leaves_its_neighbour_alone(two: list[Job], tmp_path: Path, device: Device) -> None:
    tame, calm = make_jobs(two, TAME)
    wild = change_job(tame, id="wild", style_weights=(300.0,))
    for k, (jobs, others) in enumerate((([calm, wild], [calm, tame]), ([wild, calm], [tame, calm]))):
        blown = run_jobs(jobs, run_into(tmp_path / f"blown{k}"), device)
        quiet = run_jobs(others, run_into(tmp_path / f"quiet{k}"), device)
        assert isinstance(blown[1 - k], DivergedError)  # a tenth of the rate is too much as well
        assert_same(blown[k : k + 1], quiet[k : k + 1])


def test_second_divergence_fails_with_its_step_and_term(two: list[Job], tmp_path: Path, device: Device) -> None:
    (found,) = run_jobs(
        make_jobs(two[:1], replace(WILD, optimizer=replace(DESCENT, learning_rate=10.0))), run_into(tmp_path), device
    )
    assert isinstance(found, DivergedError)
    assert str(found) == (
        "the content loss is not a finite number at step 3 of level 0 (64 x 48), and did before at 10 times the learning rate; "
        "lower the weights or take another recipe"
    )


def rows(*totals: float) -> np.ndarray:
    """Terms (n, 3) of these totals, nine tenths of each the style's."""
    return np.array([[0.05 * total, 0.9 * total, 0.05 * total] for total in totals], np.float32)


def test_explosion_is_ten_thousand_times_the_first_losses() -> None:
    level = Level(48, 64, 99)
    falling = [100.0, 400.0, *[50.0] * 10]
    look = find_divergence
    assert look(WILD, level, 1, rows(*falling)) is None
    assert look(WILD, level, 1, rows(*falling, 3.9e6)) is None
    assert look(WILD, level, 1, rows(*falling, 50, 4.1e6, 9e9)) == (
        13, "the style loss exploded to 3.69e+06 at step 13 of level 1 (64 x 48)",
    )  # fmt: skip
    assert (
        look(replace(WILD, clip=True), level, 1, rows(*falling, 9e9)) is None
    )  # no image in bounds is that far from any other
    assert look(WILD, level, 1, rows(*[0.0] * 12)) is None
    assert look(WILD, level, 1, rows(1.0, np.nan, 1.0)) == (
        1,
        "the content loss is not a finite number at step 1 of level 1 (64 x 48)",
    )


def test_lbfgs_diverges_only_by_its_last_loss() -> None:
    level, method = Level(48, 64, 99), METHODS["lbfgs"]
    assert find_divergence(method, level, 0, rows(5.0, np.inf, 4.0)) is None
    assert find_divergence(method, level, 0, rows(5.0, 4.0, np.nan)) == (
        2, "the content loss is not a finite number at step 2 of level 0 (64 x 48)",
    )  # fmt: skip


# --- pairs whose levels end apart ---

# of levels so large that a pair's last bits are others alone than in a batch
TALL = Pyramid(smallest=60, ratio=1.125, coarse_steps=15)
FALLING = replace(LIGHT.method, steps=4, pyramid=TALL, plateau=Plateau(window=3, tolerance=0.06))
RISING = replace(FALLING, optimizer=replace(DESCENT, learning_rate=0.01), clip=False, plateau=None)
BOTH = replace(RISING, optimizer=replace(DESCENT, learning_rate=0.003), plateau=Plateau(window=3, tolerance=0.3))
# the style's weight with which the loss is soon no number any more; at a tenth of the rate it falls
HEAVY = 30.0

APART = pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        (FALLING, (1.0, 1.0), [15, 9]),
        (RISING, (HEAVY, HEAVY, 1.0), ["restarted", "restarted", 15]),
        (BOTH, (HEAVY, 1.0, 1.0), ["restarted", 6, 15]),
    ],
    ids=["one flat", "two blown up", "one flat, one blown up"],
)
"""Batches whose pairs end their first level at different steps; what becomes of each on that level."""


def unequal_jobs(folder: Path, method: Method, weights: Sequence[float]) -> list[Job]:
    """Pairs of a batch, with the weights of their styles."""
    pictures = [
        (write_source(folder, f"c{k}", picture(k, 48, 64)), write_source(folder, f"s{k}", picture(k + 2, 72, 60)))
        for k in (1, 5, 2)
    ]
    return make_jobs(
        [
            job(content, style, id=id, height=54, width=72, style_weights=(weight,))
            for id, (content, style), weight in zip("abc", pictures, weights, strict=False)
        ],
        method,
    )


def first_levels(results: Sequence[TransferResult | PairError]) -> list[int | str]:
    """Return the steps of each pair's first level, or that it restarted."""
    return [
        "restarted" if one.restarted else len(one.histories[0].terms) - 1 for one in results if isinstance(one, TransferResult)
    ]


@APART
def test_stopped_at_random_steps_a_batch_gives_the_same_bytes(
    tmp_path: Path, device: Device, method: Method, weights: Sequence[float], expected: list[int | str]
) -> None:
    jobs = unequal_jobs(tmp_path, method, weights)
    calm = run_jobs(jobs, run_into(tmp_path / "calm"), device)
    assert first_levels(calm) == expected
    run = run_into(tmp_path / "cut", checkpoint_steps=1)  # each chunk is one step
    random = Random(1508)
    while True:
        progress = stop_after(random.randint(1, 12))
        progress.add(steps=sum(one.steps for one in jobs), work=sum(one.pixel_steps for one in jobs))
        try:
            found = run_jobs(jobs, run, device, progress)
            break
        except Interrupted:
            continue
    assert_same(found, calm)
    total_steps = sum(len(level.terms) - 1 for one in found if isinstance(one, TransferResult) for level in one.histories)
    assert progress.steps == progress.steps_done == total_steps
    assert progress.work == progress.work_done


def test_stop_after_a_pair_blew_up_costs_no_steps(tmp_path: Path, device: Device) -> None:
    """Without a checkpoint of the pair that waits for its restart, a resume would begin the whole batch again."""
    jobs = unequal_jobs(tmp_path, RISING, (HEAVY, 1.0))
    calm = run_jobs(jobs, run_into(tmp_path / "calm"), device)
    run = run_into(tmp_path / "cut", checkpoint_seconds=0.0)
    counts: list[int] = []

    def stop_on_second_level(progress: Progress) -> None:
        counts.append(progress.steps_done)
        taken_back = any(after < before for before, after in pairwise(counts))  # the steps in vain, when the first level ends
        if taken_back and counts[-1] > counts[-2]:
            progress.stop.set()

    with pytest.raises(Interrupted):
        run_jobs(jobs, run, device, Progress(on_change=stop_on_second_level))
    progress = Progress()
    progress.stop.set()
    with pytest.raises(Interrupted):
        run_jobs(jobs, run, device, progress)
    assert progress.steps_done == counts[-1] > 15
    assert_same(run_jobs(jobs, run, device), calm)


@APART
def test_killed_at_any_moment_a_batch_gives_the_same_bytes(
    tmp_path: Path, device: Device, method: Method, weights: Sequence[float], expected: list[int | str]
) -> None:
    """Any content of the store after a write or a removal leads to the bytes of an undisturbed batch.

    Every eighth step is one of the second level, too: its checkpoints are replaced by the final ones while a pair waits for its
    restart at the first.
    """
    jobs = unequal_jobs(tmp_path, method, weights)
    calm = run_jobs(jobs, run_into(tmp_path / "calm"), device)
    assert first_levels(calm) == expected
    RecordingMemory.store.clear()
    RecordingMemory.states.clear()
    run_jobs(jobs, run_into("recorded://out", checkpoint_steps=8), device)
    states = RecordingMemory.states.copy()
    for state in (each for k, each in enumerate(states) if each not in states[:k]):
        RecordingMemory.store.clear()
        for path, data in state.items():
            files.write(f"recorded:/{path}", data)
        assert_same(run_jobs(jobs, run_into("recorded://out", checkpoint_seconds=0.0), device), calm)


# --- deadlines ---


def test_a_pair_that_takes_too_long_fails_and_can_go_on(two: list[Job], tmp_path: Path, device: Device) -> None:
    one = two[:1]
    calm = run_jobs(one, run_into(tmp_path / "calm"), device)
    run = run_into(tmp_path / "late", pair_timeout=1e-6)
    (late,) = run_jobs(one, run, device)
    assert isinstance(late, DeadlineError)
    assert str(late) == (
        "not done after --pair-timeout 1e-06 seconds, at step 1 of 4 of level 0 (43 x 32); raise it, and the pair goes on from "
        "there, or lower size or steps"
    )
    assert list_files(tmp_path / "late") == [f"{one[0].key}.0-000001.npz"]
    observer = Progress()
    assert_same(run_jobs(one, run_into(tmp_path / "late", pair_timeout=600.0), device, observer), calm)
    assert observer.steps_done == STEPS


def test_pair_seconds_are_its_share_over_all_runs(two: list[Job], tmp_path: Path, device: Device) -> None:
    run_jobs(two, run_into(tmp_path, pair_timeout=1e-9), device)
    (name, _) = list_files(tmp_path)
    path = tmp_path / "checkpoints" / name
    key = name.partition(".")[0]
    at = checkpoint.decode(path.read_bytes(), key)
    history = replace(at.histories[0], seconds=(np.array([0.0, 1000.0]),))
    path.write_bytes(checkpoint.encode(replace(at, histories=(history,)), key))
    assert all(isinstance(one, DeadlineError) for one in run_jobs(two, run_into(tmp_path, pair_timeout=499.0), device))
    assert all(isinstance(one, TransferResult) for one in run_jobs(two, run_into(tmp_path, pair_timeout=501.0), device))


# --- the files ---


def test_checkpoints_are_due_by_steps_by_seconds_or_never() -> None:
    saver = checkpoint_store.CheckpointWriter("memory://nowhere", lambda sentence: None)
    by_steps, always, never = (
        run_into("", checkpoint_steps=3),
        run_into("", checkpoint_seconds=1e-9),
        run_into("", checkpoint_seconds=0.0),
    )
    assert [steps for steps in range(1, 10) if saver.is_due(steps, by_steps)] == [3, 6, 9]
    assert saver.is_due(1, always)
    assert not saver.is_due(1, never)
    assert not saver.is_due(1, run_into("", checkpoint_seconds=3600.0))


def test_steps_are_counted_over_all_levels(two: list[Job], tmp_path: Path, device: Device) -> None:
    """Every third of nine steps, four of which are on the first level."""
    steps: list[int] = []
    run_jobs(
        two[:1],
        run_into(tmp_path, checkpoint_steps=3),
        device,
        Progress(on_change=lambda watch: steps.append(watch.steps_done)),
    )
    assert {3, 4, 6, 9} <= set(steps)  # a chunk ends where a checkpoint is due, and where a level does


class SlowMemory(MemoryStore):
    """Memory whose writes of checkpoints wait until the test allows them, or fail."""

    protocol = "slow"
    may = threading.Event()
    broken: BaseException | None = None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if self.broken:
            raise self.broken
        self.may.wait(30)
        super().pipe_file(path, value, mode, **more)


@pytest.fixture
def slow() -> Iterator[type[SlowMemory]]:
    SlowMemory.store.clear()
    SlowMemory.may.clear()
    SlowMemory.broken = None
    yield SlowMemory
    SlowMemory.may.set()
    SlowMemory.broken = None


def test_the_steps_do_not_wait_for_a_checkpoint_to_be_written(
    two: list[Job], tmp_path: Path, device: Device, slow: type[SlowMemory]
) -> None:
    """All steps are done while the first write still waits; then it may end."""
    step_counts: list[int] = []

    def record(watch: Progress) -> None:
        step_counts.append(watch.steps_done)
        if watch.steps_done == STEPS:
            slow.may.set()

    run_jobs(two[:1], run_into("slow://out", checkpoint_steps=1), device, Progress(on_change=record))
    assert step_counts[-1] == STEPS
    assert len(files.list_files("slow://out/checkpoints")) == 1  # one at a time: the others were not due meanwhile


def test_writer_is_idle_once_its_checkpoint_is_written(
    two: list[Job], tmp_path: Path, device: Device, slow: type[SlowMemory]
) -> None:
    with pytest.raises(Interrupted):
        run_jobs(two[:1], run_into(tmp_path), device, stop_after(1))
    (name,) = list_files(tmp_path)
    key = name.partition(".")[0]
    with checkpoint_store.CheckpointWriter("slow://out", lambda sentence: None) as saver:
        saver.wait_until_idle(threading.Event())  # nothing is being written
        saver.save([key], checkpoint.decode((tmp_path / "checkpoints" / name).read_bytes(), key))
        threading.Timer(0.2, slow.may.set).start()
        saver.wait_until_idle(threading.Event())
        assert saver.is_idle
        assert list(files.list_files("slow://out/checkpoints")) == [name]


def test_large_image_waits_for_its_checkpoint_write(
    two: list[Job], tmp_path: Path, device: Device, slow: type[SlowMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large is the fine level here. Of the coarse one all four steps are taken while the first write still waits."""
    monkeypatch.setattr(lockstep, "LARGE_IMAGE_PIXELS", 48 * 64 - 1)
    has_checkpoint: dict[int, bool] = {}

    def record(watch: Progress) -> None:
        if watch.steps_done == 5 and 5 not in has_checkpoint:
            threading.Timer(0.3, slow.may.set).start()
        has_checkpoint.setdefault(watch.steps_done, bool(files.list_files("slow://out/checkpoints")))

    run_jobs(two[:1], run_into("slow://out", checkpoint_steps=1), device, Progress(on_change=record))
    assert [has_checkpoint[steps] for steps in (4, 5, 6, STEPS)] == [False, False, True, True]


def test_stopped_run_waits_briefly_for_its_checkpoint(
    two: list[Job], tmp_path: Path, device: Device, slow: type[SlowMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_store, "FINAL_SAVE_TIMEOUT", 0.1)
    with pytest.raises(Interrupted):
        run_jobs(two[:1], run_into("slow://out"), device, stop_after(1))
    assert not slow.may.is_set()  # the write still waits: it was left behind


def test_stopped_run_waits_for_no_earlier_checkpoint(
    two: list[Job], tmp_path: Path, device: Device, slow: type[SlowMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked while steps of a large picture wait for the checkpoint of the step before."""
    monkeypatch.setattr(checkpoint_store, "FINAL_SAVE_TIMEOUT", 0.1)
    monkeypatch.setattr(lockstep, "LARGE_IMAGE_PIXELS", 0)

    def record(watch: Progress) -> None:
        if watch.steps_done == 2:
            threading.Timer(0.1, watch.stop.set).start()

    with pytest.raises(Interrupted):
        run_jobs(two[:1], run_into("slow://out", checkpoint_steps=1), device, Progress(on_change=record))
    assert not files.list_files("slow://out/checkpoints")  # the write still waits: it was left behind


@pytest.mark.parametrize(
    ("error", "why"),
    [(OSError(5, "the store is away"), "slow://out/checkpoints/"), (MemoryError(), "out of memory")],
)
def test_failed_checkpoint_write_only_warns(
    two: list[Job], tmp_path: Path, device: Device, slow: type[SlowMemory], error: BaseException, why: str
) -> None:
    slow.broken = error
    observer = Progress()
    calm = run_jobs(two[:1], run_into(tmp_path / "calm"), device)
    assert_same(run_jobs(two[:1], run_into("slow://out", checkpoint_steps=4), device, observer), calm)
    assert observer.warnings[0].startswith(f"no checkpoint was written at level 0, step 4: {why}")


def test_only_checkpoints_of_the_pairs_asked_for_are_removed(tmp_path: Path) -> None:
    for name in ("aa.0-000001.npz", "aa.1-000002.npz", "bb.0-000001.npz", "notes.txt", "cc.npz"):
        files.write(str(tmp_path / "checkpoints" / name), b"x")
    assert checkpoint_store.list_checkpoints(str(tmp_path)) == {"aa": [(1, 2), (0, 1)], "bb": [(0, 1)]}
    checkpoint_store.delete_checkpoints(str(tmp_path), ["aa", "dd"])
    assert list_files(tmp_path) == ["bb.0-000001.npz", "cc.npz", "notes.txt"]
    checkpoint_store.delete_checkpoints(str(tmp_path / "nothing here"), ["aa"])


def test_late_write_deletes_only_checkpoints_before_its_own(two: list[Job], tmp_path: Path, device: Device) -> None:
    with pytest.raises(Interrupted):
        run_jobs(two[:1], run_into(tmp_path, checkpoint_steps=1), device, stop_after(3))
    (name,) = list_files(tmp_path)
    key = name.partition(".")[0]
    at = checkpoint.decode((tmp_path / "checkpoints" / name).read_bytes(), key)
    for other in ("0-000002", "1-000000"):
        files.write(str(tmp_path / "checkpoints" / f"{key}.{other}.npz"), b"x")
    with checkpoint_store.CheckpointWriter(str(tmp_path), lambda sentence: None) as writer:
        writer.save([key], at)
    assert list_files(tmp_path) == [name, f"{key}.1-000000.npz"]
    with checkpoint_store.CheckpointWriter(str(tmp_path), lambda sentence: None) as writer:
        writer.save([key], replace(at, lr_reduced_from_level=0))  # the level's steps count from 0 again
    assert list_files(tmp_path) == [name]


class Unlisted(MemoryStore):
    """Memory that refuses to be listed."""

    protocol = "unlisted"

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        raise PermissionError("no listing here")


def test_store_that_refuses_to_list_checkpoints_costs_no_pair(two: list[Job], tmp_path: Path, device: Device) -> None:
    calm = run_jobs(two[:1], run_into(tmp_path), device)
    progress = Progress()
    found = run_jobs(two[:1], run_into("unlisted://out", checkpoint_seconds=0.0), device, progress)
    assert_same(found, calm)
    (warning,) = progress.warnings
    assert warning.startswith("checkpoints: ignored, ")
