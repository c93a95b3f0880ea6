"""Thread-safe LRU cache bounded by the total size of its values in bytes."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from cachetools import LRUCache


class ByteLRU:
    """Thread-safe LRU cache of at most `max_bytes` bytes.

    Two threads that request the same missing value at once both compute it. A value larger than the cache is not cached.
    """

    def __init__(self, max_bytes: int) -> None:
        self._values: LRUCache[Hashable, Any] = LRUCache(max_bytes, getsizeof=count_bytes)
        self._lock = threading.Lock()

    def get_or_compute(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return the value of a key, computed by `compute` if it is not cached; the key must determine the value."""
        with self._lock:
            if key in self._values:
                return self._values[key]
        value = compute()
        self.add(key, value)
        return value

    def add(self, key: Hashable, value: Any) -> None:
        """Cache a value unless its key is present or the value is larger than the cache."""
        with self._lock, contextlib.suppress(ValueError):  # too large
            self._values.setdefault(key, value)

    def remove_if(self, predicate: Callable[[Hashable], bool]) -> None:
        """Remove the values whose keys satisfy a predicate."""
        with self._lock:
            for key in [*filter(predicate, self._values)]:
                del self._values[key]

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)


def count_bytes(value: Any) -> int:
    """Return the size in bytes of all bytes objects, arrays and tensors nested in sequences, mappings and dataclasses."""
    if isinstance(value, bytes):
        return len(value)
    if is_dataclass(value):
        return sum(count_bytes(getattr(value, attribute.name)) for attribute in fields(value))
    if isinstance(value, Mapping):
        return sum(map(count_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(count_bytes, value))
    if not hasattr(value, "dtype"):
        return 0
    return int(math.prod(value.shape) * (getattr(value.dtype, "itemsize", 0) or value.dtype.size))  # NumPy's, TensorFlow's
