"""Every exported graph against the torch original, as transformers runs it.

The inputs are random, the tolerance is relative to the values. A step graph is checked end to end:
a prompt with the image's visual tokens inside, and below it a random tree, each node of which must
get the logits of a plain forward over its path.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError, MissingDependencyError
from edgespec.tree import TokenTree
from edgespec_export.geometry import LlavaGeometry
from edgespec_runtime.engines import Engine, StepSession, open_engine
from edgespec_runtime.prefill import causal_mask, prefill

if TYPE_CHECKING:
    from edgespec_export.exporter import Model, Plan

Floats = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Largest difference allowed, as a part of the largest value."""
NODES = 8
TEXT = 6  # tokens before the image, and after it


def parity_libraries() -> tuple[Any, Any]:
    """(torch, transformers). Raises MissingDependencyError naming the one that is not there."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "--parity", "train") from None
    return torch, transformers


def require_parity() -> None:
    """Raises MissingDependencyError before anything is written, not after it all."""
    parity_libraries()
    open_engine("ort")


def check_parity(plan: Plan, specs: list[GraphSpec], folder: Path) -> dict[str, Any]:
    """The largest difference of every graph in ``folder`` from its original, by role.

    Raises EngineError naming the graph and the figures where it is above the tolerance.
    """
    graphs = _Graphs(open_engine("ort"), {spec.role: spec for spec in specs}, folder)
    report = dict(_check_model(graphs, plan.target, "target", "vision", "projector"))
    if plan.draft:
        vision = "vision" if plan.shared_vision else "draft_vision"
        report |= _check_model(graphs, plan.draft, "draft", vision, "draft_projector")
    if plan.compressor:
        report["compressor"] = _check_pooling(graphs, plan.compressor.side)
    return {spec.role: report[spec.role] for spec in specs}


class _Graphs:
    """The written graphs, opened when asked for."""

    def __init__(self, engine: Engine, specs: dict[str, GraphSpec], folder: Path) -> None:
        self.specs = specs
        self._engine = engine
        self._folder = folder

    def run(self, role: str, value: Floats) -> Floats:
        spec = self.specs[role]
        (output,) = self._engine.load(spec, self._folder).run({spec.inputs[0].name: value}).values()
        return output

    def table(self, role: str) -> Floats:
        table: Floats = np.load(self._folder / f"{role}.embed.npy", mmap_mode="r")
        return table

    def session(self, role: str, rows: int) -> StepSession:
        names = {output.name for output in self.specs[role].outputs}
        wanted = ("logits", *(n for n in ("topk_logprobs", "topk_ids") if n in names))
        return self._engine.load_step(self.specs[role], self._folder).open(rows, wanted)

    def chain(self, session: StepSession) -> StepSession:
        """The draft's chain graph on the cache of a session of its step graph."""
        graph = self._engine.load_step(self.specs["draft_chain"], self._folder)
        return graph.open(0, ("topk_logprobs", "topk_ids"), session.cache)


class _Original:
    """One checkpoint in torch, float32."""

    def __init__(self, model: Model) -> None:
        self.torch, self.transformers = parity_libraries()
        loader = self.transformers.LlavaForConditionalGeneration
        self._model = loader.from_pretrained(model.checkpoint.path, dtype=self.torch.float32).eval()
        self._core = getattr(self._model, "model", self._model)
        self._geometry = model.geometry

    @property
    def against(self) -> str:
        return f"torch {self.torch.__version__}, transformers {self.transformers.__version__}"

    def features(self, pixels: Floats) -> Floats:
        with self.torch.no_grad():
            states = self._core.vision_tower(
                self.torch.from_numpy(pixels), output_hidden_states=True
            ).hidden_states
        chosen = [states[i] for i in self._geometry.feature_layers]
        joined = self.torch.cat(chosen, dim=-1)[:, int(self._geometry.drop_class_token) :]
        return _floats(joined)

    def project(self, features: Floats) -> Floats:
        with self.torch.no_grad():
            return _floats(self._core.multi_modal_projector(self.torch.from_numpy(features)))

    def logits(self, ids: list[int], pixels: Floats | None) -> Floats:
        """[len(ids), V] of a plain forward."""
        image = None if pixels is None else self.torch.from_numpy(pixels)
        with self.torch.no_grad():
            output = self._model(
                input_ids=self.torch.tensor([ids]), pixel_values=image, use_cache=False
            )
        return _floats(output.logits[0])


def _check_model(
    graphs: _Graphs, model: Model, role: str, vision: str, projector: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (role, figures) for one model's tower, projector and decoder."""
    rng = np.random.default_rng(0)
    original = _Original(model)
    side = model.geometry.vision.image_size
    pixels = rng.standard_normal((2, 3, side, side), dtype=np.float32)
    features = original.features(pixels)
    found = graphs.run(vision, pixels)
    yield vision, _compared(vision, found, features, original.against)
    embeds = original.project(features)
    found = graphs.run(projector, features)
    yield projector, _compared(projector, found, embeds, original.against)
    yield role, _check_step(graphs, model.geometry, original, role, pixels[:1], found[0], rng)
    if role == "draft" and "draft_chain" in graphs.specs:
        yield "draft_chain", _check_chain(graphs, model.geometry, original, rng)
    del original
    gc.collect()


def _check_step(
    graphs: _Graphs,
    geometry: LlavaGeometry,
    original: _Original,
    role: str,
    pixels: Floats,
    visual: Floats,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Prompt and tree through the step graph; every node against a forward over its path."""
    tree = _random_tree(geometry, rng)
    room = geometry.text.max_positions - max(tree.depths)
    image = len(visual) + 2 * TEXT <= room
    text = _text_ids(geometry, min(2 * TEXT, room), rng)
    middle = [geometry.image_token_id] * len(visual) if image else []
    prompt = [*text[:TEXT], *middle, *text[TEXT:]]
    table = graphs.table(role)
    parts = [table[text[:TEXT]], *([visual] if image else []), table[text[TEXT:]]]
    session = graphs.session(role, len(prompt) + len(tree))
    # Row 0 of a tree is the last committed token, whose logits are still wanted.
    prefill(session, np.concatenate(parts)[:-1])
    committed = session.cache.length
    positions = committed + np.array([0, *tree.depths])
    seen = np.ones((len(tree) + 1, committed), dtype=np.bool_)
    outputs = session.step(
        table[[text[-1], *tree.tokens]], positions, np.concatenate([seen, tree.mask()], axis=1)
    )
    wanted = np.empty_like(outputs[0])
    for leaf in set(range(len(tree) + 1)) - set(tree.parents):
        rows = _rows_to(tree, leaf)
        plain = original.logits([*prompt, *tree.path(leaf)], pixels if image else None)
        wanted[rows] = plain[committed : committed + len(rows)]
    figures = _compared(role, outputs[0], wanted, original.against)
    figures["argmax_equal"] = bool(np.array_equal(outputs[0].argmax(-1), wanted.argmax(-1)))
    if len(outputs) == 3:
        figures["topk"] = _check_top_k(role, outputs[1], outputs[2], wanted, original.against)
    return figures


def _check_chain(
    graphs: _Graphs, geometry: LlavaGeometry, original: _Original, rng: np.random.Generator
) -> dict[str, Any]:
    """The chain graph along its own best tokens; every step against a forward over its path."""
    steps = int(graphs.specs["draft_chain"].meta["steps"])
    text = _text_ids(geometry, max(1, min(TEXT, geometry.text.max_positions - steps)), rng)
    table = graphs.table("draft")
    session = graphs.session("draft", len(text) + steps)
    if len(text) > 1:
        prefill(session, table[text[:-1]])
    committed = session.cache.length
    chain = graphs.chain(session)
    logprobs, ids = chain.step(table[[text[-1]]], [committed], causal_mask(committed, 1))
    wanted = original.logits([*text, *ids[:-1, 0].tolist()], None)[committed:]
    return _check_top_k("draft_chain", logprobs, ids, wanted, original.against)


def _check_top_k(
    role: str, logprobs: Floats, ids: npt.NDArray[np.int64], logits: Floats, against: str
) -> dict[str, Any]:
    """The candidates' values must be the highest, and their ids those that have these values."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    all_logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    best = -np.sort(-all_logprobs, axis=-1)[:, : ids.shape[1]]
    figures = _compared(f"{role}: topk_logprobs", logprobs, best, against)
    theirs = np.take_along_axis(all_logprobs, ids, axis=-1)
    _compared(f"{role}: topk_ids", logprobs, theirs, against)
    if any(len(set(row)) != len(row) for row in ids.tolist()):
        raise EngineError(f"parity: graph '{role}' gives a candidate twice in one node's top-k")
    return figures


def _check_pooling(graphs: _Graphs, side: int) -> dict[str, Any]:
    torch, _ = parity_libraries()
    tokens, width = (int(axis) for axis in graphs.specs["compressor"].inputs[0].axes[1:])
    embeds = np.random.default_rng(0).standard_normal((2, tokens, width), dtype=np.float32)
    wanted = pooled(embeds, side)
    return _compared(
        "compressor", graphs.run("compressor", embeds), wanted, f"torch {torch.__version__}"
    )


def pooled(embeds: Floats, side: int) -> Floats:
    """[N, grid^2, H] averaged over side x side windows by torch."""
    torch, _ = parity_libraries()
    count, tokens, width = embeds.shape
    grid = round(tokens**0.5)
    image = torch.from_numpy(embeds).reshape(count, grid, grid, width).permute(0, 3, 1, 2)
    small = torch.nn.functional.avg_pool2d(image, side, ceil_mode=True)
    return _floats(small.flatten(2).transpose(1, 2))


def _compared(graph: str, found: Any, wanted: Any, against: str) -> dict[str, Any]:
    if found.shape != wanted.shape:
        raise EngineError(f"parity: graph '{graph}' gives {found.shape}, {against} {wanted.shape}")
    difference = float(np.abs(found.astype(np.float64) - wanted).max())
    scale = float(np.abs(wanted).max())
    if not difference <= TOLERANCE * scale:
        raise EngineError(
            f"parity: graph '{graph}' differs by up to {difference:.3g} from {against}, on values "
            f"up to {scale:.3g} (allowed is {TOLERANCE:g} of that); no bundle was written"
        )
    return {"max_abs_diff": difference, "max_abs_value": scale, "against": against}


def _random_tree(geometry: LlavaGeometry, rng: np.random.Generator) -> TokenTree:
    tokens = dict.fromkeys(_text_ids(geometry, NODES, rng))  # no sibling twice
    parents = [int(rng.integers(0, row)) for row in range(1, len(tokens) + 1)]
    return TokenTree.build(list(tokens), parents)


def _rows_to(tree: TokenTree, leaf: int) -> list[int]:
    """Rows from the root down to ``leaf``."""
    rows = [leaf]
    while rows[-1]:
        rows.append(tree.parents[rows[-1] - 1])
    return rows[::-1]


def _text_ids(geometry: LlavaGeometry, count: int, rng: np.random.Generator) -> list[int]:
    """Random ids other than the image token's."""
    ids = rng.integers(0, geometry.text.vocab - 1, size=count)
    return [int(i) + int(i >= geometry.image_token_id) for i in ids]


def _floats(tensor: Any) -> Floats:
    array: Floats = tensor.float().contiguous().numpy()
    return array
