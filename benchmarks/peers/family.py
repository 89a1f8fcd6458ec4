"""The built-in family by name: what ``builtin`` and the names of its drafts stand for."""

from __future__ import annotations

from pathlib import Path

from edgespec_export.family import DRAFTS, checkpoint_path

BUILTIN = "builtin"


def checkpoint_of(given: Path) -> Path:
    """The directory of what ``--checkpoint`` names."""
    return target() if str(given) == BUILTIN else given.resolve()


def draft_of(given: Path | None, checkpoint: Path) -> Path | None:
    """The directory of what ``--draft`` names: for the built-in family also by the draft's name,
    or ``builtin`` for the first of them."""
    if given is None:
        return None
    names = [name for name, _ in DRAFTS]
    name = names[0] if str(given) == BUILTIN else str(given)
    if checkpoint == target() and name in names:
        return checkpoint_path(name).resolve()
    return given.resolve()


def named(folder: Path) -> str:
    """How a table calls a checkpoint."""
    return "edgespec's built-in family" if folder == target() else folder.name


def target() -> Path:
    return checkpoint_path("target").resolve()
