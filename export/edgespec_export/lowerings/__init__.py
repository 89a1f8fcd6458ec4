"""How the blocks become operators, per kind of engine: one contract, one module per lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from edgespec.errors import ConfigError
from edgespec.flavour import PRECISIONS, Flavour
from edgespec.precisions import Precisions
from edgespec_export.lowerings.base import Lowering
from edgespec_export.precision import KNOWN, Moments, Precision

BUILT = {"cuda": ("fp16", "bf16", "int8", "int4")}
"""Precisions of lowerings that have not all of them."""
INTEGER = {"ort": "float32", "cuda": "float16"}
"""Lowerings whose quantised products are ONNX Runtime's own, and what the rest computes with."""


def get_lowering(
    flavour: Flavour, parts: Precisions | None = None, moments: Moments | None = None
) -> Lowering:
    """The lowering of that flavour, with the head and the block that ``parts`` name; ``moments``:
    what int4 is rounded by. Raises ConfigError listing what there is."""
    from edgespec_export.lowerings.cuda import CudaLowering
    from edgespec_export.lowerings.native import NativeLowering
    from edgespec_export.lowerings.ort import OrtLowering
    from edgespec_export.lowerings.portable import PortableLowering

    flavour.check()
    if flavour.precision not in BUILT.get(flavour.lowering, PRECISIONS):
        raise ConfigError(
            f"flavour '{flavour}' is not built: lowering '{flavour.lowering}' has "
            f"{', '.join(BUILT[flavour.lowering])}; use native:{flavour.precision}"
        )
    known: Mapping[str, Callable[[Precision], Lowering]] = {
        "ort": OrtLowering,
        "cuda": CudaLowering,
        "native": NativeLowering,
        "portable": PortableLowering,
    }
    return known[flavour.lowering](precision_of(flavour, parts or Precisions(), moments))


def precision_of(flavour: Flavour, parts: Precisions, moments: Moments | None) -> Precision:
    """What a decoder of that flavour is stored in and computes with."""
    precision = replace(
        KNOWN[flavour.precision],
        head=parts.head,
        block=int(parts.block or 0),
        moments=moments,
    )
    if flavour.lowering not in INTEGER or not (precision.bits or precision.bits_of("head")):
        return precision
    floats = INTEGER[flavour.lowering] if precision.bits else precision.floats
    # A head that is read for every token is worth rounding, but not to as little as the layers.
    head = parts.head or "int8"
    return replace(precision, floats=floats, integer=True, head=head)


def floats_of(flavour: Flavour) -> str:
    """The precision of what is not quantised beside the layers of that flavour."""
    if not KNOWN[flavour.precision].bits:
        return flavour.precision
    return "fp32" if INTEGER.get(flavour.lowering) == "float32" else "fp16"


__all__ = ["Lowering", "floats_of", "get_lowering", "precision_of"]
