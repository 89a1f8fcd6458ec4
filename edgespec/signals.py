"""Signals that are heeded a little later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def handlers_run_here() -> bool:
    """Whether this is the main thread, which alone sets and runs Python's handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def heeded_behind(number: signal.Signals) -> Iterator[None]:
    """Signal ``number`` is heeded at the end of the block, so that no exception comes amid it.

    Blocking it would not do: where another thread takes it, Python runs the handler in the main
    thread all the same. In other threads, which no handler runs in, the block is as it is.
    """
    if not handlers_run_here():
        yield
        return
    came: list[int] = []
    heeded = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(number, heeded)
    if came:
        signal.raise_signal(number)
