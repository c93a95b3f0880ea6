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
from nst_tasks.core.lbfgs import LBFGSState
from nst_tasks.core.method import NUMERICS_VERSION
from nst_tasks.core.objective import Nothing
from nst_tasks.core.optimizers import AdamState, SGDState
from nst_tasks.core.transfer import Average, Best, TransferState

STATE_TYPES: Mapping[str, Any] = MappingProxyType(
    {kind.__name__: kind for kind in (AdamState, SGDState, LBFGSState, Average, Best, Nothing)}
)

REQUIRED_VERSIONS: Mapping[str, str] = MappingProxyType(
    {"checkpoint": "1", "numerics": str(NUMERICS_VERSION), "nst": __version__, "tensorflow": tf.__version__}
)
"""Versions that must match on reading a checkpoint, so that the resumed run gives the same bytes as an uninterrupted one."""


@dataclass(frozen=True)
class Checkpoint:
    """State and loss history of a batch of B pairs between two chunks of steps.

    Attributes:
        state: State of `core.transfer`, with level and step. After the last level, `state.level` is the number of levels and
            `state.image` the result.
        level_start_image: Images (B, H, W, 3) at the start of the current level.
        terms: Loss terms (n, B, 3) of each level so far; the last row of a finished level belongs to its result.
        seconds: Compute time of all pairs together since their start: (n + 1,) for the current level, (n,) for a finished one.
        lr_reduced_from_level: Level from which the learning rate is lower because the loss blew up there, or None.
        batch_keys: Keys of the pairs that share the batch.
    """

    state: TransferState
    level_start_image: tf.Tensor
    terms: tuple[np.ndarray, ...]
    seconds: tuple[np.ndarray, ...]
    lr_reduced_from_level: int | None = None
    batch_keys: tuple[str, ...] = ()

    @property
    def elapsed_seconds(self) -> float:
        """Compute time of all pairs together so far, in seconds."""
        return float(self.seconds[-1][-1])


def select_pairs(checkpoint: Checkpoint, indices: Sequence[int]) -> Checkpoint:
    """Return the checkpoint of the pairs at these indices, in this order, with their share of the seconds."""
    chosen = list(indices)
    share = len(chosen) / checkpoint.level_start_image.shape[0]
    return replace(
        checkpoint,
        state=tf.nest.map_structure(lambda leaf: _select_rows(leaf, chosen), checkpoint.state),
        level_start_image=_select_rows(checkpoint.level_start_image, chosen),
        terms=tuple(terms[:, chosen] for terms in checkpoint.terms),
        seconds=tuple(share * seconds for seconds in checkpoint.seconds),
    )


def merge(parts: Sequence[Checkpoint]) -> Checkpoint:
    """Merge pairs at the same level and step into one batch."""
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        state=tf.nest.map_structure(_concatenate, *(part.state for part in parts)),
        level_start_image=tf.concat([part.level_start_image for part in parts], axis=0),
        terms=tuple(np.concatenate(terms, axis=1) for terms in zip(*(part.terms for part in parts), strict=True)),
        seconds=tuple(np.sum(seconds, axis=0) for seconds in zip(*(part.seconds for part in parts), strict=True)),
    )


def to_host(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with NumPy arrays in place of tensors, so that it can be used without the device."""
    # `numpy()` would copy, gigabytes for a large image
    state = tf.nest.map_structure(lambda leaf: np.asarray(leaf) if isinstance(leaf, tf.Tensor) else leaf, checkpoint.state)
    return replace(checkpoint, state=state, level_start_image=np.asarray(checkpoint.level_start_image))


def _select_rows(leaf: Any, chosen: list[int]) -> Any:
    """Select these pairs along the leading batch axis; a scalar belongs to the whole batch and is returned unchanged."""
    if not _is_batched(leaf) or chosen == list(range(leaf.shape[0])):
        return leaf
    return leaf[chosen] if isinstance(leaf, np.ndarray) else tf.gather(leaf, chosen)


def _concatenate(*leaves: Any) -> Any:
    return tf.concat(leaves, axis=0) if _is_batched(leaves[0]) else leaves[0]


def _is_batched(leaf: Any) -> bool:
    return len(getattr(leaf, "shape", ())) > 0


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
        "kept": type(checkpoint.state.output_state).__name__,
        "calmed_from": checkpoint.lr_reduced_from_level,
        "companions": checkpoint.batch_keys,
    }
    arrays: dict[str, np.ndarray] = {
        "facts": np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8),
        "image": np.asarray(checkpoint.state.image),
        "first": np.asarray(checkpoint.level_start_image),
        **{f"optimizer.{name}": np.asarray(leaf) for name, leaf in checkpoint.state.optimizer._asdict().items()},
        **{f"kept.{name}": np.asarray(leaf) for name, leaf in checkpoint.state.output_state._asdict().items()},
        **{f"terms.{k}": terms for k, terms in enumerate(checkpoint.terms)},
        **{f"seconds.{k}": seconds for k, seconds in enumerate(checkpoint.seconds)},
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
            _build_state(facts["kept"], "kept", arrays),
            facts["level"],
            facts["step"],
        ),
        tf.constant(arrays["first"]),
        tuple(arrays[f"terms.{k}"] for k in range(_count_arrays("terms", arrays))),
        tuple(arrays[f"seconds.{k}"] for k in range(_count_arrays("seconds", arrays))),
        facts["calmed_from"],
        tuple(facts["companions"]),
    )


def _read_arrays(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ValueError("more than is stored")  # checkpoints are not compressed: a zip bomb
    with np.load(io.BytesIO(data), allow_pickle=False) as npz:
        return {name: npz[name] for name in npz.files}


def _build_state(type_name: str, prefix: str, arrays: Mapping[str, np.ndarray]) -> Any:
    return STATE_TYPES[type_name](**{name: tf.constant(arrays[f"{prefix}.{name}"]) for name in STATE_TYPES[type_name]._fields})


def _count_arrays(prefix: str, arrays: Mapping[str, np.ndarray]) -> int:
    return sum(name.startswith(f"{prefix}.") for name in arrays)


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the SHA-256, (32,) uint8, of all arrays in the order of their names, with their dtypes and shapes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return np.frombuffer(digest.digest(), np.uint8)
