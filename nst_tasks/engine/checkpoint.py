"""Serialize the state and loss history of an unfinished pair: an npz with a checksum, never a pickle."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import tensorflow as tf

from nst_tasks import __version__
from nst_tasks.core import transfer
from nst_tasks.core.lbfgs import LBFGSState
from nst_tasks.core.method import NUMERICS_VERSION, Method
from nst_tasks.core.objective import TERMS, Nothing
from nst_tasks.core.optimizers import AdamState, SGDState
from nst_tasks.core.pyramid import Level
from nst_tasks.core.transfer import Average, Best, TransferState

STATE_TYPES: Mapping[str, Any] = MappingProxyType(
    {kind.__name__: kind for kind in (AdamState, SGDState, LBFGSState, Average, Best, Nothing)}
)

REQUIRED_VERSIONS: Mapping[str, str] = MappingProxyType(
    {"checkpoint": "2", "numerics": str(NUMERICS_VERSION), "nst": __version__, "tensorflow": tf.__version__}
)
"""Versions that must match on reading a checkpoint, so that the resumed run gives the same bytes as an uninterrupted one."""


@dataclass(frozen=True)
class PairHistory:
    """Losses of one pair so far, and the compute time since it began: its share of the time of its batch.

    Attributes:
        terms: Loss terms of each level before each of its n steps, (n, 3), and of its result once it is finished, (n + 1, 3).
        seconds: Compute time at the start of each level and after each of its n steps, (n + 1,).
    """

    terms: tuple[np.ndarray, ...] = (np.zeros((0, len(TERMS)), np.float32),)
    seconds: tuple[np.ndarray, ...] = (np.zeros(1),)

    @property
    def elapsed_seconds(self) -> float:
        """Compute time so far, in seconds."""
        return float(self.seconds[-1][-1])

    @property
    def steps_done(self) -> int:
        """Number of steps so far, on all levels."""
        return sum(len(seconds) - 1 for seconds in self.seconds)

    def add_steps(self, terms: np.ndarray, seconds: float) -> PairHistory:
        """Return the history after more steps of the current level, with their terms (n, 3) and the time of all together."""
        ends = self.elapsed_seconds + seconds * np.arange(1, len(terms) + 1) / len(terms)
        return PairHistory(
            (*self.terms[:-1], np.concatenate([self.terms[-1], terms])),
            (*self.seconds[:-1], np.concatenate([self.seconds[-1], ends])),
        )

    def finish_level(self, result_terms: np.ndarray) -> PairHistory:
        """Return the history with the terms (3,) of the current level's result, at the start of the next level."""
        finished = np.concatenate([self.terms[-1], result_terms[None]])
        return PairHistory((*self.terms[:-1], finished, finished[:0]), (*self.seconds, self.seconds[-1][-1:]))

    def restart_level(self) -> PairHistory:
        """Return the history without the steps of the current level; their time counts all the same."""
        return PairHistory((*self.terms[:-1], self.terms[-1][:0]), (*self.seconds[:-1], self.seconds[-1][-1:]))


@dataclass(frozen=True)
class Checkpoint:
    """State and loss histories of B pairs between two chunks of steps.

    Attributes:
        state: State of `core.transfer`, with the batch's level and step; a pair whose level ended earlier has kept its state
            since. After the last level, `state.level` is the number of levels and `state.image` the result.
        level_start_image: Images (B, H, W, 3) at the start of the current level.
        histories: Loss history of each pair.
        lr_reduced_from_level: Level from which the learning rate is lower because the loss blew up there, or None.
    """

    state: TransferState
    level_start_image: tf.Tensor
    histories: tuple[PairHistory, ...]
    lr_reduced_from_level: int | None = None

    @property
    def position(self) -> tuple[int, int]:
        """Level and step."""
        return self.state.level, self.state.step

    @property
    def restarted(self) -> bool:
        """Return whether the loss blew up, so that a level was repeated at a lower learning rate."""
        return self.lr_reduced_from_level is not None


def is_compatible(checkpoint: Checkpoint, method: Method, schedule: Sequence[Level]) -> bool:
    """Return whether the checkpoint of a single pair fits its method and levels."""
    number, step = checkpoint.position
    if number == len(schedule):  # finished: only the image is left to check
        return tuple(checkpoint.state.image.shape) == (1, schedule[-1].height, schedule[-1].width, 3)
    return (
        number < len(schedule)
        and step <= schedule[number].steps
        and transfer.is_compatible(method, checkpoint.state, schedule[number])
    )


def select_pairs(checkpoint: Checkpoint, indices: Sequence[int]) -> Checkpoint:
    """Return the checkpoint of the pairs at these indices, in this order."""
    chosen = list(indices)
    return replace(
        checkpoint,
        state=tf.nest.map_structure(lambda leaf: _select_rows(leaf, chosen), checkpoint.state),
        level_start_image=_select_rows(checkpoint.level_start_image, chosen),
        histories=tuple(checkpoint.histories[k] for k in chosen),
    )


def merge(parts: Sequence[Checkpoint]) -> Checkpoint:
    """Merge pairs at the same position into one batch."""
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        state=tf.nest.map_structure(_concatenate, *(part.state for part in parts)),
        level_start_image=tf.concat([part.level_start_image for part in parts], axis=0),
        histories=tuple(history for part in parts for history in part.histories),
    )


def to_host(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with NumPy arrays in place of tensors, so that it can be used without the device."""
    # `numpy()` would copy, gigabytes for a large image
    state = tf.nest.map_structure(lambda leaf: np.asarray(leaf) if isinstance(leaf, tf.Tensor) else leaf, checkpoint.state)
    return replace(checkpoint, state=state, level_start_image=np.asarray(checkpoint.level_start_image))


def _select_rows(leaf: Any, chosen: list[int]) -> Any:
    """Select these pairs along the leading batch axis of a tensor; return a number, which belongs to the batch, unchanged."""
    if isinstance(leaf, int) or chosen == list(range(leaf.shape[0])):
        return leaf
    return leaf[chosen] if isinstance(leaf, np.ndarray) else tf.gather(leaf, chosen)


def _concatenate(*leaves: Any) -> Any:
    return leaves[0] if isinstance(leaves[0], int) else tf.concat(leaves, axis=0)


def encode(checkpoint: Checkpoint, key: str) -> bytes:
    """Encode the checkpoint of a single pair with this key."""
    file = io.BytesIO()
    write(checkpoint, key, file)
    return file.getvalue()


def write(checkpoint: Checkpoint, key: str, file: IO[bytes]) -> None:
    """Write the checkpoint of a single pair with this key into a file, without a copy of its bytes in memory."""
    facts = {
        **REQUIRED_VERSIONS,
        "key": key,
        "level": checkpoint.state.level,
        "step": checkpoint.state.step,
        "optimizer": type(checkpoint.state.optimizer).__name__,
        "output_state": type(checkpoint.state.output_state).__name__,
        "lr_reduced_from_level": checkpoint.lr_reduced_from_level,
    }
    (history,) = checkpoint.histories
    arrays: dict[str, np.ndarray] = {
        "facts": np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8),
        "image": np.asarray(checkpoint.state.image),
        "level_start_image": np.asarray(checkpoint.level_start_image),
        **{f"optimizer.{name}": np.asarray(leaf) for name, leaf in checkpoint.state.optimizer._asdict().items()},
        **{f"output_state.{name}": np.asarray(leaf) for name, leaf in checkpoint.state.output_state._asdict().items()},
        **{f"terms.{k}": terms for k, terms in enumerate(history.terms)},
        **{f"seconds.{k}": seconds for k, seconds in enumerate(history.seconds)},
    }
    np.savez(file, allow_pickle=False, sha256=_digest(arrays), **arrays)


def decode(data: bytes, key: str) -> Checkpoint:
    """Decode the checkpoint of a single pair.

    Raises:
        ValueError: The bytes are damaged, belong to another pair, or come from another version of nst or TensorFlow.
    """
    try:
        arrays = _read_arrays(data)
        facts = json.loads(arrays["facts"].tobytes())
    except (ValueError, KeyError, TypeError, OSError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError("it is damaged") from error
    if arrays.pop("sha256", np.zeros(0)).tobytes() != _digest(arrays).tobytes():
        raise ValueError("it is damaged: its checksum is another one")
    if facts["key"] != key:
        raise ValueError("it is another pair's")
    if differing := [name for name, value in REQUIRED_VERSIONS.items() if facts[name] != value]:
        made = ", ".join(f"{name} {facts[name]}" for name in differing)
        raise ValueError(f"it was made by {made}")
    return Checkpoint(
        TransferState(
            tf.constant(arrays["image"]),
            _build_state(facts["optimizer"], "optimizer", arrays),
            _build_state(facts["output_state"], "output_state", arrays),
            facts["level"],
            facts["step"],
        ),
        tf.constant(arrays["level_start_image"]),
        (PairHistory(_list_arrays("terms", arrays), _list_arrays("seconds", arrays)),),
        facts["lr_reduced_from_level"],
    )


def _read_arrays(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ValueError("more than is stored")  # checkpoints are not compressed: a zip bomb
    with np.load(io.BytesIO(data), allow_pickle=False) as npz:
        return {name: npz[name] for name in npz.files}


def _build_state(type_name: str, prefix: str, arrays: Mapping[str, np.ndarray]) -> Any:
    return STATE_TYPES[type_name](**{name: tf.constant(arrays[f"{prefix}.{name}"]) for name in STATE_TYPES[type_name]._fields})


def _list_arrays(prefix: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return the arrays named by this prefix and the number of a level, in the order of the levels."""
    return tuple(arrays[f"{prefix}.{k}"] for k in range(sum(name.startswith(f"{prefix}.") for name in arrays)))


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the SHA-256, (32,) uint8, of all arrays in the order of their names, with their dtypes and shapes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return np.frombuffer(digest.digest(), np.uint8)
