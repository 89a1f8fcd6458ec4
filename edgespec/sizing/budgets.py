"""Latency and memory budgets: constraints on the sizing of trees."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from edgespec.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """Limits; infinite where none was asked for. Raises ConfigError for what is no limit."""

    ms_per_round: float = math.inf
    """Of drafting, verifying and bookkeeping in one round."""
    ttft_ms: float = math.inf
    """From the call to the first token."""
    p95_itl_ms: float = math.inf
    """95th percentile of the time between tokens of one answer."""
    memory_mb: float = math.inf
    """Resident memory of the process."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                flag = "--budget-" + item.name.replace("_", "-")
                raise ConfigError(f"{flag} is {value!r}; it must be a number above 0")

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return any(math.isfinite(getattr(self, item.name)) for item in fields(self))
