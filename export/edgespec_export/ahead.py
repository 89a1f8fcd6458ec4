"""Work that is done while other work waits for the disk: reading weights, hashing them. numpy and
hashlib let other threads run meanwhile, so a machine with several cores exports that much faster.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
HELD_BYTES = 1 << 30
"""Of results that nobody has taken yet; one result alone may be larger."""
THREADS = 8
"""At most: more of them only wait for the one that writes."""


def in_order(
    jobs: Iterable[tuple[int, Callable[[], T]]], held: int = HELD_BYTES
) -> Generator[T, None, None]:
    """Results of ``jobs``, each given with the bytes of its result, in their order. Some are begun
    before they are asked for, as long as what waits is no more than ``held`` bytes."""
    waiting: deque[tuple[int, Future[T]]] = deque()
    total = 0
    with ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)))) as pool:
        for size, job in jobs:
            while waiting and total + size > held:
                total -= waiting[0][0]
                yield waiting.popleft()[1].result()
            waiting.append((size, pool.submit(job)))
            total += size
        while waiting:
            yield waiting.popleft()[1].result()


def begun(job: Callable[[], T]) -> Callable[[], T]:
    """Begins ``job``; what is returned waits for its result, or raises what it raised. Nobody
    waits for it where the result is never asked for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as error:  # handed to whoever asks
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result
