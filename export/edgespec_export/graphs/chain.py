"""Several draft steps in one graph: a greedy chain, each step fed with the best token of the last.

One engine call instead of ``steps``: what a small draft costs on a small CPU is mostly the calls
(docs/performance.md). Inputs are those of a draft's step graph, without ``logit_index``; ``noise``
is [B, steps, 1 or V_d], and the best token of the noisy scores is what the next step is fed with.
Outputs are ``topk_logprobs`` and ``topk_ids`` [B, steps, K], row j the candidates after j chain
tokens. The cache gains S + steps - 1 rows: the S given ones, then the chain's. The best token of
the last step has no row yet: given as the one new row of another call, it continues the chain.

Every step reads the graph's own cache inputs and publishes its caches (``present_key.i.j`` for step
j > 0), all to be bound to one buffer per layer: each step then finds the rows of the one before in
place. Passing caches from step to step inside the graph would copy the whole cache every time. The
graph is only right on an engine that binds them so; order is safe, as a step needs the token of the
one before. A lowering that is not ``in_place`` hands the new rows from step to step instead, and
gives all of them as ``new_key.i`` [B, KV, S + steps - 1, D].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgespec_export.blocks import stored
from edgespec_export.builder import GraphBuilder
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import TextGeometry
from edgespec_export.graphs.decoder import begin_step, publish_caches
from edgespec_export.graphs.layers import stack
from edgespec_export.graphs.proposer import Coupling, Proposer, coupling_inputs
from edgespec_export.lowerings import Lowering
from edgespec_export.lowerings.base import Cache, ChainLowering, StepInputs


@dataclass(frozen=True)
class ChainStep:
    """One step of the unrolled chain."""

    inputs: StepInputs
    suffix: str
    """Of its published caches."""
    coupling: Coupling
    last: bool


def chained_steps(
    b: GraphBuilder, text: TextGeometry, lowering: ChainLowering, first: StepInputs, steps: int
) -> Iterator[ChainStep]:
    """The steps in turn; every one but the first is a single row behind the last given one.
    Declares the inputs of coupled drafting: ``noise`` has a row for each step."""
    given = coupling_inputs(b, steps)
    noises = b.nodes("Split", given.noise, b.constant([1] * steps), outputs=steps, axis=1)
    couplings = [Coupling(noise, given.inv_temperature) for noise in noises]
    # [B, 1], of the last given row: by Gather, as TensorRT does not see that a Slice has one row.
    position = b.node("Gather", "position_ids", b.constant([-1]), axis=1)
    yield ChainStep(first, "", couplings[0], steps == 1)
    for ahead in range(1, steps):
        following = b.node("Add", position, b.constant([ahead]))
        inputs = lowering.chained(b, text, first, following, ahead)
        yield ChainStep(inputs, f".{ahead}", couplings[ahead], ahead + 1 == steps)


def publish_step(
    b: GraphBuilder,
    text: TextGeometry,
    lowering: Lowering,
    written: Sequence[Cache],
    step: ChainStep,
) -> None:
    """Makes what a step wrote graph outputs; rows that are kept apart come out once, at the end."""
    if lowering.in_place:
        publish_caches(b, text, lowering, written, step.suffix)
    elif step.last:
        publish_caches(b, text, lowering, written, rows="N")


def join_steps(b: GraphBuilder, found: Sequence[tuple[str, str]], top_k: int) -> None:
    """Publishes the candidates (log-probabilities, ids) of all steps."""
    for which, (label, dtype) in enumerate((("topk_logprobs", "float32"), ("topk_ids", "int64"))):
        joined = b.node("Concat", *(pair[which] for pair in found), axis=1)
        b.output(joined, label, dtype, ["B", len(found), top_k])


def build_chain(
    checkpoint: Checkpoint,
    text: TextGeometry,
    proposer: Proposer,
    lowering: ChainLowering,
    *,
    name: str,
    top_k: int,
    steps: int,
) -> GraphBuilder:
    """The unrolled chain of ``steps`` draft steps."""
    b = lowering.graph(name)
    x, first, caches = begin_step(b, text, lowering)
    table_name = "text.embed_tokens.weight"
    table = b.weight(f"{table_name}:rows", stored(checkpoint, table_name))
    found: list[tuple[str, str]] = []
    for step in chained_steps(b, text, lowering, first, steps):
        done = stack(b, checkpoint, text, lowering, x, caches, step.inputs)
        caches = lowering.following(caches, done.caches)
        publish_step(b, text, lowering, done.caches, step)
        row = b.node("Gather", done.normed, b.constant([-1]), axis=1)
        logits = b.float32(proposer.logits(b, row))
        found.append(proposer.best(b, logits, top_k, step.coupling))
        if not step.last:
            token = b.node("Gather", found[-1][1], b.constant(0), axis=2)  # [B, 1]
            x = b.node("Gather", table, token, axis=0)
    join_steps(b, found, top_k)
    return b
