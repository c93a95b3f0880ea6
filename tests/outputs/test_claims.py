"""Claims: one of many gets a pair, the dead are taken over, crashes in native code are counted."""

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


def held(run: Run) -> dict[str, int]:
    """Return the generations of the claim files by key."""
    found = files.list_files(join_uri(run.out, "claims"))
    return {name.split(".")[0]: int(name.split(".")[1]) for name in found}


def put(run: Run, key: str, generation: int = 0, **fields: Any) -> Claim:
    """Take a claim for a minute, as a process of another machine."""
    usual = dict(
        owner="somebody", run_id="other", machine="elsewhere", process="1.1", crash_log="", strikes=0, expires=time.time() + 60
    )
    claim = Claim(key, generation, **{**usual, **fields})
    files.write(join_uri(run.out, "claims", f"{key}.{generation}.json"), json.dumps(vars(claim)).encode())
    return claim


def test_claim_excludes_others_until_released(run: Run) -> None:
    with claims.hold(["k1", "k2", "k1"], run) as mine:
        assert set(mine) == {"k1", "k2"}
        assert held(run) == {"k1": 0, "k2": 0}
        with claims.hold(["k2", "k3"], replace(run, id="second")) as theirs:
            assert set(theirs) == {"k3"}
        assert held(run) == {"k1": 0, "k2": 0}
        standing = claims.current_claims(run.out)
        assert standing["k1"].is_live
        assert standing["k1"].run_id == "run"
    assert held(run) == {}
    with claims.hold(["k2"], run) as mine:
        assert set(mine) == {"k2"}


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_at_once_one_gets_the_pair(run: Run, dead: bool) -> None:
    if dead:
        put(run, "k", 4, expires=0.0)
    got: list[int] = []
    together = threading.Barrier(8)
    with ExitStack() as stack:

        def attempt(k: int) -> None:
            together.wait()
            if stack.enter_context(claims.hold(["k"], replace(run, id=f"run {k}"))):
                got.append(1)

        threads = [threading.Thread(target=attempt, args=[k]) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
    assert held(run) == {}


def test_an_interrupted_batch_releases_its_pairs(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), claims.hold(["k"], run):
        raise KeyboardInterrupt
    assert held(run) == {}


def test_what_was_taken_before_the_store_failed_is_released(run: Run) -> None:
    with pytest.raises(StorageError, match="too long"), claims.hold(["k", "n" * 300], run):
        pass
    assert held(run) == {}


def test_a_dead_claim_is_taken_over_and_a_live_one_is_not(run: Run) -> None:
    put(run, "live")
    put(run, "expired", 3, expires=time.time() - 1)
    with claims.hold(["live", "expired"], run) as mine:
        assert set(mine) == {"expired"}
        assert held(run) == {"live": 0, "expired": 4}
    assert held(run) == {"live": 0}


class Late(MemoryStore):
    """Memory whose listings, once armed, miss the newest: as a folder's may that is read while files come and go."""

    protocol = "late"
    armed = threading.Event()

    def ls(self, path: str, detail: bool = True, **more: Any) -> list[Any]:
        found = super().ls(path, detail=True, **more)
        seen = [entry for entry in found if not (self.armed.is_set() and entry["name"].endswith(".5.json"))]
        return seen if detail else [entry["name"] for entry in seen]


def test_late_claimer_gets_nothing() -> None:
    for state in (Late.armed, Late.store):
        state.clear()
    run = run_into("late://out", exclusive=True)
    put(run, "k", 4, expires=0.0)
    with claims.hold(["k"], run) as mine:
        assert mine["k"].generation == 5
        Late.armed.set()
        with claims.hold(["k"], replace(run, id="another")) as theirs:
            assert not theirs
        Late.armed.clear()
        assert claims.current_claims(run.out)["k"].owner == mine["k"].owner
    assert held(run) == {}


def test_dead_claims_stay_until_their_successor_ends(run: Run) -> None:
    for generation in (2, 3):
        put(run, "k", generation, expires=0.0)
    with claims.hold(["k"], run) as mine:
        assert mine["k"].generation == 4
        assert list(files.list_files(join_uri(run.out, "claims"))) == ["k.2.json", "k.3.json", "k.4.json"]
    assert held(run) == {}


def test_the_highest_generation_holds(run: Run) -> None:
    put(run, "k", 0, expires=0.0)
    put(run, "k", 2)
    put(run, "k", 10, owner="newest")
    assert claims.current_claims(run.out)["k"].owner == "newest"
    with claims.hold(["k"], run) as mine:
        assert not mine


def finished_process() -> str:
    """Return a process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = f"{process.pid}.{_read_start_time(process.pid)}"
        assert is_running(name)
        assert process.stdin is not None
        process.stdin.close()
    return name


def test_claim_of_a_gone_local_process_is_dead(run: Run) -> None:
    machine, alive = machine_id(), process_id()
    pid, _, started = alive.partition(".")
    assert put(run, "k", machine=machine, process=alive).is_live
    assert not put(run, "k", machine=machine, process=finished_process()).is_live
    assert not put(run, "k", machine=machine, process=f"{pid}.{int(started) - 1}").is_live  # the number was used again
    assert not put(run, "k", machine=machine, process="nonsense").is_live
    assert put(run, "k", machine="another", process="nonsense").is_live  # of which nothing is known here


def test_a_process_that_nobody_has_buried_yet_is_gone(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        until = time.monotonic() + 30
        while _read_start_time(process.pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert _read_start_time(process.pid) == ""


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": "k"}', b"\xff\xfe", b'{"expires": NaN}'])
def test_a_claim_that_cannot_be_read_holds_nobody_up(run: Run, damage: bytes) -> None:
    files.write(join_uri(run.out, "claims", "k.0.json"), damage)
    files.write(join_uri(run.out, "claims", "notes.txt"), b"")
    with claims.hold(["k"], run) as mine:
        assert set(mine) == {"k"}
    assert list(files.list_files(join_uri(run.out, "claims"))) == ["notes.txt"]


def changed(**fields: Any) -> bytes:
    """Make a claim of this process for a minute, with other values."""
    claim = Claim("k", 0, "somebody", "other", machine_id(), process_id(), "", 0, time.time() + 60)
    return json.dumps(vars(claim) | fields).encode()


@pytest.mark.parametrize(
    "damage",
    [
        changed(expires="123"),
        changed(expires=math.nan),
        changed(expires=math.inf),
        changed(expires=10**400),
        changed(expires=None),
        changed(strikes="2"),
        changed(strikes=1.5),
        changed(strikes=-1),
        changed(strikes=10**400),
        changed(process=5),
        changed(process=None),
        changed(process="1" * 5000),
        changed(machine=["a"]),
        changed(crash_log=5),
        changed(owner=True),
        changed(run_id={}),
        b"[" * 100_000,
        changed()[:-1] + b', "more": ' + b"[" * 100_000,
    ],
)
def test_damaged_claim_counts_as_expired(run: Run, damage: bytes) -> None:
    files.write(join_uri(run.out, "claims", "k.0.json"), damage)
    found = claims.current_claims(run.out)["k"]
    assert (found.is_live, found.next_strikes) == (False, 0)
    with claims.hold(["k"], run) as mine:
        assert mine["k"].strikes == 0
    assert held(run) == {}


def test_crash_log_that_no_file_can_be_is_no_crash(run: Run) -> None:
    assert put(run, "k", crash_log="nst-crash-\0.log", expires=0.0).next_strikes == 0


def test_claim_with_a_field_of_a_newer_version_is_live(run: Run) -> None:
    files.write(join_uri(run.out, "claims", "k.0.json"), changed(mood="blue"))
    assert claims.current_claims(run.out)["k"].is_live


def test_claim_is_written_as_in_version_0_5(run: Run) -> None:
    with claims.hold(["k"], run) as mine:
        data = files.read(join_uri(run.out, "claims", "k.0.json"))
        assert data == (json.dumps(vars(mine["k"]), indent=1, sort_keys=True) + "\n").encode()


def test_claims_are_renewed_while_they_are_held(tmp_path: Path) -> None:
    run = run_into(tmp_path, exclusive=True, settings=Settings.model_construct(lease_seconds=0.4))
    with claims.hold(["k"], run) as mine:
        first = mine["k"].expires
        until = time.monotonic() + 30
        while claims.current_claims(run.out)["k"].expires <= first + 0.4 and time.monotonic() < until:
            time.sleep(0.02)
        assert claims.current_claims(run.out)["k"].expires > first + 0.4
        assert claims.current_claims(run.out)["k"].owner == mine["k"].owner
    assert held(run) == {}


def test_a_claim_that_was_taken_over_is_not_renewed(tmp_path: Path) -> None:
    run = run_into(tmp_path, exclusive=True, settings=Settings.model_construct(lease_seconds=0.2))
    with claims.hold(["k"], run):
        for _ in range(10):  # a renewal that was about to write when the later claim came overwrites it, once
            put(run, "k", owner="a later one")
            time.sleep(0.3)
            if claims.current_claims(run.out)["k"].owner == "a later one":
                break
        else:
            pytest.fail("a claim that was taken over is renewed")


class Hanging(MemoryStore):
    """Memory in which, once armed, renewals of claims wait until they may."""

    protocol = "hanging"
    armed, reached, may = threading.Event(), threading.Event(), threading.Event()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if self.armed.is_set() and threading.current_thread().name == "renew claims":
            self.reached.set()
            self.may.wait(30)
        super().pipe_file(path, value, mode, **more)


@pytest.mark.parametrize("strikes", [0, 1])
def test_a_renewal_that_comes_after_the_end_revives_no_claim(strikes: int) -> None:
    for state in (Hanging.armed, Hanging.reached, Hanging.may, Hanging.store):
        state.clear()
    run = run_into("hanging://out", exclusive=True, settings=Settings.model_construct(lease_seconds=0.4))
    put(run, "k", strikes=strikes, expires=0.0)
    taking = claims.hold(["k"], run)
    taking.__enter__()
    Hanging.armed.set()
    assert Hanging.reached.wait(30)
    (renewing,) = [thread for thread in threading.enumerate() if thread.name == "renew claims"]
    assert not taking.__exit__(RuntimeError, RuntimeError(), None)  # does not wait for the renewal
    Hanging.may.set()
    renewing.join(30)
    assert [claim.expires for claim in claims.current_claims(run.out).values()] == [0.0] * strikes  # strikes are not forgotten


def test_nothing_is_claimed_without_conditional_create(run: Run) -> None:
    everybody = replace(run, exclusive=False)
    with claims.hold(["k"], everybody) as mine, claims.hold(["k"], everybody) as theirs:
        assert set(mine) == set(theirs) == {"k"}
        assert held(run) == {}


def test_what_a_lost_answer_denies_is_found_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tried again, and the store refused because of the first attempt: a stand-in for a store that loses answers."""
    really = files.create_if_absent
    monkeypatch.setattr(files, "create_if_absent", lambda uri, data: really(uri, data) and False)
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
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def died(run: Run, temporary: Path, how: str, *more: str) -> int:
    """Count the strikes of a pair after a process that held it died this way."""
    command = [sys.executable, "-c", CRASH, run.out, how, *more]
    ended = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode == 0) == (how == "none" and not more)
    return int(ended.stdout)


def test_crashes_in_native_code_are_counted_and_kills_are_not(run: Run, temporary: Path) -> None:
    assert died(run, temporary, "SIGKILL") == 0
    assert died(run, temporary, "SIGTERM") == 0
    assert died(run, temporary, "SIGKILL") == 0
    assert died(run, temporary, "SIGSEGV") == 0
    assert died(run, temporary, "SIGKILL") == 1
    assert died(run, temporary, "SIGABRT") == 1  # a kill in between takes nothing back
    assert died(run, temporary, "none", "raise") == 2  # nor does an end with an exception
    assert not claims.current_claims(run.out)["k"].is_live
    assert died(run, temporary, "none") == 2
    assert claims.current_claims(run.out) == {}  # what was decided is forgotten
    stacks = [path.read_text() for path in temporary.glob("nst-crash-*.log")]
    assert sum("Fatal Python error: Segmentation fault" in stack for stack in stacks) == 1
    assert sum("Fatal Python error: Aborted" in stack for stack in stacks) == 1
    assert len(stacks) == 2  # what killed processes left empty is removed


def test_crash_log_is_read_from_the_temporary_folder_only(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "nst-crash-of-mine.log"
    secret.write_text("not a crash")
    assert put(run, "k", crash_log=str(secret), expires=0.0).next_strikes == 0
    assert put(run, "k", crash_log="../../etc/passwd", expires=0.0, strikes=1).next_strikes == 1


def test_unreleased_claim_stays_with_its_run(run: Run) -> None:
    """A store that goes away takes the removal of the claim with it; the next attempt does not wait for the claim's end."""
    put(run, "k", run_id=run.id)
    with claims.hold(["k"], run) as mine:
        assert set(mine) == {"k"}
    assert held(run) == {}


def test_a_claim_released_while_others_look_is_nobodys(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    put(run, "k")
    listing = files.list_files

    def listed_just_before(uri: str, prefix: str = "") -> dict[str, files.Entry]:
        found = listing(uri, prefix)
        files.delete(join_uri(run.out, "claims", "k.0.json"))
        return found

    monkeypatch.setattr(files, "list_files", listed_just_before)
    assert not claims.current_claims(run.out)["k"].is_live
