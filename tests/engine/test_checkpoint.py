"""Checkpoints as bytes: all of a state and nothing else comes back, and what was touched does not."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_tasks.core import transfer
from nst_tasks.core.method import LBFGS, SGD, Method
from nst_tasks.core.objective import Nothing
from nst_tasks.core.pyramid import Level
from nst_tasks.core.transfer import TransferState
from nst_tasks.core.vgg import Backbone
from nst_tasks.engine import checkpoint
from nst_tasks.engine.checkpoint import Checkpoint, PairHistory
from tests.support.jobs import LIGHT
from tests.support.pictures import picture

KEY = "ab" * 32
METHODS: dict[str, Method] = {
    "adam": replace(LIGHT.method, output="last"),
    "adam, averaged": replace(LIGHT.method, output="average"),
    "adam, best": replace(LIGHT.method, output="best", clip=False),
    "sgd": replace(LIGHT.method, optimizer=SGD(0.1, decay=0.97, decay_steps=3), clip=False),
    "lbfgs": replace(LIGHT.method, optimizer=LBFGS(3)),
}


@pytest.fixture(scope="module")
def make_checkpoint(tiny: Backbone) -> Callable[[Method, int], Checkpoint]:
    """Return a function that takes two steps of a batch by a method."""

    def make(method: Method, pairs: int) -> Checkpoint:
        contents = np.stack([picture(k) for k in range(pairs)])
        styles = [[transfer.style_statistics(tiny, method, picture(10 + k))] for k in range(pairs)]
        aims = transfer.build_targets(tiny, method, contents, styles, [[1.0]] * pairs)
        first = transfer.start(method, contents, list(range(pairs)))
        state, terms = transfer.advance(tiny, method, aims, first, 2, 5)
        earlier = np.arange(3 * pairs * 3, dtype=np.float32).reshape(3, pairs, 3)
        seconds = np.arange(3.0), np.array([2.0, 2.5, 3.0])
        histories = tuple(PairHistory((earlier[:, k], terms[:, k]), seconds) for k in range(pairs))
        return Checkpoint(state, first.image, histories)

    return make


def same(one: Checkpoint, two: Checkpoint) -> bool:
    def plain(at: Checkpoint) -> list[np.ndarray]:
        histories = [(history.terms, history.seconds) for history in at.histories]
        return [np.asarray(leaf) for leaf in tf.nest.flatten((at.state, at.level_start_image, histories))]

    kinds = [(type(at.state.optimizer), type(at.state.output_state), at.lr_reduced_from_level) for at in (one, two)]
    leaves = zip(plain(one), plain(two), strict=True)
    return kinds[0] == kinds[1] and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in leaves)


@pytest.mark.parametrize("calmed_from", [None, 0])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_everything_that_a_resume_needs_comes_back(
    make_checkpoint: Callable[[Method, int], Checkpoint], method: Method, calmed_from: int | None
) -> None:
    at = replace(make_checkpoint(method, 1), lr_reduced_from_level=calmed_from)
    back = checkpoint.decode(checkpoint.encode(checkpoint.to_host(at), KEY), KEY)
    assert same(at, back)
    assert (back.position, back.restarted) == ((0, 2), calmed_from is not None)
    assert transfer.is_compatible(method, back.state, Level(32, 40, 5))
    assert not transfer.is_compatible(method, back.state, Level(32, 41, 5))
    others = [other for other in METHODS.values() if other is not method]
    assert not any(transfer.is_compatible(other, back.state, Level(32, 40, 5)) for other in others)
    assert not transfer.is_compatible(replace(method, optimizer=LBFGS(4), output="last"), back.state, Level(32, 40, 5))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_batch_is_taken_apart_and_put_together(make_checkpoint: Callable[[Method, int], Checkpoint], method: Method) -> None:
    at = make_checkpoint(method, 3)
    for whole in (at, checkpoint.to_host(at)):
        parts = [checkpoint.select_pairs(whole, [k]) for k in range(3)]
        assert all(part.state.image.shape == (1, 32, 40, 3) == part.level_start_image.shape for part in parts)
        assert same(checkpoint.merge(parts), at)
        assert same(checkpoint.merge(parts[::-1]), checkpoint.select_pairs(at, [2, 1, 0]))


def test_history_of_a_pair_grows_by_chunks_and_levels() -> None:
    terms = np.arange(18, dtype=np.float32).reshape(6, 3)
    history = PairHistory().add_steps(terms[:2], 4.0).add_steps(terms[2:3], 1.0)
    assert (history.steps_done, history.elapsed_seconds) == (3, 5.0)
    np.testing.assert_array_equal(history.terms[0], terms[:3])
    np.testing.assert_array_equal(history.seconds[0], [0.0, 2.0, 4.0, 5.0])
    finer = history.finish_level(terms[3]).add_steps(terms[4:], 6.0)
    assert (finer.steps_done, finer.elapsed_seconds) == (5, 11.0)
    for level, (rows, seconds) in enumerate(((terms[:4], [0.0, 2.0, 4.0, 5.0]), (terms[4:], [5.0, 8.0, 11.0]))):
        np.testing.assert_array_equal(finer.terms[level], rows)
        np.testing.assert_array_equal(finer.seconds[level], seconds)
    repeated = finer.restart_level()
    assert (repeated.steps_done, repeated.elapsed_seconds) == (3, 11.0)  # the time was spent, the steps are repeated
    assert [len(rows) for rows in repeated.terms] == [4, 0]


def test_checkpoint_fits_only_its_own_method_and_levels(make_checkpoint: Callable[[Method, int], Checkpoint]) -> None:
    method = METHODS["adam"]
    at = make_checkpoint(method, 1)
    assert checkpoint.is_compatible(at, method, [Level(32, 40, 2)])
    assert not checkpoint.is_compatible(at, method, [Level(32, 40, 1)])  # it has taken more steps than that
    assert not checkpoint.is_compatible(at, method, [Level(32, 41, 2)])
    assert not checkpoint.is_compatible(at, METHODS["sgd"], [Level(32, 40, 2)])
    finished = replace(at, state=TransferState(at.state.image, Nothing(), Nothing(), 1, 0))
    assert checkpoint.is_compatible(finished, method, [Level(32, 40, 2)])
    assert not checkpoint.is_compatible(finished, method, [Level(40, 32, 2)])
    assert not checkpoint.is_compatible(finished, method, [Level(32, 40, 2), Level(64, 80, 2)])


@pytest.fixture(scope="module")
def checkpoint_bytes(make_checkpoint: Callable[[Method, int], Checkpoint]) -> bytes:
    return checkpoint.encode(checkpoint.to_host(make_checkpoint(METHODS["adam"], 1)), KEY)


@settings(max_examples=60)
@given(share=st.integers(0, 2**20 - 1), change=st.integers(1, 255))
def test_what_was_touched_is_not_read(checkpoint_bytes: bytes, share: int, change: int) -> None:
    place = share * len(checkpoint_bytes) >> 20
    torn = checkpoint_bytes[:place]
    flipped = bytearray(checkpoint_bytes)
    flipped[place] ^= change
    with pytest.raises(ValueError, match="^it is damaged"):
        checkpoint.decode(torn, KEY)
    try:
        assert (
            checkpoint.encode(checkpoint.decode(bytes(flipped), KEY), KEY) == checkpoint_bytes
        )  # a byte that says nothing, as a date
    except ValueError as error:
        assert str(error).startswith("it is damaged")


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        return {name: whole.read(name) for name in whole.namelist()}


def zipped(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as whole:
        for name, data in parts.items():
            whole.writestr(name, data)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class Opened(Exception):
    """A pickle was run."""


class Trap:
    def __reduce__(self) -> tuple[type[Exception], tuple[str]]:
        return Opened, ("run",)


def test_what_somebody_made_up_is_not_read(checkpoint_bytes: bytes) -> None:
    parts = members(checkpoint_bytes)
    trap = np.empty(1, object)
    trap[0] = Trap()
    huge = npy(np.zeros(1, np.float32)).replace(b"(1,)", b"(9999999999,)"[:13])
    for made_up in (
        b"",
        b"no zip",
        pickle.dumps(Trap()),
        zipped({**parts, "image.npy": npy(trap)}),
        zipped({name: data for name, data in parts.items() if name != "sha256.npy"}),
        zipped({name: data for name, data in parts.items() if name != "facts.npy"}),
        zipped({**parts, "image.npy": npy(np.zeros((1, 32, 40, 3), np.float32))}),  # a valid array that nobody signed
        zipped({**parts, "image.npy": huge}),
        zipped({**parts, "image.npy": npy(np.zeros((1, 4000, 4000, 3), np.float32))}, zipfile.ZIP_DEFLATED),  # a bomb
    ):
        with pytest.raises(ValueError, match="^it is damaged"):
            checkpoint.decode(made_up, KEY)


def sign(checkpoint_bytes: bytes, **facts: str) -> bytes:
    """Change facts of a checkpoint, and correct its checksum."""
    with np.load(io.BytesIO(checkpoint_bytes)) as found:
        arrays = {name: found[name] for name in found.files if name != "sha256"}
    all_facts = {**json.loads(arrays["facts"].tobytes()), **facts}
    arrays["facts"] = np.frombuffer(json.dumps(all_facts, sort_keys=True).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, sha256=checkpoint._digest(arrays), **arrays)
    return buffer.getvalue()


def test_another_pairs_and_another_versions_are_told_apart(checkpoint_bytes: bytes) -> None:
    assert same(checkpoint.decode(sign(checkpoint_bytes), KEY), checkpoint.decode(checkpoint_bytes, KEY))
    with pytest.raises(ValueError, match="^it is another pair's$"):
        checkpoint.decode(checkpoint_bytes, "cd" * 32)
    for name in ("nst", "tensorflow", "numerics", "checkpoint"):
        with pytest.raises(ValueError, match=rf"^it was made by {name} 9\.9\.9$"):
            checkpoint.decode(sign(checkpoint_bytes, **{name: "9.9.9"}), KEY)


def test_the_same_state_gives_the_same_content(
    make_checkpoint: Callable[[Method, int], Checkpoint], checkpoint_bytes: bytes
) -> None:
    repeated = checkpoint.encode(checkpoint.to_host(make_checkpoint(METHODS["adam"], 1)), KEY)
    assert members(repeated) == members(checkpoint_bytes)


def test_a_checkpoint_is_written_from_where_it_lies(make_checkpoint: Callable[[Method, int], Checkpoint]) -> None:
    """Of a large picture it has gigabytes: to bring it to the host, to take a batch's only pair or to merge one copies none."""
    at = make_checkpoint(METHODS["lbfgs"], 1)
    held = checkpoint.to_host(at)
    selection = checkpoint.select_pairs(held, [0])
    assert np.shares_memory(held.state.image, np.asarray(at.state.image))
    assert all(ours is theirs for ours, theirs in zip(selection.state.optimizer, held.state.optimizer, strict=True))
    assert checkpoint.merge([at]) is at
    assert not np.shares_memory(checkpoint.select_pairs(held, [0, 0]).state.image, held.state.image)
