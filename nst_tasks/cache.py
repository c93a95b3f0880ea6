"""Thread-safe LRU cache bounded by the total size of its values in bytes."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


@dataclass
class ByteLRU:
    """Thread-safe LRU cache of at most `max_bytes` bytes.

    Two threads that request the same missing value at once both compute it. A value larger than the cache is not cached.
    """

    max_bytes: int
    _values: OrderedDict[Hashable, tuple[Any, int]] = field(default_factory=OrderedDict)
    _total_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get_or_compute(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return the value of a key, computed by `compute` if it is not cached; the key must determine the value."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = compute()
        self.add(key, value)
        return value

    def add(self, key: Hashable, value: Any) -> None:
        """Cache a value unless its key is present or the value is larger than the cache."""
        value_bytes = count_bytes(value)
        with self._lock:
            if key not in self._values and value_bytes <= self.max_bytes:
                self._values[key] = value, value_bytes
                self._total_bytes += value_bytes
                while self._total_bytes > self.max_bytes:
                    self._total_bytes -= self._values.popitem(last=False)[1][1]

    def remove_if(self, predicate: Callable[[Hashable], bool]) -> None:
        """Remove the values whose keys satisfy a predicate."""
        with self._lock:
            for key in [*filter(predicate, self._values)]:
                self._total_bytes -= self._values.pop(key)[1]

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()
            self._total_bytes = 0

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
