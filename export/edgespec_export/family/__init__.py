"""The built-in family: a small LLaVA target and its draft, trained by the project itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgespec.errors import CheckpointError

if TYPE_CHECKING:
    from edgespec_export.exporter import ExportRequest


def checkpoint_path(role: str) -> Path:
    """The shipped checkpoint of "target", or of one of DRAFTS."""
    path = Path(__file__).parent / "checkpoints" / role
    if not path.is_dir():
        raise CheckpointError(f"the built-in family has no '{role}' at {path}; reinstall edgespec")
    return path


DRAFTS: tuple[tuple[str, str | None], ...] = (
    ("draft", "pool:4"),
    ("eaglevlm", None),
    ("vispec", None),
    ("specvlm", None),
)
"""The shipped drafts: checkpoint, and the compressor it was trained with if it brings none."""


def export_request(role: str, out: Path) -> ExportRequest:
    """What exports the family with the draft ``role``, as it was trained to be used; drafts keep
    to the words that the family says (``frequencies.json``)."""
    from edgespec_export.exporter import ExportRequest

    return ExportRequest(
        target=str(checkpoint_path("target")),
        out=out,
        draft=str(checkpoint_path(role)),
        compressor=dict(DRAFTS)[role],
        draft_vocab=str(Path(__file__).parent / "frequencies.json"),
    )


def sample_folder() -> Path:
    """The shipped scenes: ``in_domain.jsonl``, ``out_of_domain.jsonl`` and their pictures."""
    return Path(__file__).parent / "samples"


def sample_image() -> Path:
    """The picture that `edgespec demo` describes when it is given none."""
    pictures = sorted(sample_folder().glob("demo*"))
    if not pictures:
        raise CheckpointError(f"no sample pictures in {sample_folder()}; reinstall edgespec")
    return pictures[0]
