"""Who is doing which pair: claims beside the output, so that no two runs do the same one, and what a dead one tells.

`OUT/claims/{key}.{generation}.json`, created only if there is none and renewed while its owner lives; the highest generation
holds. A dead claim is taken over by creating the next generation, which only one of many succeeds in, and stays until the new
one ends: a listing that is read while others come and go may miss the new one, and must then see that somebody held the pair.
Where a store ignores the condition nothing is claimed: two runs then write the same bytes, and the last write wins.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import json
import os
import platform
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nst_tasks import storage
from nst_tasks.errors import StorageError, is_pairs_own
from nst_tasks.settings import Run

FOLDER = "claims"

STRIKES = 2
"""A pair that took its process down this often is not tried again."""

_CRASH_LOG = "nst-crash-"


@dataclass(frozen=True)
class Claim:
    """That a process is doing a pair, until `expires` (seconds since 1970).

    owner: one taking of it, unlike any other. machine, process: where it lives. crash_log: the name of the file, among the
    machine's temporary ones, that a crash in native code leaves. strikes: how many such crashes the pair was part of before.
    """

    key: str
    generation: int
    owner: str
    run_id: str
    machine: str
    process: str
    crash_log: str
    strikes: int
    expires: float

    @property
    def is_live(self) -> bool:
        """Whether its owner may still be at work: not expired, and not known to be gone from this machine."""
        if time.time() >= self.expires:
            return False
        return self.machine != _machine() or _is_running(self.process)

    @property
    def next_strikes(self) -> int:
        """The strikes of the pair after this claim's owner died."""
        return self.strikes + _left_a_crash(self.crash_log)


def standing(out: str) -> dict[str, Claim]:
    """The claims that hold, by key; one that cannot be read counts as expired.

    Raises:
        StorageError: the store could not be listed or read.
    """
    return {key: _read(out, key, generations[-1]) for key, generations in sorted(_generations(out).items())}


def _generations(out: str, keys: Sequence[str] = ()) -> dict[str, list[int]]:
    """The generations of every key, of these at least, in ascending order."""
    found: dict[str, list[int]] = {}
    for name in storage.listing(storage.join(out, FOLDER), os.path.commonprefix(keys)):
        key, _, generation = name.removesuffix(".json").rpartition(".")
        if name.endswith(".json") and generation.isdecimal():
            found.setdefault(key, []).append(int(generation))
    return {key: sorted(generations) for key, generations in found.items()}


@contextlib.contextmanager
def taken(keys: Iterable[str], run: Run) -> Iterator[Mapping[str, Claim]]:
    """Claims on those of the pairs that nobody else holds, renewed until the end and then released.

    What ends in an exception leaves the claim of a pair with strikes behind, expired: they must not be forgotten.

    Raises:
        StorageUnavailable: the store failed for the moment.
    """
    mine: dict[str, Claim] = {}
    dead: dict[str, list[Claim]] = {}
    finished = False
    done = threading.Event()

    def end(claim: Claim) -> None:
        for one in dead.get(claim.key, ()):  # before the claim itself, beside which nobody begins at 0 again
            release(run.out, one)
        if finished or not claim.strikes:
            release(run.out, claim)
        else:
            with contextlib.suppress(StorageError):
                storage.write(_uri(run.out, claim.key, claim.generation), _to_json(replace(claim, expires=0.0)))

    renewing = threading.Thread(target=_renew, args=(mine, run, done, end), name="claims", daemon=True)
    try:
        before: dict[str, Claim] = {}
        left = list(dict.fromkeys(keys))
        for _ in range(2):  # as if nobody held any of them, which is so as a rule; then those that somebody does or did
            for key in left:
                if claim := _take(key, before.get(key), run):
                    mine[key] = claim  # before the next is taken: should the store fail then, this one is released
            found = _generations(run.out, left) if run.exclusive and left else {}
            for key in [key for key, claim in mine.items() if key in found and found[key][-1] > claim.generation]:
                release(run.out, mine.pop(key))
            left = [key for key in left if key not in mine and key in found]
            before = {key: _read(run.out, key, found[key][-1]) for key in left}
            dead |= {key: [*_dead(run.out, key, found[key][:-1]), before[key]] for key in left}
        if run.exclusive:
            renewing.start()
        yield dict(mine)
        finished = True
    finally:
        done.set()
        if renewing.ident is not None:
            renewing.join(1.0)  # one that waits for the store must not hold up the end: it ends the claim it renews again
        if run.exclusive:
            for claim in mine.values():
                end(claim)


def release(out: str, claim: Claim) -> None:
    """Give a claim up, as far as the store lets: it expires anyway."""
    with contextlib.suppress(StorageError):
        storage.delete(_uri(out, claim.key, claim.generation))


@functools.cache
def watch_for_crashes() -> str:
    """Have a crash of this process in native code leave its stack in a file: the file's name, or nothing if others watch.

    A kill, a power failure and the kernel's out-of-memory killer leave nothing: they say nothing about the pair.
    """
    if faulthandler.is_enabled():
        return ""
    for old in Path(tempfile.gettempdir()).glob(f"{_CRASH_LOG}*.log"):
        with contextlib.suppress(OSError):
            if not old.stat().st_size and not _is_running(old.stem.removeprefix(_CRASH_LOG).rpartition("-")[0]):
                old.unlink()  # of a process that was killed
    path = Path(tempfile.gettempdir(), f"{_CRASH_LOG}{_process()}-{secrets.token_hex(4)}.log")
    try:
        file = path.open("x")
    except OSError:
        return ""
    faulthandler.enable(file)

    def forget() -> None:
        faulthandler.disable()
        file.close()
        path.unlink(missing_ok=True)

    atexit.register(forget)
    return path.name


def _dead(out: str, key: str, generations: Sequence[int]) -> list[Claim]:
    """Those of a key's generations whose owners are gone; one that is live began at 0 just now, and goes by itself."""
    return [claim for claim in (_read(out, key, one) for one in generations) if claim.owner and not claim.is_live]


def _take(key: str, before: Claim | None, run: Run) -> Claim | None:
    if before is not None and before.is_live and before.run_id != run.id:
        # one of this run's own is of an attempt that the store cut short before it could be released, or of another row with
        # the same pair: these two write the same bytes, and cost each other no more than a checkpoint
        return None
    claim = Claim(
        key=key,
        generation=before.generation + 1 if before else 0,
        owner=secrets.token_hex(8),
        run_id=run.id,
        machine=_machine(),
        process=_process(),
        crash_log=watch_for_crashes(),
        strikes=before.next_strikes if before else 0,
        expires=time.time() + run.settings.lease_seconds,
    )
    if not run.exclusive:
        return claim
    created = storage.create(_uri(run.out, key, claim.generation), _to_json(claim))
    # a client that tried again after a lost answer may have lost to itself
    if not created and _read(run.out, key, claim.generation).owner != claim.owner:
        return None
    return claim


def _renew(mine: dict[str, Claim], run: Run, done: threading.Event, end: Callable[[Claim], None]) -> None:
    def is_mine(claim: Claim) -> bool:
        return _read(run.out, claim.key, claim.generation).owner == claim.owner

    while not done.wait(run.settings.lease_seconds / 4):
        for claim in mine.values():
            renewed = replace(claim, expires=time.time() + run.settings.lease_seconds)
            with contextlib.suppress(StorageError):
                # somebody may have taken it over while the store or this process was away: both then write the same bytes
                if not done.is_set() and is_mine(claim) and not done.is_set():
                    storage.write(_uri(run.out, claim.key, claim.generation), _to_json(renewed))
            if done.is_set():  # the claim may have been ended before it was written
                with contextlib.suppress(StorageError):
                    if is_mine(claim):
                        end(claim)
                return


def _uri(out: str, key: str, generation: int) -> str:
    return storage.join(out, FOLDER, f"{key}.{generation}.json")


def _to_json(claim: Claim) -> bytes:
    return (json.dumps(asdict(claim), indent=1, sort_keys=True) + "\n").encode()


def _read(out: str, key: str, generation: int) -> Claim:
    nobody = Claim(key, generation, "", "", "", "", "", 0, 0.0)
    try:
        record = json.loads(storage.read(_uri(out, key, generation)))
        found = Claim(**record)
        float(found.expires), int(found.strikes), str(found.crash_log)
    except (ValueError, TypeError):
        return nobody
    except StorageError as error:
        if not is_pairs_own(error):
            raise
        return nobody  # released since it was listed
    return replace(found, key=key, generation=generation)


def _left_a_crash(name: str) -> bool:
    path = Path(tempfile.gettempdir(), Path(name).name)
    try:
        return path.name.startswith(_CRASH_LOG) and path.stat().st_size > 0
    except OSError:
        return False


@functools.cache
def _machine() -> str:
    """This machine since it was started, and the numbering of processes in it that this one sees."""

    def told(read: str) -> str:
        try:
            return os.readlink(read) if read.startswith("/proc/self") else Path(read).read_text().strip()
        except OSError:
            return ""

    return " ".join((platform.node(), told("/proc/sys/kernel/random/boot_id"), told("/proc/self/ns/pid")))


def _process() -> str:
    return f"{os.getpid()}.{_started(os.getpid())}"


def _is_running(process: str) -> bool:
    pid, _, started = process.partition(".")
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    """When a process began, in ticks: a number may be used again. Empty where the system does not say, and of a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
