"""What every parity check needs: the written graphs, random trees, and one rule of comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError, MissingDependencyError
from edgespec.tree import TokenTree
from edgespec_export.geometry import ModelGeometry
from edgespec_runtime.engines import Engine, StepPool, StepSession

Floats = npt.NDArray[np.float32]

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
"""Largest difference allowed, as a part of the largest value, by precision."""
NOT_CHECKED = {
    "bf16": "not checked: ONNX Runtime has no bfloat16 on a CPU",
    "int8": "not checked: its weights are rounded to int8",
    "int4": "not checked: its weights are rounded to int4",
}
NODES = 8
INV_TEMPERATURE = 0.7
"""Of the coupled case: a draft's candidates ranked with noise."""
STEP_OUTPUTS = ("topk_logprobs", "topk_ids", "hidden", "feedback")
"""What a step graph may give beside its logits, in this order."""


def parity_libraries() -> tuple[Any, Any]:
    """(torch, transformers). Raises MissingDependencyError naming the one that is not there."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "--parity", "train") from None
    return torch, transformers


@dataclass(frozen=True)
class Against:
    """What graphs are compared with, and how far they may be from it."""

    name: str
    tolerance: float = TOLERANCES["fp32"]

    def __str__(self) -> str:
        return self.name


class Graphs:
    """The written graphs, opened when asked for."""

    def __init__(self, engine: Engine, specs: dict[str, GraphSpec], folder: Path) -> None:
        self.specs = specs
        self._engine = engine
        self._folder = folder
        self._tolerance = max(TOLERANCES[spec.precision] for spec in specs.values())

    def against(self, name: str) -> Against:
        """``name``, with the tolerance of the graphs' precision."""
        return Against(name, self._tolerance)

    def run(self, role: str, *values: Floats) -> Floats:
        """The first output, of inputs in the graph's order."""
        return next(iter(self.outputs(role, *values).values()))

    def outputs(self, role: str, *values: Floats) -> dict[str, Floats]:
        """All outputs by name."""
        spec = self.specs[role]
        names = [tensor.name for tensor in spec.inputs]
        graph = self._engine.load(spec, self._folder)
        return graph.run(dict(zip(names, values, strict=True)))

    @property
    def proposed(self) -> int:
        """How many tokens the draft may propose."""
        return int(self.specs["draft"].meta["proposed"])

    def table(self, role: str) -> Floats:
        table: Floats = np.load(self._folder / f"{role}.embed.npy", mmap_mode="r")
        return table

    def session(self, role: str, rows: int) -> StepSession:
        wanted = ("logits", *self.wanted(role))
        return self._engine.load_step(self.specs[role], self._folder).open(rows, wanted)

    def chain(self, session: StepSession) -> StepSession:
        """The draft's chain graph on the cache of a session of its step graph."""
        graph = self._engine.load_step(self.specs["draft_chain"], self._folder)
        return graph.open(0, self.wanted("draft_chain"), session.cache)

    def pool(self) -> StepPool:
        """The target's packed graph, and its step graph."""
        target, packed = self.specs["target"], self.specs["target_packed"]
        return self._engine.load_step(target, self._folder, packed).open_pool()

    def wanted(self, role: str) -> tuple[str, ...]:
        """What a step graph gives beside its logits, as its session returns it."""
        given = {output.name for output in self.specs[role].outputs}
        return tuple(name for name in STEP_OUTPUTS if name in given)


def check_top_k(
    role: str, logprobs: Floats, ids: npt.NDArray[np.int64], logits: Floats, against: Against
) -> dict[str, Any]:
    """The candidates' values must be the highest, and their ids those that have these values."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    all_logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    best = -np.sort(-all_logprobs, axis=-1)[:, : ids.shape[1]]
    figures = compared(f"{role}: topk_logprobs", logprobs, best, against)
    theirs = np.take_along_axis(all_logprobs, ids, axis=-1)
    compared(f"{role}: topk_ids", logprobs, theirs, against)
    if any(len(set(row)) != len(row) for row in ids.tolist()):
        raise EngineError(f"parity: graph '{role}' gives a candidate twice in one node's top-k")
    return figures


def plain_and_coupled(
    session: StepSession,
    shape: tuple[int, int],
    check: Callable[[Floats | None], dict[str, Any]],
) -> dict[str, Any]:
    """Figures of ``check``, which runs ``session``, and below "coupled" those with noise of
    ``shape`` [rows, V_d] at another temperature; the rows of each run are dropped."""
    figures = check(None)
    session.cache.commit(())
    session.set_temperature(1.0 / INV_TEMPERATURE)
    noise = np.random.default_rng(0).gumbel(size=shape).astype(np.float32)
    figures["coupled"] = check(noise)
    session.cache.commit(())
    return figures


def named(role: str, noise: Floats | None) -> str:
    """The graph's name in figures and errors."""
    return role if noise is None else f"{role} with noise"


def coupled(logits: Floats, ids: Sequence[int] | None, noise: Floats | None) -> Floats:
    """What a draft ranks [S, V] logits by, given ``noise`` [S, V_d] of the tokens ``ids``."""
    if noise is None:
        return logits
    scores: Floats = logits * np.float32(INV_TEMPERATURE)
    scores[:, slice(None) if ids is None else list(ids)] += noise
    return scores


def spread(logits: Floats, ids: Sequence[int] | None, vocab: int) -> Floats:
    """Logits [.., size] of the tokens ``ids`` as [.., vocab]: the others can not be proposed."""
    if ids is None:
        return logits
    whole = np.full((*logits.shape[:-1], vocab), -np.inf, dtype=np.float32)
    whole[..., list(ids)] = logits
    return whole


def compared(graph: str, found: Any, wanted: Any, against: Against) -> dict[str, Any]:
    """The figures of one comparison. Raises EngineError where it fails."""
    if found.shape != wanted.shape:
        raise EngineError(f"parity: graph '{graph}' gives {found.shape}, {against} {wanted.shape}")
    difference = float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))
    scale = float(np.abs(wanted).max(initial=0.0))
    if not difference <= against.tolerance * scale:
        raise EngineError(
            f"parity: graph '{graph}' differs by up to {difference:.3g} from {against}, on values "
            f"up to {scale:.3g} (allowed is {against.tolerance:g} of that); no bundle was written"
        )
    return {"max_abs_diff": difference, "max_abs_value": scale, "against": str(against)}


def random_tree(geometry: ModelGeometry, rng: np.random.Generator) -> TokenTree:
    """NODES random nodes."""
    tokens = dict.fromkeys(text_ids(geometry, NODES, rng))  # no sibling twice
    parents = [int(rng.integers(0, row)) for row in range(1, len(tokens) + 1)]
    return TokenTree.build(list(tokens), parents)


def rows_to(tree: TokenTree, leaf: int) -> list[int]:
    """Rows from the root down to ``leaf``."""
    rows = [leaf]
    while rows[-1]:
        rows.append(tree.parents[rows[-1] - 1])
    return rows[::-1]


def text_ids(geometry: ModelGeometry, count: int, rng: np.random.Generator) -> list[int]:
    """Random ids other than the image token's."""
    ids = rng.integers(0, geometry.text.vocab - 1, size=count)
    image = geometry.image_token_id
    return [int(i) + int(image is not None and i >= image) for i in ids]


def floats(tensor: Any) -> Floats:
    array: Floats = tensor.float().contiguous().numpy()
    return array
