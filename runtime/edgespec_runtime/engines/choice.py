"""Which flavour of a bundle an engine runs."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.bundle import Bundle
from edgespec.flavour import LOWERINGS, Flavour


@dataclass(frozen=True)
class Choice:
    """An engine, the flavour it is to run, and why that one."""

    engine: str
    flavour: Flavour
    why: str


def choose(bundle: Bundle, engine: str = "ort") -> Choice:
    """The flavour of ``bundle`` that ``engine`` runs best: ONNX Runtime's own operators before
    standard ones, float32 before anything else; of equals the one exported first."""

    def rank(flavour: Flavour) -> tuple[bool, int]:
        return flavour.precision != "fp32", LOWERINGS.index(flavour.lowering)

    flavours = bundle.manifest.flavours
    best = min(flavours, key=rank)
    why = f"the best of {', '.join(map(str, flavours))} on a CPU" if len(flavours) > 1 else "alone"
    return Choice(engine, best, why)


def chosen(bundle: Bundle, engine: str = "ort") -> Bundle:
    """``bundle`` with the graphs that ``engine`` is to run, and no others."""
    if len(bundle.manifest.flavours) < 2:
        return bundle
    return bundle.only(choose(bundle, engine).flavour)
