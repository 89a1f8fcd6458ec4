"""What sizing's own Python costs, by the number of candidates; warm, so a lower bound.

    python benchmarks/choosing.py

Chains with three siblings a level, random confidence. *Choosing* is sorting, prefix sums and the
scan of the verify curve, *calibrating* turns confidence into acceptance, *learning* takes a round
in.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from time import perf_counter

import numpy as np

from edgespec.sizing.calibration import Calibrator, Paths
from edgespec.sizing.rule import best_count, tree_order
from edgespec.tree import ROOT, Candidates

SIBLINGS = 4
COUNTS = (24, 48, 96, 512)


def main() -> int:
    print("| candidates | choosing, us | calibrating, us | learning, us |\n|--:|--:|--:|--:|")
    for count in COUNTS:
        candidates = caterpillar(count)
        calibrator = Calibrator()
        reach = Paths(calibrator).extend(candidates)
        curve = [2.0 + 0.2 * n for n in range(count + 1)]

        def choose(reach: list[float] = reach, curve: list[float] = curve) -> None:
            best_count([reach[i] for i in tree_order(reach)], curve, 0.4)

        def calibrate(candidates: Candidates = candidates, by: Calibrator = calibrator) -> Paths:
            paths = Paths(by)
            paths.extend(candidates)
            return paths

        def learn(candidates: Candidates = candidates, by: Calibrator = calibrator) -> None:
            by.reliability.nodes = 0  # as in the first rounds, when every one is learnt from
            paths = calibrate(candidates, by)
            named = [0] * (len(candidates) // SIBLINGS + 1)
            chosen = list(range(0, len(candidates), SIBLINGS))
            paths.learn(candidates, chosen, [1], named, [0, 1])

        times = [median_us(run) for run in (choose, calibrate, learn)]
        times[2] -= times[1]
        print(f"| {count} | {times[0]:.0f} | {times[1]:.0f} | {times[2]:.0f} |")
    return 0


def caterpillar(count: int) -> Candidates:
    """``count`` candidates: a chain, every level with its siblings, best first."""
    rng, candidates, tip = np.random.default_rng(0), Candidates(), ROOT
    while len(candidates) < count:
        chances = np.sort(rng.dirichlet([0.2] * 8))[::-1][:SIBLINGS]
        first = len(candidates)
        candidates.extend(tip, range(SIBLINGS), np.log(chances + 1e-9).tolist())
        tip = first
    return candidates


def median_us(run: Callable[[], object], repeats: int = 300) -> float:
    times = []
    for _ in range(repeats):
        started = perf_counter()
        run()
        times.append((perf_counter() - started) * 1e6)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
