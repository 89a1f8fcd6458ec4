"""How the blocks become operators, per kind of engine: one contract, one module per lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec_export.lowerings.base import Lowering
from edgespec_export.precision import KNOWN, Precision


def get_lowering(flavour: Flavour) -> Lowering:
    """The lowering of that flavour. Raises ConfigError listing what there is."""
    from edgespec_export.lowerings.cuda import CudaLowering
    from edgespec_export.lowerings.native import NativeLowering
    from edgespec_export.lowerings.ort import OrtLowering
    from edgespec_export.lowerings.portable import PortableLowering

    flavour.check()
    precision = KNOWN[flavour.precision]
    built = {"ort": ("fp32", "fp16", "bf16"), "cuda": ("fp16", "bf16")}
    if precision.name not in built.get(flavour.lowering, (precision.name,)):
        raise ConfigError(
            f"flavour '{flavour}' is not built: lowering '{flavour.lowering}' has "
            f"{', '.join(built[flavour.lowering])}; use native:{precision.name}"
        )
    known: Mapping[str, Callable[[Precision], Lowering]] = {
        "ort": OrtLowering,
        "cuda": CudaLowering,
        "native": NativeLowering,
        "portable": PortableLowering,
    }
    return known[flavour.lowering](precision)


__all__ = ["Lowering", "get_lowering"]
