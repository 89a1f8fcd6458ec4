"""Opening a published head that a test has written, or seeing it refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.errors import CheckpointError
from edgespec_export.heads.layouts import OpenedHead, open_head
from edgespec_export.plan import Model
from tests.support.heads import PublishedHead


def opened(
    head: PublishedHead, folder: Path, target: Model, variant: str | None = None
) -> OpenedHead:
    return open_head(head.write(folder / "head"), target, variant)


def refused(
    head: PublishedHead, folder: Path, target: Model, *words: str, variant: str | None = None
) -> str:
    """The message of the refusal, in which every one of ``words`` occurs."""
    with pytest.raises(CheckpointError) as caught:
        opened(head, folder, target, variant)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)
