"""Waiting for what comes to be by itself, however slow the machine."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 120.0
POLL_S = 0.01


def eventually(holds: Callable[[], bool]) -> None:
    """Returns as soon as it does."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(POLL_S)
