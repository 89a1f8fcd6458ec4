"""What TensorRT says while it works: its log, kept for error messages, and its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tell = Callable[[str, float], None]
"""Told (phase, share done of it from 0 to 1)."""

OUT_OF_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "insufficient memory")
NO_FUSED_KERNEL = "not supported by a dedicated kernel"


class Log:
    """Warnings and errors of one build, in their order."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def listener(self, module: Any) -> Any:
        """An ILogger of that TensorRT which writes into this log."""
        outer, severity = self, module.ILogger.Severity

        class Logger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, level: Any, message: str) -> None:
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    outer.errors.append(message)
                elif level == severity.WARNING:
                    outer.warnings.append(message)

        return Logger()

    def said(self, *parts: str) -> bool:
        """Whether an error holds one of ``parts``, whatever the case."""
        text = "\n".join(self.errors).lower()
        return any(part.lower() in text for part in parts)

    def last(self) -> str:
        """The last error, on one line."""
        text = self.errors[-1] if self.errors else "it says nothing more"
        return " ".join(text.split())[:600]


def progress_monitor(module: Any, tell: Tell) -> Any:
    """An IProgressMonitor of that TensorRT."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._steps[name] = max(1, steps)

        def step_complete(self, name: str, step: int) -> bool:
            tell(name, (step + 1) / self._steps.get(name, 1))
            return True  # go on

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

    return Monitor()
