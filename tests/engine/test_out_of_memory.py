"""A device whose memory is too small, played by a core whose steps refuse more than so many pixels at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from nst_tasks.core import transfer
from nst_tasks.engine import run_batch
from nst_tasks.engine.devices import Device
from nst_tasks.engine.optimization import TransferResult
from nst_tasks.engine.out_of_memory import is_out_of_memory, optimize_with_halving
from nst_tasks.engine.preprocessing import load_job
from nst_tasks.errors import MemoryTooSmall, PairError
from nst_tasks.inputs.jobs import Batch, Job
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs.outcome import Status
from nst_tasks.progress import Progress
from tests.support.changes import change_job
from tests.support.jobs import job, run_into
from tests.support.pictures import picture, write_source

pytestmark = pytest.mark.usefixtures("share_backbone")

EXHAUSTED = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8,512,64,64]")


@pytest.fixture
def four(tmp_path: Path) -> list[Job]:
    """Four pairs of one shape."""
    style = write_source(tmp_path, "style", picture(9, 60, 60))
    return [job(write_source(tmp_path, f"content{k}", picture(k, 48, 64)), style, id=f"p{k}", row=k + 2) for k in range(4)]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Make steps fail above a number of pairs, or from the level of a height on; record the sizes of the batches."""
    original = transfer.advance

    def make(pairs: int, height: int = 10**9, error: BaseException = EXHAUSTED) -> list[int]:
        batch_sizes: list[int] = []

        def advance(backbone: Any, method: Any, targets: Any, state: transfer.TransferState, n: int, steps: int) -> Any:
            batch_sizes.append(int(state.image.shape[0]))
            if state.image.shape[0] > pairs or state.image.shape[1] >= height:
                raise error
            return original(backbone, method, targets, state, n, steps)

        monkeypatch.setattr(transfer, "advance", advance)
        return batch_sizes

    return make


def optimize(jobs: list[Job], run: Run, device: Device, observer: Progress | None = None) -> list[TransferResult | PairError]:
    return optimize_with_halving([load_job(one, run) for one in jobs], run, device, observer or Progress())


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    four: list[Job], tmp_path: Path, device: Device, room: Callable[..., list[int]]
) -> None:
    alone = [optimize([one], run_into(tmp_path / "alone"), device)[0] for one in four]
    batch_sizes, observer = room(1), Progress()
    found = optimize(four, run_into(tmp_path / "out"), device, observer)
    assert [size for k, size in enumerate(batch_sizes) if not k or size != batch_sizes[k - 1]] == [4, 2, 1, 2, 1]
    for one, other in zip(found, alone, strict=True):
        assert isinstance(one, TransferResult)
        assert isinstance(other, TransferResult)
        assert one.image.tobytes() == other.image.tobytes()
    assert observer.warnings == [
        "/CPU:0: out of memory for 4 pairs at once; halved. A lower NST_BATCH avoids the attempt",
        "/CPU:0: out of memory for 2 pairs at once; halved. A lower NST_BATCH avoids the attempt",
    ]


def test_caches_are_cleared_when_memory_runs_out(four: list[Job], tmp_path: Path, room: Callable[..., list[int]]) -> None:
    device = Device("/CPU:0")
    for cache in (device.style_cache, device.content_cache):
        cache.get_or_compute("from before", list)
    room(0)
    optimize(four[:1], run_into(tmp_path), device)
    assert (len(device.style_cache), len(device.content_cache)) == (0, 0)


def test_the_halves_go_on_from_the_checkpoint(
    four: list[Job], tmp_path: Path, device: Device, room: Callable[..., list[int]]
) -> None:
    """The coarse level fits, the fine one does not: its steps are not taken again."""
    batch_sizes = room(4)
    run = run_into(tmp_path, checkpoint_steps=4)
    original = transfer.advance

    def narrow(backbone: Any, method: Any, targets: Any, state: transfer.TransferState, n: int, steps: int) -> Any:
        if state.level == 1 and state.image.shape[0] > 2:
            raise EXHAUSTED
        return original(backbone, method, targets, state, n, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "advance", narrow)
        assert all(isinstance(one, TransferResult) for one in optimize(four, run, device))
    first_half = batch_sizes.index(2)
    assert set(batch_sizes[:first_half]) == {4}
    assert len(batch_sizes[:first_half]) == 2  # chunks of one and of three steps: the coarse level, once


@pytest.mark.parametrize(
    ("gib", "side"),
    [
        (8.0, 80),  # the estimate says that it fits, and it did not: half the pixels
        (0.5 * 4000 * 96 * 128 / 4 / 2**30 * 2, 64),  # what was said of the device has room for a quarter
    ],
)
def test_pair_too_large_fails_with_a_size_that_fits(
    four: list[Job], tmp_path: Path, device: Device, room: Callable[..., list[int]], gib: float, side: int
) -> None:
    room(0)
    large = replace(four[0], height=96, width=128)
    run = run_into(tmp_path, settings=Settings.model_construct(device_memory_gib=gib))
    (found,) = optimize([large], run, device)
    assert isinstance(found, MemoryTooSmall)
    assert str(found) == (
        f"out of memory on CPU:0 at 128 x 96; about {side} px on the longest side would fit: set size, or take a device with "
        "more memory (NST_DEVICE_MEMORY_GIB tells how much one has)"
    )


def test_one_that_is_too_large_does_not_cost_its_neighbours(
    four: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair whose style is too much for the memory, whatever the batch."""
    original = transfer.build_targets

    def targets(backbone: Any, method: Any, contents: Any, styles: Any, style_weights: Any, mask: Any, **more: Any) -> Any:
        if any(weights == (7.0,) for weights in style_weights):
            raise EXHAUSTED
        return original(backbone, method, contents, styles, style_weights, mask, **more)

    monkeypatch.setattr(transfer, "build_targets", targets)
    jobs = (four[0], change_job(four[1], style_weights=(7.0,)), four[2])
    outcomes = run_batch.stylize(Batch(jobs), run_into(tmp_path / "out"))
    assert [one.status for one in outcomes] == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED]
    assert outcomes[1].error.startswith("out of memory on CPU:0 at 64 x 48; about 64 px")
    assert not list((tmp_path / "out").glob("checkpoints/*"))


def test_what_counts_as_out_of_memory() -> None:
    def of(kind: type[tf.errors.OpError], text: str) -> tf.errors.OpError:
        return kind(None, None, text)  # type: ignore[call-arg]

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(EXHAUSTED)
    assert is_out_of_memory(of(tf.errors.InternalError, "Dst tensor is not initialized."))
    assert is_out_of_memory(of(tf.errors.UnknownError, "CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(of(tf.errors.InternalError, "CUDA error: out of memory"))
    assert not is_out_of_memory(of(tf.errors.InternalError, "no kernel image"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_any_other_error_is_a_defect_and_not_swallowed(
    four: list[Job], tmp_path: Path, device: Device, room: Callable[..., list[int]]
) -> None:
    room(0, error=tf.errors.InvalidArgumentError(None, None, "shapes"))
    with pytest.raises(tf.errors.InvalidArgumentError):
        optimize(four[:1], run_into(tmp_path), device)
