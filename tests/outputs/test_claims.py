"""Claims: only one run gets a pair, expired claims are taken over, crashes in native code are counted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nst_tasks.errors import StorageError
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import claims
from nst_tasks.outputs.claims import Claim
from nst_tasks.outputs.liveness import _read_start_time, is_running, machine_id, process_id
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri
from tests.support.jobs import run_into
from tests.support.stores import MemoryStore


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_into(tmp_path / "out", exclusive=True, settings=Settings(lease_seconds=60.0))


def read_generations(run: Run) -> dict[str, int]:
    """Return the generations of the claim files by key."""
    names = files.list_files(join_uri(run.out, "claims"))
    return {name.split(".")[0]: int(name.split(".")[1]) for name in names}


def write_claim(run: Run, key: str, generation: int = 0, **fields: Any) -> Claim:
    """Write a claim for a minute of a process on another machine."""
    usual = dict(
        owner="another", run_id="other", machine="elsewhere", process="1.1", crash_log="", strikes=0, expires=time.time() + 60
    )
    claim = Claim(key, generation, **{**usual, **fields})
    files.write(join_uri(run.out, "claims", f"{key}.{generation}.json"), json.dumps(vars(claim)).encode())
    return claim


def test_claim_excludes_others_until_released(run: Run) -> None:
    with claims.hold(["k1", "k2", "k1"], run) as mine:
        assert set(mine) == {"k1", "k2"}
        assert read_generations(run) == {"k1": 0, "k2": 0}
        with claims.hold(["k2", "k3"], replace(run, id="second")) as theirs:
            assert set(theirs) == {"k3"}
        assert read_generations(run) == {"k1": 0, "k2": 0}
        current = claims.current_claims(run.out)
        assert current["k1"].is_live
        assert current["k1"].run_id == "run"
    assert read_generations(run) == {}
    with claims.hold(["k2"], run) as mine:
        assert set(mine) == {"k2"}


@pytest.mark.parametrize("is_dead", [False, True])
def test_only_one_of_many_claimers_gets_the_pair(run: Run, is_dead: bool) -> None:
    if is_dead:
        write_claim(run, "k", 4, expires=0.0)
    winners: list[int] = []
    barrier = threading.Barrier(8)
    with ExitStack() as stack:

        def claim_pair(k: int) -> None:
            barrier.wait()
            if stack.enter_context(claims.hold(["k"], replace(run, id=f"run {k}"))):
                winners.append(1)

        threads = [threading.Thread(target=claim_pair, args=[k]) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
    assert read_generations(run) == {}


def test_an_interrupted_batch_releases_its_pairs(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), claims.hold(["k"], run):
        raise KeyboardInterrupt
    assert read_generations(run) == {}


def test_claims_before_a_store_failure_are_released(run: Run) -> None:
    with pytest.raises(StorageError, match="too long"), claims.hold(["k", "n" * 300], run):
        pass
    assert read_generations(run) == {}


def test_a_dead_claim_is_taken_over_and_a_live_one_is_not(run: Run) -> None:
    write_claim(run, "live")
    write_claim(run, "expired", 3, expires=time.time() - 1)
    with claims.hold(["live", "expired"], run) as mine:
        assert set(mine) == {"expired"}
        assert read_generations(run) == {"live": 0, "expired": 4}
    assert read_generations(run) == {"live": 0}


class LateStore(MemoryStore):
    """Store in memory whose listings can omit the newest claim, as those of a changing folder may."""

    protocol = "late"
    delay = threading.Event()

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        entries = super().ls(path, detail=True, **options)
        listing = [entry for entry in entries if not (self.delay.is_set() and entry["name"].endswith(".5.json"))]
        return listing if detail else [entry["name"] for entry in listing]


def test_late_claimer_gets_nothing() -> None:
    for state in (LateStore.delay, LateStore.store):
        state.clear()
    run = run_into("late://out", exclusive=True)
    write_claim(run, "k", 4, expires=0.0)
    with claims.hold(["k"], run) as mine:
        assert mine["k"].generation == 5
        LateStore.delay.set()
        with claims.hold(["k"], replace(run, id="another")) as theirs:
            assert not theirs
        LateStore.delay.clear()
        assert claims.current_claims(run.out)["k"].owner == mine["k"].owner
    assert read_generations(run) == {}


def test_dead_claims_stay_until_their_successor_ends(run: Run) -> None:
    for generation in (2, 3):
        write_claim(run, "k", generation, expires=0.0)
    with claims.hold(["k"], run) as mine:
        assert mine["k"].generation == 4
        assert list(files.list_files(join_uri(run.out, "claims"))) == ["k.2.json", "k.3.json", "k.4.json"]
    assert read_generations(run) == {}


def test_highest_generation_is_current(run: Run) -> None:
    write_claim(run, "k", 0, expires=0.0)
    write_claim(run, "k", 2)
    write_claim(run, "k", 10, owner="newest")
    assert claims.current_claims(run.out)["k"].owner == "newest"
    with claims.hold(["k"], run) as mine:
        assert not mine


def get_ended_process() -> str:
    """Return the identity of a process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = f"{process.pid}.{_read_start_time(process.pid)}"
        assert is_running(name)
        assert process.stdin is not None
        process.stdin.close()
    return name


def test_claim_of_a_gone_local_process_is_dead(run: Run) -> None:
    machine, alive = machine_id(), process_id()
    pid, _, start_time = alive.partition(".")
    assert write_claim(run, "k", machine=machine, process=alive).is_live
    assert not write_claim(run, "k", machine=machine, process=get_ended_process()).is_live
    assert not write_claim(
        run, "k", machine=machine, process=f"{pid}.{int(start_time) - 1}"
    ).is_live  # the number was used again
    assert not write_claim(run, "k", machine=machine, process="nonsense").is_live
    assert write_claim(run, "k", machine="another", process="nonsense").is_live  # unknown on this machine


def test_zombie_process_counts_as_ended(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        until = time.monotonic() + 30
        while _read_start_time(process.pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert _read_start_time(process.pid) == ""


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": "k"}', b"\xff\xfe", b'{"expires": NaN}'])
def test_unreadable_claim_blocks_no_run(run: Run, damage: bytes) -> None:
    files.write(join_uri(run.out, "claims", "k.0.json"), damage)
    files.write(join_uri(run.out, "claims", "notes.txt"), b"")
    with claims.hold(["k"], run) as mine:
        assert set(mine) == {"k"}
    assert list(files.list_files(join_uri(run.out, "claims"))) == ["notes.txt"]


def encode_claim(**fields: Any) -> bytes:
    """Encode a claim of this process for a minute, with these values replaced."""
    claim = Claim("k", 0, "another", "other", machine_id(), process_id(), "", 0, time.time() + 60)
    return json.dumps(vars(claim) | fields).encode()


@pytest.mark.parametrize(
    "damage",
    [
        encode_claim(expires="123"),
        encode_claim(expires=math.nan),
        encode_claim(expires=math.inf),
        encode_claim(expires=10**400),
        encode_claim(expires=None),
        encode_claim(strikes="2"),
        encode_claim(strikes=1.5),
        encode_claim(strikes=-1),
        encode_claim(strikes=10**400),
        encode_claim(process=5),
        encode_claim(process=None),
        encode_claim(process="1" * 5000),
        encode_claim(machine=["a"]),
        encode_claim(crash_log=5),
        encode_claim(owner=True),
        encode_claim(run_id={}),
        b"[" * 100_000,
        encode_claim()[:-1] + b', "more": ' + b"[" * 100_000,
    ],
)
def test_damaged_claim_counts_as_expired(run: Run, damage: bytes) -> None:
    files.write(join_uri(run.out, "claims", "k.0.json"), damage)
    claim = claims.current_claims(run.out)["k"]
    assert (claim.is_live, claim.next_strikes) == (False, 0)
    with claims.hold(["k"], run) as mine:
        assert mine["k"].strikes == 0
    assert read_generations(run) == {}


def test_crash_log_with_an_impossible_name_is_no_crash(run: Run) -> None:
    assert write_claim(run, "k", crash_log="nst-crash-\0.log", expires=0.0).next_strikes == 0


def test_claim_with_a_field_of_a_newer_version_is_live(run: Run) -> None:
    files.write(join_uri(run.out, "claims", "k.0.json"), encode_claim(mood="blue"))
    assert claims.current_claims(run.out)["k"].is_live


def test_claim_is_written_as_in_version_0_5(run: Run) -> None:
    with claims.hold(["k"], run) as mine:
        data = files.read(join_uri(run.out, "claims", "k.0.json"))
        assert data == (json.dumps(vars(mine["k"]), indent=1, sort_keys=True) + "\n").encode()


def test_claims_are_renewed_while_they_are_held(tmp_path: Path) -> None:
    run = run_into(tmp_path, exclusive=True, settings=Settings.model_construct(lease_seconds=0.4))
    with claims.hold(["k"], run) as mine:
        expires = mine["k"].expires
        until = time.monotonic() + 30
        while claims.current_claims(run.out)["k"].expires <= expires + 0.4 and time.monotonic() < until:
            time.sleep(0.02)
        assert claims.current_claims(run.out)["k"].expires > expires + 0.4
        assert claims.current_claims(run.out)["k"].owner == mine["k"].owner
    assert read_generations(run) == {}


def test_a_claim_that_was_taken_over_is_not_renewed(tmp_path: Path) -> None:
    run = run_into(tmp_path, exclusive=True, settings=Settings.model_construct(lease_seconds=0.2))
    with claims.hold(["k"], run):
        for _ in range(10):  # a renewal that was about to write when the later claim came overwrites it, once
            write_claim(run, "k", owner="a later one")
            time.sleep(0.3)
            if claims.current_claims(run.out)["k"].owner == "a later one":
                break
        else:
            pytest.fail("a claim that was taken over is renewed")


class BlockingStore(MemoryStore):
    """Store in memory in which renewals of claims can be blocked."""

    protocol = "hanging"
    block, arrival, release = threading.Event(), threading.Event(), threading.Event()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if self.block.is_set() and threading.current_thread().name == "renew claims":
            self.arrival.set()
            self.release.wait(30)
        super().pipe_file(path, value, mode, **options)


@pytest.mark.parametrize("strikes", [0, 1])
def test_late_renewal_revives_no_claim(strikes: int) -> None:
    for state in (BlockingStore.block, BlockingStore.arrival, BlockingStore.release, BlockingStore.store):
        state.clear()
    run = run_into("hanging://out", exclusive=True, settings=Settings.model_construct(lease_seconds=0.4))
    write_claim(run, "k", strikes=strikes, expires=0.0)
    holder = claims.hold(["k"], run)
    holder.__enter__()
    BlockingStore.block.set()
    assert BlockingStore.arrival.wait(30)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "renew claims"]
    assert not holder.__exit__(RuntimeError, RuntimeError(), None)  # does not wait for the renewal
    BlockingStore.release.set()
    thread.join(30)
    assert [claim.expires for claim in claims.current_claims(run.out).values()] == [0.0] * strikes  # strikes are not forgotten


def test_nothing_is_claimed_without_conditional_create(run: Run) -> None:
    shared_run = replace(run, exclusive=False)
    with claims.hold(["k"], shared_run) as mine, claims.hold(["k"], shared_run) as theirs:
        assert set(mine) == set(theirs) == {"k"}
        assert read_generations(run) == {}


def test_claim_is_found_after_a_lost_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a store that loses answers: the client retries, and the store refuses because of the first attempt."""
    create_if_absent = files.create_if_absent
    monkeypatch.setattr(files, "create_if_absent", lambda uri, data: create_if_absent(uri, data) and False)
    with claims.hold(["k"], run) as mine:
        assert set(mine) == {"k"}


# --- crashes in native code ---

CRASH = """
import os, signal, sys
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import claims
usual = dict(backbone="tiny", weights=None, weights_sha256="", history_every=1, settings=Settings())
run = Run(id="r", out=sys.argv[1], exclusive=True, **usual)
with claims.hold(["k"], run) as mine:
    print(mine["k"].strikes, flush=True)
    if sys.argv[2] != "none":
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    if sys.argv[3:]:
        raise RuntimeError
"""


@pytest.fixture
def temporary_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def hold_and_die(run: Run, temporary_folder: Path, signal_name: str, *arguments: str) -> int:
    """Claim a pair in a process that this signal, or none, ends; return the strikes that the pair had."""
    command = [sys.executable, "-c", CRASH, run.out, signal_name, *arguments]
    process = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(temporary_folder)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert (process.returncode == 0) == (signal_name == "none" and not arguments)
    return int(process.stdout)


def test_crashes_in_native_code_are_counted_and_kills_are_not(run: Run, temporary_folder: Path) -> None:
    assert hold_and_die(run, temporary_folder, "SIGKILL") == 0
    assert hold_and_die(run, temporary_folder, "SIGTERM") == 0
    assert hold_and_die(run, temporary_folder, "SIGKILL") == 0
    assert hold_and_die(run, temporary_folder, "SIGSEGV") == 0
    assert hold_and_die(run, temporary_folder, "SIGKILL") == 1
    assert hold_and_die(run, temporary_folder, "SIGABRT") == 1  # a kill in between does not reset the count
    assert hold_and_die(run, temporary_folder, "none", "raise") == 2  # nor does an end with an exception
    assert not claims.current_claims(run.out)["k"].is_live
    assert hold_and_die(run, temporary_folder, "none") == 2
    assert claims.current_claims(run.out) == {}  # the claim of a finished pair is removed
    stacks = [path.read_text() for path in temporary_folder.glob("nst-crash-*.log")]
    assert sum("Fatal Python error: Segmentation fault" in stack for stack in stacks) == 1
    assert sum("Fatal Python error: Aborted" in stack for stack in stacks) == 1
    assert len(stacks) == 2  # empty logs of killed processes are removed


def test_crash_log_is_read_from_the_temporary_folder_only(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "nst-crash-of-mine.log"
    secret.write_text("not a crash")
    assert write_claim(run, "k", crash_log=str(secret), expires=0.0).next_strikes == 0
    assert write_claim(run, "k", crash_log="../../etc/passwd", expires=0.0, strikes=1).next_strikes == 1


def test_unreleased_claim_stays_with_its_run(run: Run) -> None:
    """If a store outage prevented the removal of a claim, the run's next attempt does not wait for its expiry."""
    write_claim(run, "k", run_id=run.id)
    with claims.hold(["k"], run) as mine:
        assert set(mine) == {"k"}
    assert read_generations(run) == {}


def test_claim_released_during_a_listing_is_not_live(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_claim(run, "k")
    list_files = files.list_files

    def list_then_release(uri: str, prefix: str = "") -> dict[str, files.Entry]:
        entries = list_files(uri, prefix)
        files.delete(join_uri(run.out, "claims", "k.0.json"))
        return entries

    monkeypatch.setattr(files, "list_files", list_then_release)
    assert not claims.current_claims(run.out)["k"].is_live
