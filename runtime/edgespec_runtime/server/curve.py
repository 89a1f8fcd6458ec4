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
PASSES = 16
BUDGET_S = 0.8
"""After which no pass over the sizes is added; sizes that one pass has no time for are left out."""


def measured(target: Target, pool: StepPool, slot: Slot, nodes: int) -> pb.Curve:
    """Clocks whole verifications of chains in ``slot``, which is empty afterwards: all sizes in
    turn, pass after pass, so that a machine that is still waking up does not tell them apart."""
    started, cache = perf_counter(), slot.cache
    room = cache.capacity - min(nodes, SIZES[-1]) - 2
    ids = [i % target.vocab for i in range(1, max(1, min(CONTEXT, room)) + 1)]
    sampler = Sampler(SamplingParams(), target.vocab)
    verifier = LocalVerifier(
        pool.open(cache), target.table, lambda: target.table[ids], ids, sampler
    )
    verifier.begin()
    length = cache.length
    clocked: dict[int, list[float]] = {}
    for number in range(PASSES + 1):
        for rows in (size for size in SIZES if size <= nodes + 1):
            late = perf_counter() - started
            if clocked and (late > 2 * BUDGET_S if number == 0 else late > BUDGET_S):
                break
            cache.length = length
            ms = _ms(verifier, TokenTree.build([0] * (rows - 1), range(rows - 1)))
            if number < 2:
                clocked[rows] = [ms]  # the first call of a size binds its buffers
            else:
                clocked[rows].append(ms)
    cache.length = cache.pending = 0
    return pb.Curve(sizes=clocked, median_ms=[median(ms) for ms in clocked.values()])


def profiled(profile: DeviceProfile) -> pb.Curve:
    """The same from a device's profile, at its shortest context."""
    verify = profile.costs.verify
    return pb.Curve(sizes=verify.sizes, median_ms=np.asarray(verify.median_ms[0]).tolist())


def _ms(verifier: LocalVerifier, tree: TokenTree) -> float:
    started = perf_counter()
    verifier.verify(tree)
    return 1000 * (perf_counter() - started)
