from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks import cache
from nst_tasks.cache import ByteLRU
from nst_tasks.core.metrics import FactoredGaussian, Gaussian, StyleMoments


def test_least_recently_used_value_is_evicted() -> None:
    lru, misses = ByteLRU(100), []

    def get_array(key: str, bytes: int) -> np.ndarray:
        return lru.get_or_compute(key, lambda: misses.append(key) or np.zeros(bytes, np.uint8))

    first = get_array("a", 40)
    get_array("b", 40)
    assert get_array("a", 40) is first
    get_array("c", 60)  # b was used before a
    assert get_array("a", 40) is first
    assert misses == ["a", "b", "c"]
    get_array("b", 61)
    assert len(lru) == 1  # both others were evicted
    get_array("c", 1)
    assert misses == ["a", "b", "c", "b", "c"]


def test_oversized_value_is_not_cached() -> None:
    lru = ByteLRU(10)
    lru.get_or_compute("small", lambda: np.zeros(10, np.uint8))
    assert len(lru.get_or_compute("large", lambda: np.zeros(11, np.uint8))) == 11
    assert len(lru) == 1
    assert lru.get_or_compute("small", lambda: pytest.fail("computed again")).nbytes == 10
    lru.clear()
    assert len(lru) == 0
    assert lru.get_or_compute("small", lambda: np.ones(10, np.uint8)).all()


def test_removed_values_free_their_space() -> None:
    lru = ByteLRU(10)
    lru.add("a", b"five!")
    lru.add("b", b"five?")
    lru.remove_if(lambda key: key == "a")
    assert lru.get_or_compute("a", lambda: b"six...") == b"six..."  # five bytes are too few, so b is evicted
    assert len(lru) == 1
    lru.remove_if(lambda key: key == "b")
    assert lru.get_or_compute("a", bytes) == b"six..."
    lru.add("c", b"four")
    assert len(lru) == 2


def test_add_keeps_an_existing_value() -> None:
    lru = ByteLRU(10)
    lru.add("a", b"first")
    lru.add("a", b"second")
    assert lru.get_or_compute("a", bytes) == b"first"
    lru.add("b", b"sixsix")
    assert len(lru) == 1


def test_nested_arrays_and_tensors_are_counted() -> None:
    array, tensor = np.zeros((2, 3), np.float64), tf.zeros((4, 5), tf.bfloat16)
    assert (cache.count_bytes(array), cache.count_bytes(tensor)) == (48, 40)
    gaussian = Gaussian(tf.zeros(2, tf.float64), tf.zeros((2, 2), tf.float64))
    assert cache.count_bytes({"a": [gaussian], "b": (array, None, "text", 1.0)}) == 48 + 48
    assert cache.count_bytes(StyleMoments({"block1_conv1": FactoredGaussian(*gaussian)}, 0.5)) == 48
