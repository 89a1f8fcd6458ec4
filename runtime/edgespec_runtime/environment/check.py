"""One finding about a machine or a bundle, and the commands that help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Result = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    result: Result
    found: str
    """A sentence's worth, without a full stop."""
    commands: tuple[str, ...] = ()
    """To be typed in this order; words where no command does it. Empty if all is well."""


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warning(name: str, found: str, *commands: str) -> Check:
    """Works, but slower or less safely than it could."""
    return Check(name, "warning", found, commands)


def problem(name: str, found: str, *commands: str) -> Check:
    """Does not work, or not as asked."""
    return Check(name, "problem", found, commands)


def exit_code(checks: Iterable[Check]) -> int:
    """1 where there is a problem."""
    return int(any(check.result == "problem" for check in checks))


def as_lines(checks: Iterable[Check]) -> str:
    """For people: a line a check, its commands below it."""
    lines = []
    for check in checks:
        lines.append(f"{check.result:<9}{check.name}: {check.found}")
        lines += [f"{'':<11}{command}" for command in check.commands]
    return "\n".join(lines)
