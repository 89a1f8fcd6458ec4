"""Which ways of drafting the bundles at hand offer, and which of them are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgespec.bundle import read_bundle
from edgespec.errors import ConfigError, InputError
from edgespec_runtime.bench.data import unknown
from edgespec_runtime.engines.choice import chosen

NGRAM = "ngram"
SUFFIX = "+ngram"


@dataclass(frozen=True)
class Method:
    """One way of decoding: its name in reports, and what ``Model.stream`` calls it."""

    name: str
    draft: str
    compressor: str
    """Of the draft's visual tokens; "none" where nothing drafts from a picture."""


PLAIN = Method("plain", "none", "none")


@dataclass(frozen=True)
class Source:
    """A bundle that has not been loaded yet."""

    path: Path
    name: str
    """What reports call it: the directory's name, or its path where two have the same name."""
    variant: str | None
    """What kind of draft it holds, None without one."""
    compressor: str
    target: tuple[str, ...]
    """What plain decoding runs there: fingerprint, precision, lowering."""

    @property
    def methods(self) -> tuple[Method, ...]:
        """All that it offers, its own draft first."""
        ngram = Method(NGRAM, NGRAM, "none")
        if self.variant is None:
            return (ngram,)
        own = Method(self.variant, "model", self.compressor)
        both = Method(self.variant + SUFFIX, "model+ngram", self.compressor)
        return (own, both, ngram)


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """What the manifests say. Raises BundleError, and InputError for a bundle given twice."""
    real = [path.expanduser().resolve() for path in paths]
    for index, path in enumerate(real):
        if path in real[:index]:
            raise InputError(f"bundle '{paths[index]}' was given twice")
    names = [path.name for path in real]
    return [
        _source(path, name if names.count(name) == 1 else str(path))
        for path, name in zip(paths, names, strict=True)
    ]


def _source(path: Path, name: str) -> Source:
    # Hashes are checked when it is loaded; what is filtered out is not read at all.
    manifest = chosen(read_bundle(path, check_hashes=False)).manifest
    target = manifest.graph("target")
    engine = (target.precision, target.lowering) if target else ()
    fingerprint = manifest.models["target"].fingerprint
    return Source(path, name, manifest.variant, manifest.draft_compressor, (fingerprint, *engine))


Plan = list[tuple[Source, tuple[Method, ...]]]


def plan(sources: Sequence[Source], names: Sequence[str] = ()) -> Plan:
    """Which methods to run on which bundle; bundles without any are left out.

    Without ``names`` every bundle's own draft is meant. "ngram" needs the target alone, so it runs
    once per target, on the first bundle that holds it. Raises ConfigError for an unknown name, and
    where nothing is left to run.
    """
    known = dict.fromkeys(method.name for source in sources for method in source.methods)
    for name in names:
        if name not in known:
            raise ConfigError(unknown("method", name, known))
    wanted = set(names) or {source.variant for source in sources} - {None}
    chosen: Plan = []
    matched: set[tuple[str, ...]] = set()
    for source in sources:
        methods = [method for method in source.methods if method.name in wanted]
        if source.target in matched:
            methods = [method for method in methods if method.name != NGRAM]
        if any(method.name == NGRAM for method in methods):
            matched.add(source.target)
        if methods:
            chosen.append((source, tuple(methods)))
    if not chosen:
        raise ConfigError(
            "no bundle given holds a draft, so there is nothing to compare with plain decoding; "
            "export with --draft, or ask for --method ngram"
        )
    return chosen
