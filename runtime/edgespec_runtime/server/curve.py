"""What a verification costs here by its rows, measured when a server starts."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np

from edgespec.latency import DeviceProfile
from edgespec.sampling import Sampler, SamplingParams
from edgespec.tree import TokenTree
from edgespec_runtime.engines.base import StepPool
from edgespec_runtime.server.slots import Slot
from edgespec_runtime.server.target import Target
from edgespec_runtime.verifiers import LocalVerifier
from edgespec_runtime.wire import verifier_pb2 as pb

SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 64
"""Rows of the prompt that trees are verified behind, where there is room for so many."""
REPEATS = 3
BUDGET_S = 0.8
"""After which sizes are clocked once each, and not at all after twice as long."""


def measured(target: Target, pool: StepPool, slot: Slot, nodes: int) -> pb.Curve:
    """Clocks whole verifications of chains in ``slot``, which is empty afterwards."""
    started = perf_counter()
    room = slot.cache.capacity - (REPEATS + 1) * len(SIZES) - min(nodes, SIZES[-1]) - 2
    ids = [i % target.vocab for i in range(1, max(1, min(CONTEXT, room)) + 1)]
    sampler = Sampler(SamplingParams(), target.vocab)
    verifier = LocalVerifier(
        pool.open(slot.cache), target.table, lambda: target.table[ids], ids, sampler
    )
    verifier.begin()
    curve = pb.Curve()
    for rows in (size for size in SIZES if size <= nodes + 1):
        late = perf_counter() - started
        if curve.sizes and late > 2 * BUDGET_S:
            break
        tree = TokenTree.build([0] * (rows - 1), range(rows - 1))
        verifier.verify(tree)  # the first call of a size binds its buffers
        clocked = [_ms(verifier, tree) for _ in range(1 if late > BUDGET_S else REPEATS)]
        curve.sizes.append(rows)
        curve.median_ms.append(median(clocked))
    slot.cache.length = slot.cache.pending = 0
    return curve


def profiled(profile: DeviceProfile) -> pb.Curve:
    """The same from a device's profile, at its shortest context."""
    verify = profile.costs.verify
    return pb.Curve(sizes=verify.sizes, median_ms=np.asarray(verify.median_ms[0]).tolist())


def _ms(verifier: LocalVerifier, tree: TokenTree) -> float:
    started = perf_counter()
    verifier.verify(tree)
    return 1000 * (perf_counter() - started)
