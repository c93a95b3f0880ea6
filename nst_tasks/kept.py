"""Values that take long to make, kept by what they depend on, as many as a bound of bytes allows."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


@dataclass
class Kept:
    """Values of at most so many bytes together, the least recently used given up first; threads may share them.

    Of two threads that ask for the same new value at once both make it; one that is larger than all of the room is not kept.
    """

    most_bytes: int
    _values: OrderedDict[Hashable, tuple[Any, int]] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of a key that says all it depends on, made at first use."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        self.keep(key, value)
        return value

    def keep(self, key: Hashable, value: Any) -> None:
        """Keep a value of which nobody needs to ask how it is made, unless there is one."""
        taken = size(value)
        with self._lock:
            if key not in self._values and taken <= self.most_bytes:
                self._values[key] = value, taken
                self._bytes += taken
                while self._bytes > self.most_bytes:
                    self._bytes -= self._values.popitem(last=False)[1][1]

    def forget(self, which: Callable[[Hashable], bool]) -> None:
        """Give up the values of such keys."""
        with self._lock:
            for key in [*filter(which, self._values)]:
                self._bytes -= self._values.pop(key)[1]

    def clear(self) -> None:
        """Give all of them up."""
        with self._lock:
            self._values.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._values)


def size(value: Any) -> int:
    """Bytes of the bytes, arrays and tensors in a value: in sequences, mappings and dataclasses, however deep."""
    if isinstance(value, bytes):
        return len(value)
    if is_dataclass(value):
        return sum(size(getattr(value, of.name)) for of in fields(value))
    if isinstance(value, Mapping):
        return sum(map(size, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(size, value))
    if not hasattr(value, "dtype"):
        return 0
    return int(math.prod(value.shape) * (getattr(value.dtype, "itemsize", 0) or value.dtype.size))  # NumPy's name, TensorFlow's
