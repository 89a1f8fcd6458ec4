"""A polite end of a training: the first signal lets the running step finish, a second does not."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from edgespec.signals import handlers_run_here

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers and launchers send."""
NOTICE = b"\nfinishing this step, then saving (once more: stop at once)\n"


class Interruption:
    """Within it, ``asked`` turns true at the first signal; the next one has its usual effect."""

    def __init__(self, *, quiet: bool) -> None:
        self.asked = False
        self._quiet = quiet
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if handlers_run_here():
            self._before = {s: signal.signal(s, self._ask) for s in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        if not self._quiet:
            os.write(2, NOTICE)  # print is not safe here: the loop may be inside one

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
