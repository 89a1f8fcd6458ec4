"""What `edgespec export` was asked for, and what of it contradicts itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec.precisions import Precisions

PARTS = ("whole", "device")
"""What a bundle holds: everything, or what a device needs whose target is a server's."""


@dataclass(frozen=True)
class ExportRequest:
    """Of one bundle."""

    target: str
    out: Path
    draft: str | None = None
    compressor: str | None = None
    flavours: tuple[Flavour, ...] = (Flavour("ort"),)
    overwrite: bool = False
    parity: bool = False
    draft_variant: str | None = None
    """Which rule a feature-level draft follows, where its keys do not tell ("msd")."""
    sessions: int = 0
    """Sessions that a server may verify in one call; 0: no graph for that."""
    draft_vocab: str | None = None
    """``FILE[:N]``: a frequency list, of which the draft proposes the N most frequent tokens."""
    part: str = "whole"
    configs: bool = False
    """Whether the target's configuration files are copied as well, as transformers reads them."""
    precisions: Precisions = Precisions()
    """Of drafts, towers, heads and token tables; the target's layers are the flavours'."""
    calibration: str | None = None
    """``FILE[:N]`` (``questions_of``): what int4 weights of the target are rounded by (GPTQ)."""
    quality: str | None = None
    """``FILE[:N]``: questions that quantised targets are compared with float32 on."""
    resume: bool = False
    """Whether to go on with what a killed export of the same left, and to leave as much."""

    def check(self) -> None:
        """Raises ConfigError for what cannot be asked together; opens nothing."""
        if self.part not in PARTS:
            raise ConfigError(f"part '{self.part}' is unknown; there are: {', '.join(PARTS)}")
        if self.parity and self.part != "whole":
            raise ConfigError("--parity compares a whole bundle; export one, or leave --parity out")
        if self.parity and replace(self.precisions, target="fp32", block="") != Precisions():
            raise ConfigError(
                "--parity holds all graphs of a flavour to one tolerance; leave out draft, vision, "
                "head and embedding of --precision, or --parity"
            )
        for flag, given in (
            ("compressor", self.compressor),
            ("draft-variant", self.draft_variant),
            ("draft-vocab", self.draft_vocab),
        ):
            if given and not self.draft:
                raise ConfigError(f"--{flag} is about the draft; it needs --draft")
        if self.sessions < 0 or self.sessions == 1:
            raise ConfigError(
                f"--sessions is {self.sessions}; it must be at least 2, or 0 for no such graph"
            )
        if not self.flavours:
            raise ConfigError("no flavour was asked for; give at least one --lowering")
