"""How the blocks become operators, per kind of engine: one contract, one module per lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgespec.errors import ConfigError
from edgespec_export.lowerings.base import Lowering


def get_lowering(name: str) -> Lowering:
    """The lowering of that name. Raises ConfigError listing what there is."""
    from edgespec_export.lowerings.native import NativeLowering
    from edgespec_export.lowerings.ort import OrtLowering

    known: Mapping[str, Callable[[], Lowering]] = {"ort": OrtLowering, "native": NativeLowering}
    if name not in known:
        raise ConfigError(f"unknown lowering '{name}'; there are: {', '.join(known)}")
    return known[name]()


__all__ = ["Lowering", "get_lowering"]
