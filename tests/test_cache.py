from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks import cache
from nst_tasks.cache import ByteLRU
from nst_tasks.core.metrics import FactoredGaussian, Gaussian, StyleMoments


def test_least_recently_used_value_is_evicted() -> None:
    room, made = ByteLRU(100), []

    def ask(key: str, bytes: int) -> np.ndarray:
        return room.get_or_compute(key, lambda: made.append(key) or np.zeros(bytes, np.uint8))

    first = ask("a", 40)
    ask("b", 40)
    assert ask("a", 40) is first
    ask("c", 60)  # b was used before a
    assert ask("a", 40) is first
    assert made == ["a", "b", "c"]
    ask("b", 61)
    assert len(room) == 1  # both others had to go
    ask("c", 1)
    assert made == ["a", "b", "c", "b", "c"]


def test_what_is_larger_than_the_room_takes_nobodys_place() -> None:
    room = ByteLRU(10)
    room.get_or_compute("small", lambda: np.zeros(10, np.uint8))
    assert len(room.get_or_compute("large", lambda: np.zeros(11, np.uint8))) == 11
    assert len(room) == 1
    assert room.get_or_compute("small", lambda: pytest.fail("made anew")).nbytes == 10
    room.clear()
    assert len(room) == 0
    assert room.get_or_compute("small", lambda: np.ones(10, np.uint8)).all()


def test_what_is_forgotten_leaves_its_room_to_others() -> None:
    room = ByteLRU(10)
    room.add("a", b"five!")
    room.add("b", b"five?")
    room.remove_if(lambda key: key == "a")
    assert room.get_or_compute("a", lambda: b"six...") == b"six..."  # the room of five is not enough: b, used before, has to go
    assert len(room) == 1
    room.remove_if(lambda key: key == "b")
    assert room.get_or_compute("a", bytes) == b"six..."
    room.add("c", b"four")
    assert len(room) == 2


def test_what_is_kept_already_stays() -> None:
    room = ByteLRU(10)
    room.add("a", b"first")
    room.add("a", b"second")
    assert room.get_or_compute("a", bytes) == b"first"
    room.add("b", b"sixsix")
    assert len(room) == 1


def test_nested_arrays_and_tensors_are_counted() -> None:
    array, tensor = np.zeros((2, 3), np.float64), tf.zeros((4, 5), tf.bfloat16)
    assert (cache.count_bytes(array), cache.count_bytes(tensor)) == (48, 40)
    gaussian = Gaussian(tf.zeros(2, tf.float64), tf.zeros((2, 2), tf.float64))
    assert cache.count_bytes({"a": [gaussian], "b": (array, None, "text", 1.0)}) == 48 + 48
    assert cache.count_bytes(StyleMoments({"block1_conv1": FactoredGaussian(*gaussian)}, 0.5)) == 48
