"""Per-pair locks in the output store, so that concurrent runs never process the same pair.

A claim is the file `OUT/claims/{key}.{generation}.json`, created only if it does not exist and renewed while its owner lives;
the highest generation is the current one. To take over a dead claim, a run creates the next generation, which only one of
several runs can do. The dead claim stays until the new one ends: a listing read while claims come and go may miss the new
one, and must then still show that the pair was claimed. A claim also counts the crashes in native code of earlier owners.

If the store ignores the condition on creation, nothing is claimed: two runs then write the same bytes, and the last write wins.
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
"""Number of native crashes of its process after which a pair is not tried again."""

_CRASH_LOG = "nst-crash-"


@dataclass(frozen=True)
class Claim:
    """Lock of one process on a pair.

    Attributes:
        owner: Random identifier of this acquisition.
        machine: Identity of the owner's machine since its boot, see `_machine`.
        process: PID and start time of the owner.
        crash_log: Name of the file in the machine's temporary folder that a crash in native code leaves.
        strikes: Number of earlier such crashes that the pair was part of.
        expires: Time in seconds since 1970.
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
        """Return whether the owner may still be working: not expired, and not known to be dead on this machine."""
        if time.time() >= self.expires:
            return False
        return self.machine != _machine() or _is_running(self.process)

    @property
    def next_strikes(self) -> int:
        """Strikes of the pair once this claim's owner is dead."""
        return self.strikes + _left_a_crash(self.crash_log)


def standing(out: str) -> dict[str, Claim]:
    """Read the current claim of each key; a claim that is damaged or deleted meanwhile counts as expired.

    Raises:
        StorageError: The store cannot be listed or read.
    """
    return {key: _read(out, key, generations[-1]) for key, generations in sorted(_generations(out).items())}


def _generations(out: str, keys: Sequence[str] = ()) -> dict[str, list[int]]:
    """List the generations of every key, or at least of `keys`, in ascending order."""
    found: dict[str, list[int]] = {}
    for name in storage.listing(storage.join(out, FOLDER), os.path.commonprefix(keys)):
        key, _, generation = name.removesuffix(".json").rpartition(".")
        if name.endswith(".json") and generation.isdecimal():
            found.setdefault(key, []).append(int(generation))
    return {key: sorted(generations) for key, generations in found.items()}


@contextlib.contextmanager
def taken(keys: Iterable[str], run: Run) -> Iterator[Mapping[str, Claim]]:
    """Claim the pairs that no other run holds, renew the claims during the block, and release them at its end.

    If the block raises, claims with strikes stay in the store, expired, so that the strikes are not lost.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """
    mine: dict[str, Claim] = {}
    dead: dict[str, list[Claim]] = {}
    finished = False
    done = threading.Event()

    def end(claim: Claim) -> None:
        for one in dead.get(claim.key, ()):  # first: while the current claim exists, no run starts at generation 0
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
        for _ in range(2):  # first as if all were free, the usual case; then the pairs that are or were claimed
            for key in left:
                if claim := _take(key, before.get(key), run):
                    mine[key] = claim  # stored at once: if the store fails at the next key, this claim is released
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
            renewing.join(1.0)  # do not wait for a store that hangs: the thread ends the claim that it is renewing
        if run.exclusive:
            for claim in mine.values():
                end(claim)


def release(out: str, claim: Claim) -> None:
    """Delete a claim if the store allows it; otherwise it expires."""
    with contextlib.suppress(StorageError):
        storage.delete(_uri(out, claim.key, claim.generation))


@functools.cache
def watch_for_crashes() -> str:
    """Make a native crash of this process leave its stack in a temporary file, and return the file's name.

    The name is empty if `faulthandler` is already in use or the file cannot be created. A kill, a power failure and the
    kernel's out-of-memory killer leave no stack: they say nothing about the pair.
    """
    if faulthandler.is_enabled():
        return ""
    for old in Path(tempfile.gettempdir()).glob(f"{_CRASH_LOG}*.log"):
        with contextlib.suppress(OSError):
            if not old.stat().st_size and not _is_running(old.stem.removeprefix(_CRASH_LOG).rpartition("-")[0]):
                old.unlink()  # left empty by a process that was killed
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
    """Read the claims of a key's generations whose owners are dead.

    A live one was just created at 0 by a run that missed the higher generation; that run releases it.
    """
    return [claim for claim in (_read(out, key, one) for one in generations) if claim.owner and not claim.is_live]


def _take(key: str, before: Claim | None, run: Run) -> Claim | None:
    if before is not None and before.is_live and before.run_id != run.id:
        # a live claim of this same run is left from an attempt that a store failure cut short, or belongs to another row with
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
    # the client repeats a request whose answer was lost, and is then refused because of its own object
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
                # another run may have taken it over while the store or this process stalled: both then write the same bytes
                if not done.is_set() and is_mine(claim) and not done.is_set():
                    storage.write(_uri(run.out, claim.key, claim.generation), _to_json(renewed))
            if done.is_set():  # the claim may have been ended just before the write above recreated it
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
        return nobody  # deleted after it was listed
    return replace(found, key=key, generation=generation)


def _left_a_crash(name: str) -> bool:
    path = Path(tempfile.gettempdir(), Path(name).name)
    try:
        return path.name.startswith(_CRASH_LOG) and path.stat().st_size > 0
    except OSError:
        return False


@functools.cache
def _machine() -> str:
    """Return the host name, boot ID and PID namespace: processes with equal values see each other's PIDs."""

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
    """Return the start time of a process in clock ticks since boot, which distinguishes it from a later one with the same PID.

    Empty for a dead process or a zombie, and on systems without `/proc`.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
