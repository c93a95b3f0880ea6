"""Per-pair locks in the output store, so that concurrent runs never process the same pair.

A claim is the file `OUT/claims/{key}.{generation}.json`, created only if it does not exist and renewed while its owner lives;
the highest generation is the current one. To take over a dead claim, a run creates the next generation, which only one of
several runs can do. The dead claim stays until the new one ends: a listing read while claims come and go may miss the new
one, and must then still show that the pair was claimed. A claim also counts the crashes in native code of earlier owners.

If the store ignores the condition on creation, nothing is claimed: two runs then write the same bytes, and the last write wins.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import FiniteFloat

from nst_tasks.errors import StorageError, is_pair_failure
from nst_tasks.inputs.run import Run
from nst_tasks.outputs.layout import CLAIMS_FOLDER, claim_path, parse_claim_name
from nst_tasks.outputs.liveness import enable_crash_log, is_running, left_crash_log, machine_id, process_id
from nst_tasks.outputs.record import Count, decode, encode
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri

MAX_STRIKES = 2
"""Number of native crashes of its process after which a pair is not tried again."""


@dataclass(frozen=True)
class Claim:
    """Lock of one process on a pair.

    Attributes:
        owner: Random identifier of this acquisition.
        machine: Identity of the owner's machine since its boot, see `machine_id`.
        process: PID and start time of the owner.
        crash_log: Name of the file in the machine's temporary folder that a crash in native code leaves.
        strikes: Number of earlier such crashes that the pair was part of.
        expires: Time in seconds since 1970.
    """

    key: str
    generation: Count
    owner: str
    run_id: str
    machine: str
    process: str
    crash_log: str
    strikes: Count
    expires: FiniteFloat

    @property
    def is_live(self) -> bool:
        """Return whether the owner may still be working: not expired, and not known to be dead on this machine."""
        if time.time() >= self.expires:
            return False
        return self.machine != machine_id() or is_running(self.process)

    @property
    def next_strikes(self) -> int:
        """Strikes of the pair once this claim's owner is dead."""
        return self.strikes + left_crash_log(self.crash_log)


def current_claims(out: str) -> dict[str, Claim]:
    """Read the current claim of each key; a claim that is damaged or deleted meanwhile counts as expired.

    Raises:
        StorageError: The store cannot be listed or read.
    """
    return {key: _read_claim(out, key, generations[-1]) for key, generations in sorted(_list_generations(out).items())}


def _list_generations(out: str, keys: Sequence[str] = ()) -> dict[str, list[int]]:
    """List the generations of every key, or at least of `keys`, in ascending order."""
    generations: dict[str, list[int]] = {}
    for name in files.list_files(join_uri(out, CLAIMS_FOLDER), os.path.commonprefix(keys)):
        if parts := parse_claim_name(name):
            key, generation = parts
            generations.setdefault(key, []).append(generation)
    return {key: sorted(generations) for key, generations in generations.items()}


@contextlib.contextmanager
def hold(keys: Iterable[str], run: Run) -> Iterator[Mapping[str, Claim]]:
    """Claim the pairs that no other run holds, renew the claims during the block, and release them at its end.

    If the block raises, claims with strikes stay in the store, expired, so that the strikes are not lost.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """
    held: dict[str, Claim] = {}
    dead: dict[str, list[Claim]] = {}
    finished = False
    ended = threading.Event()

    def end_claim(claim: Claim) -> None:
        for one in dead.get(claim.key, ()):  # first: while the current claim exists, no run starts at generation 0
            release(run.out, one)
        if finished or not claim.strikes:
            release(run.out, claim)
        else:
            with contextlib.suppress(StorageError):
                files.write(_claim_uri(run.out, claim.key, claim.generation), encode(replace(claim, expires=0.0)))

    renewal_thread = threading.Thread(target=_renew, args=(held, run, ended, end_claim), name="renew claims", daemon=True)
    try:
        previous: dict[str, Claim] = {}
        remaining = list(dict.fromkeys(keys))
        for _ in range(2):  # first as if all were free, the usual case; then the pairs that are or were claimed
            for key in remaining:
                if claim := _acquire(key, previous.get(key), run):
                    held[key] = claim  # stored at once: if the store fails at the next key, this claim is released
            generations = _list_generations(run.out, remaining) if run.exclusive and remaining else {}
            for key in [key for key, claim in held.items() if key in generations and generations[key][-1] > claim.generation]:
                release(run.out, held.pop(key))
            remaining = [key for key in remaining if key not in held and key in generations]
            previous = {key: _read_claim(run.out, key, generations[key][-1]) for key in remaining}
            dead |= {key: [*_read_dead_claims(run.out, key, generations[key][:-1]), previous[key]] for key in remaining}
        if run.exclusive:
            renewal_thread.start()
        yield dict(held)
        finished = True
    finally:
        ended.set()
        if renewal_thread.ident is not None:
            renewal_thread.join(1.0)  # do not wait for a store that hangs: the thread ends the claim that it is renewing
        if run.exclusive:
            for claim in held.values():
                end_claim(claim)


def release(out: str, claim: Claim) -> None:
    """Delete a claim if the store allows it; otherwise it expires."""
    with contextlib.suppress(StorageError):
        files.delete(_claim_uri(out, claim.key, claim.generation))


def _read_dead_claims(out: str, key: str, generations: Sequence[int]) -> list[Claim]:
    """Read the claims of a key's generations whose owners are dead.

    A live one was just created at 0 by a run that missed the higher generation; that run releases it.
    """
    return [claim for claim in (_read_claim(out, key, one) for one in generations) if claim.owner and not claim.is_live]


def _acquire(key: str, previous: Claim | None, run: Run) -> Claim | None:
    if previous is not None and previous.is_live and previous.run_id != run.id:
        # a live claim of this same run is left from an attempt that a store failure cut short, or belongs to another row with
        # the same pair: these two write the same bytes, and cost each other no more than a checkpoint
        return None
    claim = Claim(
        key=key,
        generation=previous.generation + 1 if previous else 0,
        owner=secrets.token_hex(8),
        run_id=run.id,
        machine=machine_id(),
        process=process_id(),
        crash_log=enable_crash_log(),
        strikes=previous.next_strikes if previous else 0,
        expires=time.time() + run.settings.lease_seconds,
    )
    if not run.exclusive:
        return claim
    created = files.create_if_absent(_claim_uri(run.out, key, claim.generation), encode(claim))
    # the client repeats a request whose answer was lost, and is then refused because of its own object
    if not created and _read_claim(run.out, key, claim.generation).owner != claim.owner:
        return None
    return claim


def _renew(held: dict[str, Claim], run: Run, ended: threading.Event, end_claim: Callable[[Claim], None]) -> None:
    def is_mine(claim: Claim) -> bool:
        return _read_claim(run.out, claim.key, claim.generation).owner == claim.owner

    while not ended.wait(run.settings.lease_seconds / 4):
        for claim in held.values():
            renewed = replace(claim, expires=time.time() + run.settings.lease_seconds)
            with contextlib.suppress(StorageError):
                # another run may have taken it over while the store or this process stalled: both then write the same bytes
                if not ended.is_set() and is_mine(claim) and not ended.is_set():
                    files.write(_claim_uri(run.out, claim.key, claim.generation), encode(renewed))
            if ended.is_set():  # the claim may have been ended just before the write above recreated it
                with contextlib.suppress(StorageError):
                    if is_mine(claim):
                        end_claim(claim)
                return


def _claim_uri(out: str, key: str, generation: int) -> str:
    return join_uri(out, claim_path(key, generation))


def _read_claim(out: str, key: str, generation: int) -> Claim:
    expired_claim = Claim(key, generation, "", "", "", "", "", 0, 0.0)
    try:
        claim = decode(Claim, files.read(_claim_uri(out, key, generation)))
    except ValueError:
        return expired_claim
    except StorageError as error:
        if not is_pair_failure(error):
            raise
        return expired_claim  # deleted after it was listed
    return replace(claim, key=key, generation=generation)
