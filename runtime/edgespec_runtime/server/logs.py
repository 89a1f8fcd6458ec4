"""What a server says: one JSON object a line, and never a word of what users said or got.

Only the keys below are ever written, so a prompt, a token or a picture cannot slip in; values are
numbers or short strings, and JSON's escapes keep every entry on its line.
"""

from __future__ import annotations

import hashlib
import io
import logging
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import FilteringBoundLogger

KEYS = frozenset(
    {
        "event", "level", "timestamp", "tenant", "session", "method", "reason", "round", "nodes",
        "accepted", "prompt_tokens", "pictures", "bytes", "reused_rows", "queue_ms", "compute_ms",
        "total_ms", "sessions", "listening", "metrics", "target", "error", "where", "logger",
        "message", "grace_s", "replayed", "tokens",
    }
)  # fmt: skip
LONGEST = 300
LEVELS = ("debug", "info", "warning")


def open_log(stream: TextIO, level: str = "info") -> FilteringBoundLogger:
    """A logger of its own, as JSON lines to ``stream``."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _redact,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        cache_logger_on_first_use=False,
    )
    return logger


def session_label(session_id: bytes) -> str:
    """A session in the log: enough to follow it, useless for asking for it."""
    return hashlib.blake2b(session_id, digest_size=4).hexdigest()


def where(error: BaseException) -> str:
    """Where an unexpected exception came from; its text may hold what must not be logged."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )


class Relay(logging.Handler):
    """Brings what libraries log (warnings and worse) into the server's own lines."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._log.warning(
            "library",
            logger=record.name,
            message=str(record.msg),  # the pattern alone: its arguments may be anything
            error=type(error).__name__ if error else "",
            where=where(error) if error else "",
        )


class Lines(io.TextIOBase):
    """A stream whose every line becomes an entry: for libraries that print."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._log.warning("library", message=line)
        return len(text)


def _redact(logger: Any, name: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _short(value) for key, value in entry.items() if key in KEYS}


def _short(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float)) else str(value)[:LONGEST]
