"""A flavour: one lowering of a bundle's graphs in one precision, as ``native:fp16``."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.errors import ConfigError

LOWERINGS = ("ort", "cuda", "native", "portable")
"""Which operators: ONNX Runtime's own, for its CPU or its CUDA provider; opset 24 (TensorRT from
10.15); opset 20 (TensorRT 10.3)."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
"""What weights are stored in; int8 and int4 ones are multiplied in fp16."""
DRAFTS = {"int4": "int8"}
"""Precisions of drafts that are not their target's: a draft is small, and what int4 takes from it
is paid in tokens that are not accepted. (TensorRT-RTX 1.7 also crashes over chains of int4.)"""


@dataclass(frozen=True)
class Flavour:
    """A lowering in a precision; ``str()`` spells it as command lines do."""

    lowering: str
    precision: str = "fp32"

    @classmethod
    def parse(cls, text: str, precision: str = "fp32") -> Flavour:
        """``NAME[:PRECISION]``; ``precision`` is what one without gets. Raises ConfigError for
        names that do not exist."""
        lowering, colon, own = text.partition(":")
        found = cls(lowering, own if colon else precision)
        found.check()
        return found

    def check(self) -> None:
        """Raises ConfigError where the lowering or the precision does not exist."""
        for kind, name, known in (
            ("lowering", self.lowering, LOWERINGS),
            ("precision", self.precision, PRECISIONS),
        ):
            if name not in known:
                raise ConfigError(f"unknown {kind} '{name}'; there are: {', '.join(known)}")

    @property
    def drafts(self) -> Flavour:
        """What the draft beside a target of this flavour is exported in."""
        return Flavour(self.lowering, DRAFTS.get(self.precision, self.precision))

    @property
    def label(self) -> str:
        """As file names spell it: ``native-fp16``."""
        return f"{self.lowering}-{self.precision}"

    def __str__(self) -> str:
        return f"{self.lowering}:{self.precision}"
