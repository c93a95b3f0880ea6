"""The work on a batch, and what it rests on: leases of devices, what a device keeps, the watch, words for failures."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from nst_tasks.core import metrics, objective, vgg
from nst_tasks.core.method import SGD
from nst_tasks.engine import devices, run_batch
from nst_tasks.engine.devices import Device
from nst_tasks.engine.publish import make_failed_outcome
from nst_tasks.errors import Interrupted, StorageUnavailable, StorageUnusable
from nst_tasks.images import codec
from nst_tasks.images.color import luminance
from nst_tasks.images.picture import Source
from nst_tasks.inputs import manifest, weights
from nst_tasks.inputs.jobs import Batch, Job
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import claims, outcome
from nst_tasks.outputs.layout import image_path, marker_path
from nst_tasks.outputs.outcome import Status
from nst_tasks.outputs.report import read_curves, read_thumbnails
from nst_tasks.progress import MAX_WARNINGS, Progress, current_progress, progress_variable
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri
from tests.support.changes import change_job
from tests.support.duplicates import check_two_rows_of_one_pair
from tests.support.jobs import LIGHT, job, run_into
from tests.support.pictures import picture, write_source
from tests.support.stores import FlakyFileSystem, MemoryStore

pytestmark = pytest.mark.usefixtures("share_backbone")


def test_scatters_stay_on_the_device() -> None:
    with devices.acquire(Progress()):
        assert os.environ["TF_DISABLE_SCATTER_OP_DETERMINISM"] == "1"


def test_a_device_is_leased_to_one_at_a_time() -> None:
    inside: list[str] = []
    with devices.acquire(Progress()) as device:
        assert device.name == devices.list_names()[0]

        def other() -> None:
            with devices.acquire(Progress()):
                inside.append("other")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.5)
        assert inside == []
    thread.join(10)
    assert inside == ["other"]


def test_a_lease_is_given_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), devices.acquire(Progress()):
        raise ZeroDivisionError
    with devices.acquire(Progress()) as device:
        assert device


def test_stop_signal_ends_the_wait_for_a_device() -> None:
    stopping = Progress()
    stopping.stop.set()
    with devices.acquire(Progress()), pytest.raises(Interrupted), devices.acquire(stopping):
        pass


def test_a_device_keeps_its_backbone() -> None:
    device = Device("/CPU:0")
    loaded = [device.get_backbone("sha", lambda: vgg.build("tiny", weights.load("tiny", None))) for _ in range(2)]
    assert loaded[0] is loaded[1]


# --- a batch, from its pictures to its markers ---


@pytest.fixture
def trio(tmp_path: Path) -> list[Job]:
    """Three pairs of one shape."""
    contents = [write_source(tmp_path, f"content{k}", picture(k, 48, 64)) for k in (1, 2, 3)]
    style = write_source(tmp_path, "style", picture(4, 40, 36))
    return [job(content, style, id=f"p{k}", row=k + 2, seed=k) for k, content in enumerate(contents)]


def stored(out: Path, path: str) -> np.ndarray:
    return codec.decode((out / path).read_bytes(), 10**6).rgb


def test_what_a_run_shows_it_does_not_read_back(trio: list[Job], tmp_path: Path) -> None:
    token = progress_variable.set(Progress())
    outcomes = run_batch.stylize(Batch(tuple(trio)), run_into(tmp_path))
    for one in outcomes:
        for path in (one.thumbnail, one.history):
            (tmp_path / path).unlink()
    shown = [seen(str(tmp_path), outcomes, Settings()) for seen in (read_thumbnails, read_curves)]
    progress_variable.reset(token)
    assert [sorted(found) for found in shown] == [["p0", "p1", "p2"]] * 2
    assert read_thumbnails(str(tmp_path), outcomes, Settings()) == {}  # another run finds what is there


def test_a_batch_leaves_pictures_histories_and_markers(trio: list[Job], tmp_path: Path) -> None:
    out = tmp_path / "out"
    progress = Progress()
    token = progress_variable.set(progress)
    outcomes = run_batch.stylize(Batch(tuple(trio)), run_into(out))
    progress_variable.reset(token)
    assert progress.pairs_done == 3
    for one, result in zip(trio, outcomes, strict=True):
        assert (result.id, result.row, result.status, result.error) == (one.id, one.row, Status.SUCCEEDED, "")
        assert outcome.from_json((out / marker_path(one.id)).read_bytes()) == result
        data = (out / result.image).read_bytes()
        assert (result.image_bytes, result.image_sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (result.height, result.width, result.steps, result.steps_done) == (48, 64, 9, 9)
        assert codec.read_size((out / result.thumbnail).read_bytes(), 10**6)[0] == 48
        table = pd.read_parquet(out / result.history)
        assert table.pair_id.unique().tolist() == [one.id]
        last = table.iloc[-1]
        assert [last.total, *last[list(objective.TERMS)]] == pytest.approx(
            [result.losses[name] for name in result.losses], rel=1e-6
        )
        assert list(result.losses) == ["total", *objective.TERMS]
        # the quality of the picture, in a marker's plain numbers
        assert set(result.quality) == {"style_gap", "style_gap_used", "style_gap_held_out", "content_cosine", "luminance_ssim"}
        assert set(result.quality["style_gap"]) == {"block1_conv1", "block2_conv1", *metrics.HELD_OUT_LAYERS}
        assert result.flags == ()


def test_flags_are_recorded_in_the_marker(trio: list[Job], tmp_path: Path) -> None:
    timid = replace(LIGHT, method=replace(LIGHT.method, optimizer=replace(LIGHT.method.optimizer, learning_rate=1e-7)))
    result = run_batch.stylize(Batch((replace(trio[0], recipe=timid),)), run_into(tmp_path / "out"))[0]
    assert (result.status, result.flags) == (Status.SUCCEEDED, ("no_progress",))
    assert outcome.from_json((tmp_path / "out" / marker_path("p0")).read_bytes()).flags == ("no_progress",)


def test_non_finite_pair_fails_with_its_flag(trio: list[Job], tmp_path: Path) -> None:
    out = tmp_path / "out"
    lost = change_job(trio[1], style_weights=(1e38,))
    first, failed, third = run_batch.stylize(Batch((trio[0], lost, trio[2])), run_into(out))
    assert [one.status for one in (first, failed, third)] == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED]
    assert failed.flags == ("not_finite",)
    assert "loss is not a finite number at step 0 of level 0 (43 x 32)" in failed.error
    assert (failed.image, failed.quality, failed.losses) == ("", {}, {})
    assert outcome.from_json((out / marker_path("p1")).read_bytes()) == failed
    assert not (out / image_path("p1", "png")).exists()


def test_a_picture_that_changed_fails_its_own_pair(trio: list[Job], tmp_path: Path) -> None:
    out = tmp_path / "out"
    Path(trio[1].content.uri).write_bytes(b"something else")
    found = run_batch.stylize(Batch(tuple(trio)), run_into(out))
    assert [one.status for one in found] == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED]
    assert "changed while the run was going on" in found[1].error
    assert found[1].flags == ()
    assert found[1].key == trio[1].key  # the marker says what it was that failed


def test_a_batch_of_which_nothing_can_be_loaded_needs_no_device(trio: list[Job], tmp_path: Path) -> None:
    Path(trio[0].content.uri).unlink()
    with devices.acquire(Progress()):
        failed = run_batch.stylize(Batch((trio[0],)), run_into(tmp_path / "out"))[0]
    assert failed.status is Status.FAILED


def test_marker_records_all_inputs_without_secrets(trio: list[Job], tmp_path: Path) -> None:
    mask = np.zeros((48, 64, 3), np.float32)
    mask[:, :32] = 1.0
    changed_job = change_job(
        trio[0],
        keep_color="luminance",
        init=write_source(tmp_path, "init", picture(5, 48, 64)),
        mask=write_source(tmp_path, "mask", mask),
    )
    result = run_batch.stylize(Batch((changed_job,)), run_into(tmp_path / "out"))[0]
    assert (result.key, result.keep_color, result.init, result.mask) == (
        changed_job.key,
        "luminance",
        changed_job.init,
        changed_job.mask,
    )
    assert result.recipe == LIGHT.as_plain()
    gone = replace(changed_job.init, uri="memory://user:word@nowhere/x.png?secret")
    failed = run_batch.stylize(Batch((replace(changed_job, init=gone),)), run_into(tmp_path / "other"))[0]
    assert failed.status is Status.FAILED
    assert "word" not in outcome.to_json(failed).decode()
    assert "secret" not in outcome.to_json(failed).decode()


@pytest.mark.parametrize("keep_color", ["", "luminance", "match"])
def test_outside_its_mask_the_picture_is_the_content(trio: list[Job], tmp_path: Path, keep_color: str) -> None:
    mask = np.zeros((48, 64, 3), np.float32)
    mask[:, :32] = 1.0
    masked_job = change_job(trio[0], keep_color=keep_color, mask=write_source(tmp_path, "mask", mask))
    out = tmp_path / "out"
    result = run_batch.stylize(Batch((masked_job,)), run_into(out))[0]
    image, content = stored(out, result.image), stored(tmp_path, "content1.png")
    np.testing.assert_array_equal(image[:, 32:], content[:, 32:])
    assert np.abs(image - content)[:, :32].mean() > 0.02
    if keep_color == "luminance":  # inside, the content's colours stay under the new light
        chroma = [one - luminance(one)[..., None] for one in (image, content)]
        assert np.abs(chroma[0] - chroma[1]).mean() < 0.02


def test_the_contents_alpha_stays(tmp_path: Path) -> None:
    alpha = np.repeat(np.linspace(0.0, 1.0, 64, dtype=np.float32)[None], 48, axis=0)
    content = write_source(tmp_path, "content", picture(1, 48, 64), alpha)
    out = tmp_path / "out"
    result = run_batch.stylize(Batch((job(content, write_source(tmp_path, "style", picture(2))),)), run_into(out))[0]
    image = codec.decode((out / result.image).read_bytes(), 10**6)
    assert image.alpha is not None
    np.testing.assert_allclose(image.alpha, alpha, atol=0.5 / 255 + 1e-6)


def test_a_store_that_refuses_the_results_fails_the_pair(trio: list[Job], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "history").write_text("in the way")
    failed = run_batch.stylize(Batch((trio[0],)), run_into(out))[0]
    assert failed.status is Status.FAILED
    assert "history" in failed.error
    assert not (out / marker_path("p0")).exists()  # nothing says that it succeeded


# --- words, counts ---


def test_progress_counts_from_many_threads() -> None:
    step_counts: list[int] = []
    counting = Progress(on_change=lambda now: step_counts.append(now.steps_done))
    threads = [threading.Thread(target=lambda: [counting.add(steps_done=1) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counting.steps_done == 1600
    assert len(step_counts) == 1600
    token = progress_variable.set(counting)
    assert current_progress() is counting
    progress_variable.reset(token)
    assert current_progress() is not counting


def test_warnings_are_told_once_and_bounded() -> None:
    observer = Progress()
    for k in range(50_000):
        observer.warn(f"warning {k}")
        observer.warn("warning 0")
    assert observer.warnings == [f"warning {k}" for k in range(MAX_WARNINGS)]
    assert observer.warning_lines == [*observer.warnings, f"and {50_000 - MAX_WARNINGS} more warnings"]


def test_an_unexpected_error_is_told_in_a_line_without_secrets() -> None:
    failed = make_failed_outcome("a", 2, RuntimeError("GET https://user:word@host/x?Signature=abc\nmore"), "run")
    assert failed.error == "unexpected RuntimeError: GET https://host/x"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/in/cat.png", "cat"),
        ("s3://b/my.photo.jpg", "my"),
        ("/in/plain", "plain"),
        ("https://h/a.jpg?Signature=x.y/z", "a"),
        ("/in/.hidden", ".hidden"),
    ],
)
def test_source_name_is_the_file_stem_without_secrets(uri: str, name: str) -> None:
    assert Source(uri, "", "", 1, 1).name == name


def test_a_hundred_thousand_rejected_rows_are_told_in_one_pass() -> None:
    """Each row's reasons are looked up, not searched for: the square of 100,000 would not end."""
    rows = "content,style,size\n" + "a.png,b.png,9\n" * 100_000
    parsed = manifest.parse(rows.encode(), "/in")
    why = manifest.group_problems_by_row(parsed)
    assert len(why) == 100_000
    assert all("9 is below the smallest size" in "; ".join(why[row.row]) for row in parsed.rejected)


# --- other runs, earlier attempts, crashes ---


def test_what_another_run_did_meanwhile_is_taken_over(trio: list[Job], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (first,) = run_batch.stylize(Batch(trio[:1]), run_into(out, id="other", exclusive=True))
    before = (out / first.image).stat().st_mtime_ns
    later = change_job(trio[0], row=9)
    (found,) = run_batch.stylize(Batch((later,)), run_into(out, exclusive=True))
    assert found == replace(first, status=Status.SKIPPED, row=9)
    assert (out / first.image).stat().st_mtime_ns == before
    # an attempt of the same run that the store cut short did it: it succeeded
    assert run_batch.stylize(Batch(trio[:1]), run_into(out, id="other")) == [first]
    # what is no whole result is none
    (out / first.history).write_bytes(b"torn")
    assert run_batch.stylize(Batch(trio[:1]), run_into(out))[0].status is Status.SUCCEEDED
    assert (out / first.history).stat().st_size > 4
    (out / first.image).unlink()
    assert run_batch.stylize(Batch(trio[:1]), run_into(out))[0].status is Status.SUCCEEDED
    assert (out / first.image).exists()


def test_retry_does_not_repeat_permanent_failures(trio: list[Job], tmp_path: Path) -> None:
    lost = Batch((change_job(trio[0], style_weights=(1e38,)),))
    out, progress = tmp_path / "out", Progress()
    (first,) = run_batch.stylize(lost, run_into(out))
    assert first.status is Status.FAILED
    token = progress_variable.set(progress)
    assert run_batch.stylize(lost, run_into(out)) == [first]
    assert progress.steps_done == 0
    run_batch.stylize(lost, run_into(out, id="later"))  # which may have what it takes
    progress_variable.reset(token)
    assert progress.steps_done > 0


def test_a_pair_that_another_run_is_doing_is_left_to_it(trio: list[Job], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = run_into(out, exclusive=True)
    with claims.hold([trio[1].key], replace(run, id="other")):
        results = run_batch.stylize(Batch(tuple(trio)), run)
    assert [one.id for one in results] == ["p0", "p2"]
    assert not (out / marker_path("p1")).exists()
    assert not list(out.glob("claims/*"))


def test_pair_with_two_crashes_is_not_retried(trio: list[Job], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = run_into(out, exclusive=True)
    dead = dict(owner="x", run_id="x", machine="x", process="1.1", crash_log="", expires=0.0)
    for job_, strikes in zip(trio, (1, 2, 0), strict=True):
        claim = claims.Claim(job_.key, 0, strikes=strikes, **dead)
        files.write(join_uri(run.out, "claims", f"{job_.key}.0.json"), json.dumps(vars(claim)).encode())
    first, second, third = run_batch.stylize(Batch(tuple(trio)), run)
    assert [one.status for one in (first, second, third)] == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED]
    assert second.flags == (outcome.QUARANTINED_FLAG,)
    assert second.error == (
        "its process crashed in native code 2 times while it was made, so it is not tried again; take another size or recipe, "
        "or delete outcomes/p1.json from the output to try once more"
    )
    assert outcome.from_json((out / marker_path("p1")).read_bytes()) == second
    assert not list(out.glob("claims/*"))


def test_only_a_timed_out_pair_keeps_its_checkpoint(trio: list[Job], tmp_path: Path) -> None:
    lost = change_job(trio[1], style_weights=(1e38,))
    run_batch.stylize(Batch((trio[0], lost)), run_into(tmp_path / "out", checkpoint_steps=1))
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    (late,) = run_batch.stylize(Batch(trio[2:]), run_into(tmp_path / "out", pair_timeout=1e-9))
    assert late.status is Status.FAILED
    assert late.error.startswith("not done after --pair-timeout 1e-09 seconds")
    assert [path.name.split(".")[0] for path in (tmp_path / "out").glob("checkpoints/*")] == [trio[2].key]


def test_a_step_back_is_flagged(trio: list[Job], tmp_path: Path) -> None:
    descent = SGD(0.1, decay=0.97, decay_steps=3)
    wild = replace(LIGHT.method, optimizer=descent, clip=False, init="noise", init_noise=0.2, pyramid=None, steps=12)
    result = run_batch.stylize(Batch((replace(trio[0], recipe=replace(LIGHT, method=wild)),)), run_into(tmp_path / "out"))[0]
    assert result.status is Status.SUCCEEDED
    assert "stepped_back" in result.flags


class Full(MemoryStore):
    """Memory in which a name can be refused from then on, as by a disk that is full."""

    protocol = "full"
    refused = ""
    error = errno.ENOSPC

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if self.refused and self.refused in path:
            raise OSError(self.error, "refused")
        super().pipe_file(path, value, mode, **more)


@pytest.fixture
def full() -> Iterator[type[Full]]:
    Full.store.clear()
    yield Full
    Full.refused = ""


@pytest.mark.parametrize("refused", ["images/", "thumbnails/", "history/", "outcomes/"])
@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, StorageUnusable), (errno.EIO, StorageUnavailable)])
def test_no_marker_without_its_files_whatever_write_fails(
    trio: list[Job], full: type[Full], refused: str, number: int, error: type[Exception]
) -> None:
    full.refused, full.error = refused, number
    with pytest.raises(error):
        run_batch.stylize(Batch(trio[:1]), run_into("full://out"))
    assert not files.list_files("full://out/outcomes")
    full.refused = ""
    (result,) = run_batch.stylize(Batch(trio[:1]), run_into("full://out"))
    assert result.status is Status.SUCCEEDED
    assert files.stat("full://out/" + result.image) is not None


class Counted(MemoryStore):
    """Memory that records its requests."""

    protocol = "counted"
    requests: ClassVar[list[str]] = []

    def _ask(self, what: str, path: str) -> None:
        self.requests.append(f"{what} {path.split('/')[2]}")

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        self._ask("list", path)
        return super().ls(path, detail, **more)

    def cat_file(self, path: str, *range: Any, **more: Any) -> bytes:
        self._ask("read", path)
        return super().cat_file(path, *range, **more)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        self._ask(mode, path)
        super().pipe_file(path, value, mode, **more)

    def rm_file(self, path: str) -> None:
        self._ask("delete", path)
        super().rm_file(path)


def test_a_pair_costs_nine_requests_beside_its_pictures(trio: list[Job]) -> None:
    run_batch.stylize(Batch((trio[0],)), run_into("counted://out", exclusive=True))
    requests = Counted.requests
    assert requests[:4] == ["create claims", "list claims", "read outcomes", "list checkpoints"]
    assert sorted(requests[4:7]) == ["overwrite history", "overwrite images", "overwrite thumbnails"]  # at once
    assert requests[7:] == ["overwrite outcomes", "delete claims"]


def test_two_rows_of_one_pair_agree(tmp_path: Path) -> None:
    check_two_rows_of_one_pair(tmp_path, str(tmp_path / "out"))


class Slow(MemoryStore):
    """Memory that signals its requests, and writes a result's files once it may."""

    protocol = "slowresults"
    read, written, may = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def cat_file(self, path: str, *range: Any, **more: Any) -> bytes:
        if "/in/" in path:
            self.read.release()
        return super().cat_file(path, *range, **more)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if any(folder in path for folder in ("/images/", "/thumbnails/", "/history/")):
            self.written.release()
            self.may.wait(60)
        super().pipe_file(path, value, mode, **more)


def test_reading_and_writing_overlap_with_what_is_computed(trio: list[Job]) -> None:
    """While the device is another's, a batch's pictures are read; once its result is being written, the device is free."""
    sources = []
    for source in (trio[0].content, *trio[0].styles):
        uri = f"slowresults://in/{source.name}.png"
        files.write(uri, files.read(source.uri))
        sources.append(replace(source, uri=uri))
    batch, results = Batch((replace(trio[0], content=sources[0], styles=tuple(sources[1:])),)), list[outcome.Outcome]()
    doing = threading.Thread(target=lambda: results.extend(run_batch.stylize(batch, run_into("slowresults://out"))))
    with devices.acquire(Progress()):
        doing.start()
        assert Slow.read.acquire(timeout=60) and Slow.read.acquire(timeout=60)
        assert not Slow.written.acquire(blocking=False)
    impatient = Progress()
    timer = threading.Timer(60, impatient.stop.set)
    timer.start()
    assert all(Slow.written.acquire(timeout=60) for _ in range(3))  # all three at once
    with devices.acquire(impatient):
        timer.cancel()
        assert doing.is_alive()
        assert not files.list_files("slowresults://out/outcomes")  # the marker waits for them
        Slow.may.set()
        doing.join(60)
    assert [one.status for one in results] == [Status.SUCCEEDED]


def test_failed_batch_keeps_earlier_outcomes(trio: list[Job], full: type[Full]) -> None:
    """The store takes the first pair's files and none of the second's, however often it is tried."""
    full.refused, full.error = "images/p1", errno.EIO
    batch, run = Batch(tuple(trio[:2])), run_into("full://out")
    with pytest.raises(StorageUnavailable) as caught:
        run_batch.stylize(batch, run)
    first, second = run_batch.fail_batch(batch, caught.value, run)
    assert [first.status, second.status] == [Status.SUCCEEDED, Status.FAILED]
    assert outcome.from_json(files.read("full://out/outcomes/p0.json")) == first
    # another run finds the first one done
    assert run_batch.fail_batch(batch, caught.value, replace(run, id="later"))[0] == replace(first, status=Status.SKIPPED)


def test_a_marker_that_cannot_be_looked_at_is_not_overwritten(trio: list[Job], flaky: str) -> None:
    batch, run = Batch(tuple(trio[:1])), run_into(f"{flaky}/out")
    (result,) = run_batch.stylize(batch, run)
    FlakyFileSystem.failing.update({"p0.json": 1})
    with pytest.raises(StorageUnavailable):
        run_batch.fail_batch(batch, RuntimeError("its worker died"), run)
    assert run_batch.fail_batch(batch, RuntimeError("its worker died"), run) == [result]
