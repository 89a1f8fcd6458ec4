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

    @property
    def script(self) -> Path:
        return WORKERS / f"run_{self.name.replace('-', '_').replace('.', '_')}.py"


PEERS = (
    Peer("edgespec", ("fp32", "int8", "int8,block=64", "int4"), ("plain", "lookup", "draft")),
    Peer("transformers", ("fp32", "bf16"), ("plain", "lookup", "draft"), converts=False),
    Peer("onnxruntime-genai", ("fp32", "int8", "int4"), ("plain", "lookup", "draft")),
    Peer("openvino-genai", ("fp32", "int8", "int4"), ("plain", "lookup", "draft")),
    Peer("llama.cpp", ("fp32", "fp16", "int8", "int4"), ("plain", "lookup")),
    Peer("ctranslate2", ("fp32", "int8")),
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


def contenders(only: Sequence[str], *, draft: bool) -> Iterator[Contender]:
    """All of them, or those that a pattern names by the beginning of their label."""
    for peer in PEERS:
        for precision in peer.precisions:
            for mode in peer.modes:
                contender = Contender(peer, precision, mode)
                wanted = not only or any(fnmatch(contender.label, f"{p}*") for p in only)
                if wanted and (draft or mode != "draft"):
                    yield contender
