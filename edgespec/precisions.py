"""What each part of a bundle is stored in: ``target=int4,draft=int8,vision=fp16,head=int8``."""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgespec.errors import ConfigError
from edgespec.flavour import PRECISIONS

BLOCKS = (32, 64, 128)
"""Inputs that may share a scale."""
ALLOWED = {
    "target": PRECISIONS,
    "draft": PRECISIONS,
    "vision": ("fp32", "fp16", "bf16"),
    "head": ("fp32", "fp16", "int8", "int4"),
    "embedding": ("fp32", "fp16", "int8"),
    "block": tuple(map(str, BLOCKS)),
}


@dataclass(frozen=True)
class Precisions:
    """Precisions by part; an empty one is what suits the target's."""

    target: str = "fp32"
    """Of the layers of flavours that name none."""
    draft: str = ""
    """Of the draft's layers, in all flavours."""
    vision: str = ""
    """Of the target's tower and projector."""
    head: str = ""
    """Of the output heads of target and draft."""
    embedding: str = "fp32"
    """Of the token tables; their rows are float32 again once looked up."""
    block: str = ""
    """Inputs that share a scale, in int4 and, where it is asked for, in int8."""

    @classmethod
    def parse(cls, text: str) -> Precisions:
        """``PART=PRECISION,...``; a precision by itself, which comes first, is the target's. Raises
        ConfigError for a part or a precision that does not exist."""
        if "=" not in text.partition(",")[0]:
            text = f"target={text}"
        found: dict[str, str] = {}
        for pair in text.split(","):
            part, equals, value = (word.strip() for word in pair.partition("="))
            if not equals or part not in ALLOWED:
                raise ConfigError(
                    f"--precision: '{pair.strip()}' names no part; write PART=PRECISION, where "
                    f"parts are: {', '.join(ALLOWED)}"
                )
            if part in found:
                raise ConfigError(f"--precision names '{part}' twice; give it once")
            if value not in ALLOWED[part]:
                kind = "block" if part == "block" else "precision"
                raise ConfigError(
                    f"--precision: unknown {kind} '{value}' of {part}; there are: "
                    f"{', '.join(ALLOWED[part])}"
                )
            found[part] = value
        return cls(**found)

    def __str__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return ",".join(f"{part}={value}" for part, value in given.items() if value)
