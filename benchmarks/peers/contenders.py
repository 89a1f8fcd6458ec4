"""Who takes part: a peer, at one precision, in one mode of decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class Peer:
    """What one peer can do."""

    name: str
    """As ``versions.yaml`` names its environment."""
    precisions: tuple[str, ...]
    modes: tuple[str, ...] = ("plain",)
    converts: bool = True
    """Whether checkpoints must be brought into a form of its own."""
    blind: str = ""
    """Why it takes no LLaVA; empty where it does,"""
    blind_draft: str = ""
    """and the same of a LLaVA with a draft."""

    @property
    def script(self) -> Path:
        return WORKERS / f"run_{self.name.replace('-', '_').replace('.', '_')}.py"


PEERS = (
    Peer("edgespec", ("fp32", "int8", "int8,block=64", "int4"), ("plain", "lookup", "draft")),
    Peer("transformers", ("fp32", "bf16"), ("plain", "lookup", "draft"), converts=False),
    Peer(
        "onnxruntime-genai",
        ("fp32", "int8", "int4"),
        ("plain", "lookup", "draft"),
        blind="its model builder knows no LLaVA",
    ),
    Peer(
        "openvino-genai",
        ("fp32", "int8", "int4"),
        ("plain", "lookup", "draft"),
        blind_draft="its drafts are text models, which see no picture",
    ),
    Peer(
        "llama.cpp",
        ("fp32", "fp16", "int8", "int4"),
        ("plain", "lookup"),
        blind="its binding is built without pictures here, and no package converts a vision tower",
    ),
    Peer("ctranslate2", ("fp32", "int8"), blind="its converter knows no LLaVA"),
)


@dataclass(frozen=True)
class Contender:
    """One line of the table."""

    peer: Peer
    precision: str
    mode: str

    @property
    def label(self) -> str:
        """``peer:precision:mode``, which ``--only`` matches."""
        return f"{self.peer.name}:{self.precision}:{self.mode}"

    @property
    def blind(self) -> str:
        """Why it answers no questions about pictures; empty where it does."""
        return self.peer.blind or (self.peer.blind_draft if self.mode == "draft" else "")


def contenders(only: Sequence[str], *, draft: bool, pictures: bool = False) -> Iterator[Contender]:
    """All of them, or those that a pattern names by the beginning of their label; with
    ``pictures`` those that see."""
    for contender in _all(only, draft):
        if not (pictures and contender.blind):
            yield contender


def left_out(only: Sequence[str], *, draft: bool) -> dict[str, str]:
    """Why those take no part that do not see: by the peer, or by its draft mode alone."""
    reasons: dict[str, str] = {}
    for contender in _all(only, draft):
        if contender.blind:
            name = contender.peer.name
            reasons[name if contender.peer.blind else f"{name}:*:draft"] = contender.blind
    return reasons


def _all(only: Sequence[str], draft: bool) -> Iterator[Contender]:
    for peer in PEERS:
        for precision in peer.precisions:
            for mode in peer.modes:
                contender = Contender(peer, precision, mode)
                wanted = not only or any(fnmatch(contender.label, f"{p}*") for p in only)
                if wanted and (draft or mode != "draft"):
                    yield contender
