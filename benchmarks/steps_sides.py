"""Who takes part in ``steps.py``: a bundle's target, transformers, and a plain read of memory.

All are clocked from outside the call that computes: embeddings, masks and caches are ready before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.errors import CheckpointError, MissingDependencyError
from edgespec.flavour import Flavour
from edgespec.sampling import Sampler, SamplingParams
from edgespec_runtime import Model
from edgespec_runtime.engines.base import StepGraph
from edgespec_runtime.engines.ort import CPU, OrtStepGraph
from edgespec_runtime.prefill import causal_mask
from edgespec_runtime.profiling.measuring.rigs import Source, open_session, verifier_over
from edgespec_runtime.verifiers.opening import names_best, target_outputs

READ_MB = 512
"""Of the array that is read: many times what processors cache."""
ATTENTION = frozenset({"GroupQueryAttention", "MultiHeadAttention", "Attention"})
PROFILED_STEPS = 5
"""Of every point, behind one that is not counted."""


@dataclass(frozen=True, order=True)
class Point:
    """A step of ``rows`` new rows behind ``context`` cached ones; the rows are a chain."""

    context: int
    rows: int


class Side(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """Engine or lowering, and precision."""

    def step(self, point: Point) -> float:
        """Milliseconds of one step; the cache is as before afterwards."""

    def first_token(self, tokens: int) -> float:
        """Milliseconds from a text prompt's ids to the token that follows, on a fresh cache."""


class Decoder:
    """A bundle's target over full caches, which are put at any context of ``points``."""

    def __init__(self, model: Model, graph: StepGraph, points: Sequence[Point]) -> None:
        spec = graph.spec
        greedy = Sampler(SamplingParams(), int(spec.meta["vocab"]))
        outputs = target_outputs(names_best(spec, greedy), features=False)
        self._source, self._table = Source(model), model.tables["target"]
        most = max(point.context for point in points)
        rows = max(point.rows for point in points)
        # Where a graph attends to its whole buffer, time depends on the buffer: one per context.
        whole = spec.meta["mask_span"] != "total"
        ends = {point.context: point.context if whole else most for point in points}
        opened = {end: graph.open(end + rows, outputs) for end in set(ends.values())}
        for session in opened.values():
            self._source.fill(session.cache)
        self._sessions = {context: opened[end] for context, end in ends.items()}

    def step(self, point: Point) -> float:
        """Milliseconds."""
        session = self._sessions[point.context]
        session.cache.length, session.cache.pending = point.context, 0
        embeds = self._table[self._source.ids(point.rows)]
        positions = np.arange(point.context, point.context + point.rows)
        mask = causal_mask(point.context, point.rows)
        started = perf_counter()
        session.step(embeds, positions, mask)
        took = perf_counter() - started
        session.cache.commit(())
        return took * 1e3


class BundleSide:
    """A bundle's target by the runtime's own sessions."""

    def __init__(self, name: str, model: Model, points: Sequence[Point]) -> None:
        self.name, self.model = name, model
        self.step = Decoder(model, model.steps["target"], points).step
        self._source = Source(model)

    def first_token(self, tokens: int) -> float:
        session = open_session(self.model, tokens + 1)
        verifier = verifier_over(self.model, session, self._source.ids(tokens))
        started = perf_counter()
        verifier.begin()
        return (perf_counter() - started) * 1e3


class TransformersSide:
    """The checkpoint in transformers: float32, its default attention, a DynamicCache.

    Raises MissingDependencyError, and CheckpointError for what is no text model or not the one that
    ``spec`` was exported from.
    """

    name = "transformers:fp32"

    def __init__(self, checkpoint: Path, spec: GraphSpec, threads: int) -> None:
        try:
            import torch
            import transformers

            from edgespec_export.family.generate import cache_argument
        except ImportError as error:
            package = error.name or "transformers"
            raise MissingDependencyError(package, "the baseline (--checkpoint)", "train") from None
        if not (checkpoint / "config.json").is_file():
            raise CheckpointError(
                f"--checkpoint {checkpoint}: there is no config.json; name a directory in Hugging "
                "Face's format"
            )
        library: Any = transformers
        library.utils.logging.disable_progress_bar()
        given = {"dtype": torch.float32, "local_files_only": True}
        try:
            opened = library.AutoModelForCausalLM.from_pretrained(checkpoint, **given)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"--checkpoint {checkpoint}: transformers opens no text model there: {reason}"
            ) from error
        theirs = (opened.config.num_hidden_layers, opened.config.hidden_size)
        ours = (int(spec.meta["layers"]), int(spec.meta["hidden"]))
        if theirs != ours:
            raise CheckpointError(
                f"--checkpoint has {theirs[0]} layers of {theirs[1]}, the bundles' target "
                f"{ours[0]} of {ours[1]}; name the checkpoint that they were exported from"
            )
        torch.set_num_threads(threads)
        self._model, self._torch, self._meta = opened.eval(), torch, spec.meta
        self._new_cache, self._cache = library.DynamicCache, library.DynamicCache()
        self._given = cache_argument(self._model)

    def step(self, point: Point) -> float:
        if self._cache.get_seq_length() != point.context:
            self._cache = self._filled(point.context)
        given = {"input_ids": self._ids(point.rows), self._given: self._cache}
        with self._torch.inference_mode():
            started = perf_counter()
            self._model(**given, use_cache=True)
            took = perf_counter() - started
            self._cache.crop(-point.rows)
        return took * 1e3

    def first_token(self, tokens: int) -> float:
        ids = self._ids(tokens)
        with self._torch.inference_mode():
            started = perf_counter()
            said = self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
            said.logits[0, -1].argmax().item()
            return (perf_counter() - started) * 1e3

    def _filled(self, context: int) -> Any:
        """A cache of ``context`` rows; every layer has memory of its own."""
        sizes = (1, int(self._meta["kv_heads"]), context, int(self._meta["head_dim"]))
        rows, cache = self._torch.randn(sizes), self._new_cache()
        with self._torch.inference_mode():
            for layer in range(int(self._meta["layers"])):
                cache.update(rows.clone(), rows.clone(), layer)
        return cache

    def _ids(self, count: int) -> Any:
        return self._torch.randint(int(self._meta["vocab"]), (1, count))


class Reader:
    """A plain read of memory: the maxima of as many parts of one large array as there are
    threads."""

    def __init__(self, threads: int, megabytes: int = READ_MB) -> None:
        # Written, not zeros: pages that nobody wrote are all one page, which stays in the cache.
        numbers = np.ones(megabytes * 1_000_000 // 4, dtype=np.float32)
        self._parts: list[npt.NDArray[np.float32]] = np.array_split(numbers, threads)
        self._gigabytes = numbers.nbytes / 1e9

    def read(self) -> float:
        """GB/s of one read."""
        started = perf_counter()
        with ThreadPoolExecutor(len(self._parts)) as pool:
            list(pool.map(np.max, self._parts))
        return self._gigabytes / (perf_counter() - started)


def label(spec: GraphSpec) -> str:
    """The flavour of a target: ``ort:int8``."""
    return str(Flavour(spec.lowering, spec.precision))


def attention_shares(model: Model, points: Sequence[Point], work: Path) -> dict[Point, float]:
    """Attention's share of the time of all nodes, medians over steps; nothing where the graph has
    no operator of its own for attention."""
    graph = _profiled(model, work)
    decoder, every = Decoder(model, graph, points), PROFILED_STEPS + 1
    for point in points:
        for _ in range(every):
            decoder.step(point)
    written = Path(graph._session.end_profiling())
    shares = shares_of(json.loads(written.read_text(encoding="utf-8")))
    written.unlink()
    groups = [shares[start + 1 : start + every] for start in range(0, len(shares), every)]
    return {p: float(np.median(own)) for p, own in zip(points, groups, strict=True) if any(own)}


def _profiled(model: Model, work: Path) -> OrtStepGraph:
    """The target once more, under ONNX Runtime's profiler, which writes into ``work``."""
    import onnxruntime

    clocked = model.steps["target"]
    assert isinstance(clocked, OrtStepGraph)
    # The options of the session that was clocked: nothing but the profiler is to differ.
    options = clocked._session.get_session_options()
    options.profile_file_prefix = str(work / "steps")
    options.enable_profiling = True
    file = str(model.bundle.path / clocked.spec.file)
    try:
        session = onnxruntime.InferenceSession(file, options, providers=[CPU])
    finally:
        options.enable_profiling = False  # the object is that session's own
    return OrtStepGraph(onnxruntime, session, clocked.spec)


def shares_of(events: Sequence[dict[str, Any]]) -> list[float]:
    """Attention's share of the nodes' time in every run of a profile, in order."""
    starts = np.array(sorted(event["ts"] for event in events if event["name"] == "model_run"))
    attention, whole = np.zeros(len(starts)), np.zeros(len(starts))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
            whole[run] += event["dur"]
            attention[run] += event["dur"] * (event["args"]["op_name"] in ATTENTION)
    shares: list[float] = (attention / np.maximum(whole, 1)).tolist()
    return shares
