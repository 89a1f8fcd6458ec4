"""How the blocks become operators, per kind of engine: one contract, one module per lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec_export.lowerings.base import Lowering


def get_lowering(flavour: Flavour) -> Lowering:
    """The lowering of that flavour. Raises ConfigError listing what there is."""
    from edgespec_export.lowerings.native import NativeLowering
    from edgespec_export.lowerings.ort import OrtLowering

    flavour.check()
    known: Mapping[str, Callable[[], Lowering]] = {"ort": OrtLowering, "native": NativeLowering}
    if flavour.lowering not in known or flavour.precision != "fp32":
        raise ConfigError(f"flavour '{flavour}' is not built yet")
    return known[flavour.lowering]()


__all__ = ["Lowering", "get_lowering"]
