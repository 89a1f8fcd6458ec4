"""How fast: plain decoding, calls of every size, pictures, prompts, memory, and transformers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.gpu_machine import resident_mb, watched
from benchmarks.gpu_question import Floats
from benchmarks.gpu_rig import Rig, median_ms
from edgespec.bundle import GraphSpec
from edgespec.sampling import Sampler, SamplingParams
from edgespec.tree import TokenTree
from edgespec_runtime.engines import Graph, StepGraph, StepSession
from edgespec_runtime.engines.memory import SIZES
from edgespec_runtime.model import Model
from edgespec_runtime.profiling.measuring.rigs import Source, open_session, verifier_over
from edgespec_runtime.profiling.measuring.scripts import caterpillar
from edgespec_runtime.verifiers import LocalVerifier
from edgespec_runtime.verifiers.opening import names_best, target_outputs

NODES = (0, 1, 2, 4, 8, 16, 26, 32, 48, 64, 96, 128)
"""Of verified trees; 0 is plain decoding. A tree of n nodes is a call of n + 1 rows."""
WIDTHS = (1, 2, 4, 8, 16)
"""Rows of draft calls."""


def plain(rig: Rig, figures: dict[str, Any]) -> None:
    """Plain tokens per second through the product's loop, a picture in the prompt, against what the
    card's measured bandwidth allows: weights and cached rows read once a token."""
    for flavour in rig.usable:
        rig.clock.need(10)
        model = rig.model(flavour)
        question = rig.question(model)
        runs = []
        for _ in range(3):
            answer = model.generate(
                [question.image], question.text, draft="none", max_new_tokens=rig.new_tokens
            )
            runs.append(answer.stats)
        best = sorted(runs[1:], key=lambda stats: stats.tokens_per_s)[-1]
        ms = 1e3 / best.tokens_per_s
        found = {
            "tokens_per_s": round(best.tokens_per_s, 2),
            "ms_per_token": round(ms, 3),
            "host_ms_per_token": round(best.host_ms / max(best.rounds, 1), 4),
            "ttft_ms": round(best.ttft_ms, 2),
            "first_ttft_ms": round(runs[0].ttft_ms, 2),
            "prompt_tokens": answer.prompt_tokens,
        }
        if read := _measured(rig).get("read"):
            context = answer.prompt_tokens + rig.new_tokens // 2
            size = bytes_per_token(model.steps["target"].spec, context)
            bound = 1e3 * size / (read * 1e9)
            found |= {
                "bytes_per_token": size,
                "bound_ms": round(bound, 3),
                "share_of_bound": round(bound / ms, 3),
            }
        figures[str(flavour)] = found


def _measured(rig: Rig) -> dict[str, float]:
    found: dict[str, float] = (
        rig.report.get("environment", {}).get("figures", {}).get("bandwidth_gb_s", {})
    )
    return found


def bytes_per_token(spec: GraphSpec, context: int) -> int:
    """Of one plain step: all weights that the graph reads, and the cache's rows."""
    meta = spec.meta
    kind = next(tensor.dtype for tensor in spec.inputs if tensor.name.startswith("past_key."))
    row = int(meta["layers"]) * 2 * int(meta["kv_heads"]) * int(meta["head_dim"]) * SIZES[kind]
    return int(meta["weight_bytes"]) + context * row


def curve(rig: Rig, figures: dict[str, Any]) -> None:
    """Milliseconds of verifying a tree of n nodes, walk and commit included, by flavour, context
    and whether launches are recorded; ``engine`` is the part inside the engine. Greedy: ids alone
    leave the card where the graph names them; "logits" is what sampling has to wait for."""
    figures["nodes"] = list(NODES)
    for flavour in rig.usable:
        model = rig.model(flavour)
        for context in rig.geometry.contexts:
            for name, step in _launches(model.steps["target"]).items():
                rig.clock.need(5)
                key = f"{flavour}, context {context}{name}"
                figures[key] = _verify_curve(rig, model, step, context)
        rig.clock.need(5)
        key = f"{flavour}, context {context}, logits"
        figures[key] = _verify_curve(rig, model, model.steps["target"], context, named=False)


def _launches(step: StepGraph) -> dict[str, StepGraph]:
    """The graph as it is, and without recorded launches where it has them."""
    if not getattr(getattr(step, "executor", None), "recorded", False):
        return {"": step}
    from edgespec_runtime.engines.device_step import DeviceStepGraph

    assert isinstance(step, DeviceStepGraph)
    eager = DeviceStepGraph(step.spec, Eager(step.executor), step.memory)
    return {", recorded": step, ", eager": eager}


class Eager:
    """An executor whose calls are never recorded."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self.host_inputs = executor.host_inputs

    def prepare(self, inputs: Any, outputs: Any, steady: bool) -> Any:
        return self._executor.prepare(inputs, outputs, False)


def _verify_curve(
    rig: Rig, model: Model, step: StepGraph, context: int, named: bool = True
) -> dict[str, Any]:
    source, table = Source(model), model.tables["target"]
    sampler = Sampler(SamplingParams(), len(table))
    named = named and names_best(step.spec, sampler)
    session = step.open(context + NODES[-1] + 1, target_outputs(named, False))
    source.fill(session.cache)
    verifier = LocalVerifier(session, table, lambda: table[8:9], [8], sampler, named=named)
    verifier.begin()
    wall: list[float] = []
    engine: list[float] = []
    for nodes in NODES:
        tree = caterpillar(source.different(nodes))
        times = [_verified(verifier, session, tree, context) for _ in range(rig.repeats + 3)][3:]
        wall.append(round(statistics.median(ms for ms, _ in times), 4))
        engine.append(round(statistics.median(ms for _, ms in times), 4))
    return {"wall_ms": wall, "engine_ms": engine}


def _verified(
    verifier: LocalVerifier, session: Any, tree: TokenTree, context: int
) -> tuple[float, float]:
    session.cache.length, session.cache.pending = context, 0
    inside, started = session.engine_s, perf_counter()
    verifier.verify(tree)
    return (perf_counter() - started) * 1e3, (session.engine_s - inside) * 1e3


def draft(rig: Rig, figures: dict[str, Any]) -> None:
    """Milliseconds of the draft's calls: steps of so many rows, and a chain of several levels."""
    figures["rows"] = list(WIDTHS)
    for flavour in rig.usable:
        rig.clock.need(5)
        model = rig.model(flavour)
        assert model.draft is not None
        context = rig.geometry.contexts[0] // 3  # its pictures are pooled
        session, chain = model.draft.sessions(context + 64)
        Source(model).fill(session.cache)
        call = partial(_drafted, table=model.draft.table, context=context)
        found: dict[str, Any] = {"context": context}
        found["step_ms"] = [median_ms(partial(call, session, n), rig.repeats) for n in WIDTHS]
        if chain is not None:
            found["chain_levels"] = chain.steps
            found["chain_ms"] = median_ms(partial(call, chain.session, 1), rig.repeats)
        figures[str(flavour)] = found


def _drafted(session: StepSession, rows: int, table: Floats, context: int) -> float:
    session.cache.length, session.cache.pending = context, 0
    mask = np.ones((rows, context + rows), dtype=np.bool_)
    mask[:, context:] = np.eye(rows, dtype=np.bool_)
    started = perf_counter()
    session.step(table[8 : 8 + rows], [context] * rows, mask)
    return (perf_counter() - started) * 1e3


def vision(rig: Rig, figures: dict[str, Any]) -> None:
    """Tower, projector, and the draft's side with its compressor; prompts by length."""
    flavour = rig.best
    model = rig.model(flavour)
    figures |= {"flavour": str(flavour), "visual_tokens": rig.geometry.visual_tokens}
    given: dict[str, Any] = {"pixel_values": rig.question(model).pixels}
    for role in ("vision", "projector", "draft_projector", "compressor"):
        graph = model.graphs.get(role)
        if graph is None:
            continue
        figures[f"{role}_ms"] = median_ms(partial(_clocked, graph, given), rig.repeats)
        out = graph.run(given)
        if role == "vision":
            given = features = {"features": out["features"]}
        elif role == "projector":
            given = features
        else:
            (rows,) = out.values()
            given = {"image_embeds": rows}
            figures["draft_visual_tokens"] = int(rows.shape[1])
    for length in rig.geometry.contexts:
        repeats = max(rig.repeats // 3, 3)
        figures[f"prefill_{length}_ms"] = median_ms(partial(_prefill, model, length), repeats)


def _clocked(graph: Graph, given: Mapping[str, Any]) -> float:
    started = perf_counter()
    graph.run(given)
    return (perf_counter() - started) * 1e3


def _prefill(model: Model, rows: int) -> float:
    ids = Source(model).ids(rows)
    verifier = verifier_over(model, open_session(model, rows + 1), ids)
    started = perf_counter()
    verifier.begin()
    return (perf_counter() - started) * 1e3


def memory(rig: Rig, figures: dict[str, Any]) -> None:
    """The most that one flavour takes: opened afresh, then one answer with a draft."""
    rig.clock.need(15)
    flavour = rig.best
    rig.close(keep=True)
    with watched(rig.device) as peak:
        model = rig.model(flavour)
        question = rig.question(model)
        model.generate([question.image], question.text, max_new_tokens=16)
    figures |= {
        "flavour": str(flavour),
        "card_peak_mb": peak.card_mb,
        "host_peak_mb": peak.host_mb,
        "host_rss_mb": round(resident_mb()),
        "bundle_gb": round(sum(p.stat().st_size for p in rig.bundle.iterdir()) / 1e9, 3),
    }
