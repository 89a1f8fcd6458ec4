"""What TensorRT says while it works, of which errors are kept."""

from __future__ import annotations

from typing import Any


def listener(module: Any) -> Any:
    """A logger of TensorRT that keeps what went wrong (``taken``)."""

    class Listener(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                self._said.append(message.strip().splitlines()[0][:300])

        def taken(self) -> list[str]:
            """Errors since the last call."""
            said, self._said = self._said, []
            return said

    return Listener()


def last_said(log: Any) -> str:
    """What a ``listener`` heard last, to end a message with."""
    said = log.taken()
    return f": {said[-1]}" if said else ""
