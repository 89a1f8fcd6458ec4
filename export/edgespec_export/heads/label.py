"""The ``edgespec`` key of a head's config.json: what published layouts have no place for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from edgespec.errors import CheckpointError, ConfigError
from edgespec_export.compression import Compression, parse_compression
from edgespec_export.heads.geometry import VARIANTS

KEY = "edgespec"


@dataclass(frozen=True)
class Label:
    """What a head says of itself under ``edgespec``; all of it is optional."""

    variant: str | None = None
    target_fingerprint: str | None = None
    """``Model.text_fingerprint`` of the target that it was trained for."""
    compression: Compression | None = None
    feature_layers: tuple[int, ...] = ()
    """As ``HeadGeometry.feature_layers``."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, for the reader; changes nothing."""

    def as_json(self) -> dict[str, Any]:
        """What ``read_label`` reads back as this label."""
        found: dict[str, Any] = {
            "variant": self.variant,
            "target_fingerprint": self.target_fingerprint,
            "compressor": self.compression.as_json() if self.compression else None,
            "feature_layers": list(self.feature_layers) or None,
            "notes": dict(self.notes) or None,
        }
        return {key: value for key, value in found.items() if value is not None}


def read_label(config: Mapping[str, Any], source: str) -> Label:
    """Raises CheckpointError for what is not understood, naming it."""
    value = config.get(KEY)
    if value is None:
        return Label()
    if not isinstance(value, Mapping):
        raise _odd(source, "", value, "an object")
    unknown = sorted(set(value) - set(KNOWN))
    if unknown:
        raise CheckpointError(
            f"{source}: config.json has {KEY} keys that this version does not understand: "
            f"{', '.join(unknown)}; upgrade edgespec, or export the head again"
        )
    for key, (kind, words) in KNOWN.items():
        if value.get(key) is not None and not isinstance(value[key], kind):
            raise _odd(source, f".{key}", value[key], words)
    variant = value.get("variant")
    layers = tuple(value.get("feature_layers") or ())
    if any(isinstance(i, bool) or not isinstance(i, int) for i in layers):
        raise _odd(source, ".feature_layers", list(layers), "a list of whole numbers")
    return Label(
        variant=None if variant is None else check_variant(variant, f"{source}: {KEY}.variant"),
        target_fingerprint=value.get("target_fingerprint"),
        compression=_compression(value.get("compressor"), source),
        feature_layers=layers,
        notes=value.get("notes") or {},
    )


KNOWN: Mapping[str, tuple[type, str]] = {
    "variant": (str, "a name"),
    "target_fingerprint": (str, "a fingerprint"),
    "compressor": (Mapping, "an object"),
    "feature_layers": (list, "a list"),
    "notes": (Mapping, "an object"),
}


def check_variant(name: str, where: str = "variant") -> str:
    """``name``, if there is such a variant. Raises CheckpointError that suggests a near one."""
    if name in VARIANTS:
        return name
    near = get_close_matches(name, VARIANTS, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    raise CheckpointError(f"{where} '{name}' is not known{hint} There are: {', '.join(VARIANTS)}")


def _compression(value: Any, source: str) -> Compression | None:
    if value is None:
        return None
    kind, branches = value.get("kind"), value.get("branches", [])
    listed = isinstance(branches, list) and all(isinstance(name, str) for name in branches)
    if not isinstance(kind, str) or not listed or set(value) - {"kind", "branches"}:
        raise _odd(source, ".compressor", dict(value), '{"kind": NAME, "branches": [NAME, ...]}')
    try:
        found = parse_compression(kind, tuple(branches))
    except ConfigError as error:
        raise CheckpointError(f"{source}: {KEY}.compressor: {error}") from None
    if branches and not found.branches:
        raise CheckpointError(f"{source}: {KEY}.compressor: '{kind}' has no branches")
    return found


def _odd(source: str, key: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(f"{source}: {KEY}{key} is {value!r} where {wanted} is expected")
