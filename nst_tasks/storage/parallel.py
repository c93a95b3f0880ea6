"""Map a function over items on several threads, with errors as values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nst_tasks.errors import NstError

R = TypeVar("R")
T = TypeVar("T")


FAST_READ_SECONDS = 0.001
"""Average time per local file up to which `map_parallel` reads files one after the other."""


SEQUENTIAL_GRACE_SECONDS = 0.05
"""Extra time that `map_parallel` allows for slow local files before it starts threads."""


def map_parallel(function: Callable[[T], R], items: Iterable[T], threads: int, local: bool = False) -> list[R | NstError]:
    """Apply a function to each item on a thread pool, and return the results in order, an `NstError` in place of a result.

    Args:
        function: The function to apply; an `NstError` that it raises becomes the item's result.
        items: Its arguments.
        threads: The largest number of threads.
        local: Whether the items are files on this machine. They are then read in the calling thread as long as each takes
            less than `FAST_READ_SECONDS` on average: a file in the page cache is read faster than Python switches threads.
    """

    def attempt(item: T) -> R | NstError:
        try:
            return function(item)
        except NstError as error:
            return error

    items = list(items)
    if min(threads, len(items)) < 2:
        return [attempt(item) for item in items]
    results = list[R | NstError]()
    if local:
        started_at = time.perf_counter()
        while len(results) < len(
            items
        ) and time.perf_counter() - started_at < SEQUENTIAL_GRACE_SECONDS + FAST_READ_SECONDS * len(results):
            results.append(attempt(items[len(results)]))
    remaining = items[len(results) :]
    # in chunks: passing one item to a thread takes as long as reading a small local file
    chunk_size = max(1, min(64, len(remaining) // (4 * threads)))
    chunks = [remaining[first : first + chunk_size] for first in range(0, len(remaining), chunk_size)]
    with ThreadPoolExecutor(max_workers=threads) as pool:
        return results + [result for part in pool.map(lambda part: [*map(attempt, part)], chunks) for result in part]
