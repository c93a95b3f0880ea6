"""Whole runs whose store fails them: what passes costs time and no pair, what lasts ends the run with one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from tests.support.proxy import PASSING, Fault, Proxy, at_random
from tests.support.servers import Server, wait_for_objects
from tests.support.survival import (
    assert_markers_hold,
    assert_nothing_lost,
    assert_same_results,
    build_command,
    list_progress,
    run_inputs,
    write_inputs,
)
from tests.support.waiting import TIMEOUT, wait_until

ALL_FOUR = "4 succeeded, 0 failed, 0 rejected, 0 skipped of 4 rows"
# `make soak` says 60
OUTAGE_SECONDS = float(os.environ.get("SOAK_OUTAGE", "3"))

pytestmark = pytest.mark.usefixtures("flow_api", "short_leases")


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the second run look like the first one's process, so that a dead process does not void its claim."""
    monkeypatch.setenv("NST_LEASE_SECONDS", "2")


class Once:
    """Set by the first request of the method whose path holds a text."""

    def __init__(self, method: str, text: str) -> None:
        self.method, self.text, self.seen = method, text, threading.Event()

    def __call__(self, method: str, path: str) -> bool:
        if method == self.method and self.text in path:
            self.seen.set()
        return self.seen.is_set()


def test_a_fifth_of_all_requests_harmed_costs_no_pair(
    way: Proxy, calm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out = write_inputs("s3://nst-faults/harmed/in"), "s3://nst-faults/harmed/out"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1}})  # what a stall costs
    monkeypatch.setenv("NST_RETRY_SECONDS", "0.2")
    run_began, harm = Once("PUT", "/runs/"), at_random(0.2, seed=7)
    way.decide = lambda method, path: harm(method, path) if run_began(method, path) else None
    result = run_inputs(manifest, out)
    way.decide = lambda method, path: None
    assert (result.exit_code, result.message) == (0, ALL_FOUR), result.report and result.report.failures
    assert set(way.harmed) == set(PASSING)
    assert_nothing_lost(out, swept=False)  # a removal that failed twice is left to the next run
    assert_same_results(out, calm)


def test_store_killed_and_restarted_costs_no_pair(
    mortal_way: tuple[Proxy, Server], calm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, server = mortal_way
    if OUTAGE_SECONDS < 10:  # or else by the defaults
        monkeypatch.setenv("NST_RETRY_SECONDS", "0.5")
    manifest, out = write_inputs("s3://nst-faults/killed/in"), "s3://nst-faults/killed/out"
    first = Once("PUT", "/outcomes/")
    way.decide = lambda method, path: first(method, path) and None

    def outage() -> None:
        if first.seen.wait(TIMEOUT):
            server.end(signal.SIGKILL)
            time.sleep(OUTAGE_SECONDS)
        server.start()

    killer = threading.Thread(target=outage)
    killer.start()
    try:
        result = run_inputs(manifest, out)
    finally:
        first.seen.set()
        killer.join()
        wait_for_objects({name: os.environ[name] for name in os.environ if name.startswith("AWS_")})
    assert (result.exit_code, result.message) == (0, ALL_FOUR), result.report and result.report.failures
    assert_nothing_lost(out, swept=False)  # what could not be removed during the outage is left to the next run
    assert_same_results(out, calm)


def test_expired_credentials_end_the_run_and_renewed_resume(way: Proxy, calm: str) -> None:
    manifest, out = write_inputs("s3://nst-faults/expired/in"), "s3://nst-faults/expired/out"
    last = Once("PUT", "/thumbnails/falling")  # three are in flight, so that it begins only once another is done
    way.decide = lambda method, path: Fault.EXPIRED_TOKEN if last(method, path) else None
    result = run_inputs(manifest, out)
    way.decide = lambda method, path: None
    assert result.exit_code == 1
    assert result.message.startswith("the run could not go on, what is finished is safe: s3://nst-faults/expired/out/")
    assert result.message.endswith("access is denied, the credentials have expired; renew them and run the same command again")
    assert 1 <= len(assert_markers_hold(out)) < 4
    rerun = run_inputs(manifest, out)
    assert rerun.exit_code == 0, rerun.message
    assert assert_nothing_lost(out, swept=False)["skipped"] >= 1
    assert_same_results(out, calm)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def meanwhile(out: Path, action: Callable[[], None]) -> Iterator[None]:
    """Do something as soon as the first pair is done."""
    end_of_run = threading.Event()

    def wait() -> None:
        while not end_of_run.wait(0.01):
            if any(out.glob("outcomes/*.json")):
                action()
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        end_of_run.set()
        thread.join()


def test_a_full_disk_ends_the_run_and_room_finishes_it(disk: Path, calm: str, tmp_path: Path) -> None:
    manifest, out, ballast = write_inputs(str(tmp_path / "in")), disk / "out", disk / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    with meanwhile(out, fill):
        result = run_inputs(manifest, str(out))
    assert result.exit_code == 1
    assert result.message.startswith(f"the run could not go on, what is finished is safe: {out}/")
    assert result.message.endswith("the disk is full; make room and run the same command again")
    assert 1 <= len(assert_markers_hold(str(out))) < 4
    ballast.unlink()
    rerun = run_inputs(manifest, str(out))
    assert rerun.exit_code == 0, rerun.message
    assert assert_nothing_lost(str(out), swept=False)["skipped"] >= 1
    assert_same_results(str(out), calm)


def test_read_only_output_ends_the_run_and_resumes(disk: Path, calm: str, tmp_path: Path) -> None:
    manifest, out = write_inputs(str(tmp_path / "in")), disk / "out"

    def remount(mode: str) -> bool:
        return subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], capture_output=True, check=False).returncode == 0

    def protect() -> None:
        while not remount("ro"):  # refused while a file is being written
            pass

    with meanwhile(out, protect):
        result = run_inputs(manifest, str(out))
    assert remount("rw")
    assert result.exit_code == 1
    assert result.message.startswith(f"the run could not go on, what is finished is safe: {out}/")
    assert result.message.endswith("the file system is read-only; make it writable and run the same command again")
    assert 1 <= len(assert_markers_hold(str(out))) < 4
    rerun = run_inputs(manifest, str(out))
    assert rerun.exit_code == 0, rerun.message
    assert assert_nothing_lost(str(out), swept=False)["skipped"] >= 1
    assert_same_results(str(out), calm)


def test_two_concurrent_runs_do_each_pair_once(calm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_LEASE_SECONDS", "120")  # longer than the other run is stopped
    manifest, out = write_inputs(str(tmp_path / "in")), tmp_path / "out"
    with subprocess.Popen(build_command(manifest, str(out)), stdout=-1, stderr=-1, text=True) as other:

        def resume_other(before: set[str]) -> None:
            wait_until(lambda: list_progress(out) != before)
            other.send_signal(signal.SIGCONT)

        try:
            wait_until(lambda: any(out.glob("claims/*.json")) or other.poll() is not None)
            other.send_signal(signal.SIGSTOP)  # until this run has done something, too
            resumer = threading.Thread(target=resume_other, args=[list_progress(out)])
            resumer.start()
            result = run_inputs(manifest, str(out))
            resumer.join()
            _, stderr = other.communicate(timeout=TIMEOUT)
        finally:
            other.kill()
    assert result.exit_code == 0, result.message
    assert other.returncode == 0, stderr
    counts = [json.loads(record.read_text())["counts"] for record in out.glob("runs/*/run.json")]
    assert [sum(count[status] for count in counts) for status in ("succeeded", "skipped", "failed")] == [4, 4, 0]
    assert all(count["succeeded"] for count in counts)  # both had a hand in it
    assert_nothing_lost(str(out))
    assert_same_results(str(out), calm)
