"""Signals, crashes and runs beside each other, as processes: what they leave, and what the same command makes of it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from flows.console import run_flow
from nst_tasks.outputs import claims
from nst_tasks.outputs.claims import Claim
from nst_tasks.outputs.outcome import Status
from nst_tasks.storage import files
from tests.support.commands import NST, nst
from tests.support.runs import read_losses, read_marker, request_of, run, write_shallow_recipe
from tests.support.waiting import TIMEOUT, wait_until

SAID = "interrupted; what is finished is safe: run the same command again"


# --- signals ---


def test_signals_end_with_130_and_resume_to_the_same_bytes(flow_api: str, pictures: Path, tmp_path: Path) -> None:
    write_shallow_recipe(pictures)
    (pictures / "m.csv").write_text(
        "id,content,style,recipe,steps\nquick,cat.png,oil.png,shallow.toml,1\nlong,dog.png,oil.png,shallow.toml,1000\n"
    )
    options = ("--backbone", "tiny", "--size", "64", "--checkpoint-every", "50")
    calm, out = tmp_path / "calm", tmp_path / "out"
    command = [NST, "run", str(pictures / "m.csv"), "--out", str(out), *options]

    def last_saved_step() -> int:
        """Return the last step of the long pair that is on the disk."""
        return max((int(path.stem.rpartition("-")[2]) for path in out.glob("checkpoints/*.npz")), default=0)

    saved_step, finished_ids = 0, []
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(lambda at=saved_step: last_saved_step() > at or process.poll() is not None)
                process.send_signal(number)
                _, err = process.communicate(timeout=TIMEOUT)
            finally:
                process.kill()
        assert process.returncode == 130, err
        assert SAID in err
        assert "Traceback" not in err
        assert last_saved_step() > saved_step
        saved_step = last_saved_step()
        finished_ids = [path.stem for path in out.glob("outcomes/*")]
        assert finished_ids in ([], ["quick"])  # either may have had the device first
        assert [path.stem for path in out.glob("images/*")] == finished_ids
        assert len(list(out.glob("checkpoints/*"))) == 1
        assert not list(out.glob("claims/*"))

    rerun = nst("run", str(pictures / "m.csv"), "--out", str(out), *options)
    assert f"{2 - len(finished_ids)} succeeded, 0 failed, 0 rejected, {len(finished_ids)} skipped of 2 rows" in rerun.stdout, (
        rerun.stderr
    )
    assert not list(out.glob("checkpoints/*"))
    run_flow(*request_of(pictures, out=str(calm), size=64))
    assert (out / "images/long.png").read_bytes() == (calm / "images/long.png").read_bytes()
    pd.testing.assert_frame_equal(read_losses(out, "long"), read_losses(calm, "long"), check_exact=True)
    assert read_marker(out, "long").losses == read_marker(calm, "long").losses


EARLY = """
import os, signal, time
import typer
from flows import cli
app = typer.Typer()

@app.command()
def early():
    with cli._exit_on_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1000)

app()
"""


def test_a_signal_before_anything_began_ends_with_130() -> None:
    result = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "nst: interrupted\n")


STUCK = """
import atexit, os, signal, sys, time, threading
from flows import console
from nst_tasks.progress import Progress
console.FORCED_EXIT_DELAY = 0.3
progress = Progress()

def compute():
    with progress.count_computation():
        began.set()
        time.sleep(1.5)
        print("computed", flush=True)
    time.sleep(1000)

began = threading.Event()
threading.Thread(target=compute).start()
began.wait()
atexit.register(lambda: 1 / 0)  # as a library's does whose cluster is not closed yet
with console._handle_signals(progress):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1000)
"""


def test_a_thread_that_waits_for_ever_does_not_keep_the_process() -> None:
    """What is being computed ends, what waits for a store does not."""
    result = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (result.returncode, result.stdout) == (130, "computed\n")
    assert SAID in result.stderr
    assert "Traceback" not in result.stderr


# --- crashes in native code ---

POISONED = """
import os, sys
from nst_tasks.core import transfer
really = transfer.advance

def advance(backbone, method, targets, state, n, steps):
    if method.steps == 7:  # the poison's
        os.abort()
    return really(backbone, method, targets, state, n, steps)

transfer.advance = advance  # stands in for a bug in a native library
from flows.cli import app
app()
"""

POISON = (
    "id,content,style,recipe,steps\n"
    "first,cat.png,oil.png,shallow.toml,2\nbad,dog.png,oil.png,shallow.toml,7\nlast,dog.png,ink.png,shallow.toml,2\n"
)


@pytest.mark.usefixtures("flow_api")
def test_pair_that_crashes_twice_is_quarantined_alone(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shallow_recipe(pictures)
    (pictures / "m.csv").write_text(POISON)
    out = tmp_path / "out"
    (tmp_path / "temporary").mkdir()
    options = ["run", str(pictures / "m.csv"), "--out", str(out), "--backbone", "tiny", "--size", "64"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}

    def attempt() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", POISONED, *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    assert attempt().returncode == -signal.SIGABRT
    assert attempt().returncode == -signal.SIGABRT
    monkeypatch.setattr(tempfile, "tempdir", environment["TMPDIR"])  # where the crashes are logged
    third = nst(*options)  # the pair is not tried again, so that no process of its own is needed
    assert third.exit_code == 1, third.stderr
    # a pair in flight beside it in the first crash was alone afterwards, and is not to blame
    assert {id: read_marker(out, id).status for id in ("first", "bad", "last")} == {
        "first": Status.SUCCEEDED, "bad": Status.FAILED, "last": Status.SUCCEEDED,
    }  # fmt: skip
    assert ", 1 failed, 0 rejected, " in third.stdout
    assert "row 3, bad: its process crashed in native code 2 times while it was made" in third.stderr
    assert read_marker(out, "bad").flags == ("quarantined",)
    assert not list(out.glob("claims/*"))

    request = request_of(pictures, out=str(out), size=64)
    rerun_without_bug = run_flow(*request)  # the pair stays quarantined until its marker is deleted
    assert rerun_without_bug.message == "0 succeeded, 1 failed, 0 rejected, 2 skipped of 3 rows"
    assert rerun_without_bug.report is not None
    assert rerun_without_bug.report.failures == (f"row 3, bad: {read_marker(out, 'bad').error}",)
    (out / "outcomes/bad.json").unlink()
    assert run_flow(*request).message == "1 succeeded, 0 failed, 0 rejected, 2 skipped of 3 rows"


# --- what earlier runs left, what others do ---


TWO_PAIRS = "id,content,style,recipe\na,cat.png,oil.png,tf-tutorial\nb,dog.png,ink.png,tf-tutorial\n"


@pytest.mark.usefixtures("flow_api")
def test_leftovers_of_finished_pairs_are_removed(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pictures, TWO_PAIRS, out)
    key = read_marker(out, "a").key
    other_key = "ff" * 32
    for name in (f"checkpoints/{key}.0-000001.npz", f"checkpoints/{key}.0-000002.npz", f"checkpoints/{other_key}.0-000001.npz"):
        files.write(str(out / name), b"left")
    for name, expires in ((key, 0.0), (other_key, time.time() + 100)):
        claim = Claim(name, 0, "o", "r", "m", "1.1", "", 0, expires)
        files.write(str(out / "claims" / f"{name}.0.json"), json.dumps(vars(claim)).encode())
    assert run(pictures, TWO_PAIRS, out).message.startswith("0 succeeded, 0 failed, 0 rejected, 2 skipped")
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"{other_key}.0-000001.npz"]
    assert [path.name for path in (out / "claims").iterdir()] == [f"{other_key}.0.json"]


@pytest.mark.usefixtures("flow_api")
def test_a_useless_checkpoint_is_told_in_the_report(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pictures, TWO_PAIRS, out)
    before = (out / "images/a.png").read_bytes()
    name = f"{read_marker(out, 'a').key}.0-000002.npz"
    (out / "outcomes/a.json").unlink()
    files.write(str(out / "checkpoints" / name), b"torn")
    rerun = run(pictures, TWO_PAIRS, out)
    assert rerun.report is not None
    assert rerun.report.warnings == (f"checkpoints/{name}: ignored, it is damaged",)
    record = json.loads((out / "runs" / rerun.report.run_id / "run.json").read_bytes())
    assert record["warnings"] == list(rerun.report.warnings)
    assert (out / "images/a.png").read_bytes() == before
    assert not list(out.glob("checkpoints/*"))


@pytest.mark.usefixtures("flow_api")
def test_pairs_that_another_run_is_doing_are_waited_for(pictures: Path, tmp_path: Path) -> None:
    """The other run finishes one, and never comes back to the other: its claim expires."""
    out, other = tmp_path / "out", tmp_path / "other"
    run(pictures, TWO_PAIRS, other)
    keys = {id: read_marker(other, id).key for id in "ab"}
    wait_messages: list[str] = []

    def claim(id: str, seconds: float) -> None:
        written_claim = Claim(keys[id], 0, "o", "r", "m", "1.1", "", 0, time.time() + seconds)
        files.write(str(out / "claims" / f"{keys[id]}.0.json"), json.dumps(vars(written_claim)).encode())

    class OtherRun(logging.Handler):
        """Goes on once this run says that it waits."""

        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.endswith("is doing a, b"):
                for path in ("images/a.png", "history/a.parquet", "thumbnails/a.jpg", "outcomes/a.json"):
                    files.write(str(out / path), (other / path).read_bytes())
                files.delete(str(out / "claims" / f"{keys['a']}.0.json"))
            elif message.endswith("is doing b"):
                claim("b", -1.0)
            else:
                return
            wait_messages.append(message)

    for id in "ab":
        claim(id, 1000.0)
    logger, handler = logging.getLogger("prefect.flow_runs"), OtherRun()
    logger.addHandler(handler)
    try:
        result = run(pictures, TWO_PAIRS, out)
    finally:
        logger.removeHandler(handler)
    assert len(wait_messages) == 2
    assert result.message == "1 succeeded, 0 failed, 0 rejected, 1 skipped of 2 rows"
    assert read_marker(out, "a").run_id == read_marker(other, "a").run_id  # not made twice
    assert read_marker(out, "b").status is Status.SUCCEEDED
    assert claims.current_claims(str(out)) == {}


@pytest.mark.usefixtures("flow_api")
def test_a_deadline_fails_its_pair_and_a_later_run_goes_on(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    late = run(pictures, TWO_PAIRS, out, pair_timeout=1e-6)
    assert (late.exit_code, late.message) == (
        1, "0 succeeded, 2 failed, 0 rejected, 0 skipped of 2 rows (none succeeded)",
    )  # fmt: skip
    assert late.report is not None
    assert "not done after --pair-timeout 1e-06 seconds, at step 1 of 3" in late.report.failures[0]
    assert len(list(out.glob("checkpoints/*"))) == 2
    assert run(pictures, TWO_PAIRS, out).message == "2 succeeded, 0 failed, 0 rejected, 0 skipped of 2 rows"
    assert not list(out.glob("checkpoints/*"))
