"""A target that computes nothing, for bundles that hold none: the device's own part of rounds whose
target is a server's. What it would take is asked of the server (``elsewhere``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import Bundle, GraphSpec, Manifest, TensorSpec
from edgespec.errors import EngineError
from edgespec_runtime.engines import Engine
from edgespec_runtime.engines.base import Array, StepPool
from edgespec_runtime.kv import Cache, CacheShape, KVCache
from edgespec_runtime.model import Model

Floats = npt.NDArray[np.float32]


def model_to_measure(bundle: Bundle, engine: Engine) -> Model:
    """The bundle's model, with a hollow target where it holds none."""
    if bundle.manifest.graph("target") is not None:
        return Model(bundle, engine)
    target = hollow_target(bundle.manifest)
    return Model(bundle, engine, stand_in=(target, target.table))


def hollow_target(manifest: Manifest) -> HollowGraph:
    """In place of the target of a bundle that has a draft alone."""
    draft = manifest.graph("draft")
    assert draft is not None, "a bundle without a draft has nothing to measure"
    meta = {
        "layers": 1,
        "kv_heads": 1,
        "head_dim": 1,
        "hidden": 1,
        "mask_span": "total",
        "vocab": int(manifest.text["vocab_size"]),
        "max_positions": int(manifest.text["max_positions"]),
        "tree_rows": int(draft.meta["tree_rows"]),
    }
    width = _feature_width(manifest, draft)
    outputs = (TensorSpec("hidden", "float32", ("B", "S", width)),) if width else ()
    spec = GraphSpec("target", "", draft.lowering, draft.precision, (), outputs, meta)
    return HollowGraph(spec, width)


def _feature_width(manifest: Manifest, draft: GraphSpec) -> int:
    """Of the target's features as the draft takes them, 0 where it takes none."""
    encoder = manifest.graph("draft_features")
    inputs = encoder.inputs if encoder else draft.inputs
    name = "features" if encoder else "hidden"
    return next((int(t.axes[-1]) for t in inputs if t.name == name), 0)


class HollowGraph:
    """Its sessions answer at once."""

    def __init__(self, spec: GraphSpec, features: int) -> None:
        self.spec = spec
        self._width = features

    @property
    def table(self) -> Floats:
        """A token table [V, 1] for it."""
        return np.zeros((int(self.spec.meta["vocab"]), 1), dtype=np.float32)

    def open(
        self,
        capacity: int,
        outputs: tuple[str, ...] = ("logits",),
        cache: Cache | None = None,
    ) -> HollowSession:
        width = self._width if "hidden" in outputs else 0
        fresh = cache or KVCache(CacheShape(1, 1, 1), capacity)
        return HollowSession(fresh, int(self.spec.meta["vocab"]), width)

    def open_pool(self, *given: Any, **named: Any) -> StepPool:
        """Nobody serves a target that is not there."""
        raise EngineError("a bundle without a target serves nobody")


class HollowSession:
    """See ``StepSession``."""

    engine_s = 0.0

    def __init__(self, cache: Cache, vocab: int, features: int) -> None:
        self.cache = cache
        self._vocab, self._features = vocab, features

    def step(
        self,
        embeds: Floats,
        positions: Sequence[int] | npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        last_only: bool = False,
        *,
        hidden: Floats | None = None,
        offset: Floats | None = None,
        noise: Floats | None = None,
    ) -> list[Array]:
        rows = len(embeds)
        self.cache.pending += rows
        logits = np.zeros((1 if last_only else rows, self._vocab), dtype=np.float32)
        if not self._features:
            return [logits]
        return [logits, np.zeros((rows, self._features), dtype=np.float32)]

    def set_temperature(self, temperature: float) -> None:
        """It draws nothing."""
