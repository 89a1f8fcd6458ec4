"""What choosing between hybrid and remote-only costs against the better of the two, over modelled
networks, drafts and targets that nothing was tuned on.

    python benchmarks/hybrid_choice.py [--worlds 14] [--seed 20261126]

Every cell is five answers of 300 tokens, twice, the first of them by a client that knows nothing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
for part in ("runtime", ""):  # the helpers of the tests are not installed
    if str(ROOT / part) not in sys.path:
        sys.path.insert(0, str(ROOT / part))

from tests.support.networks import World, regret  # noqa: E402

POINTS = ((2.0, 0.0), (20.0, 0.0), (50.0, 0.0), (100.0, 0.0), (200.0, 0.0), (20.0, 1000.0))
"""(round trip ms, uplink kbit/s; 0: any)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", type=int, default=14)
    parser.add_argument("--seed", type=int, default=20261126)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    titles = [f"{rtt:g} ms" + (f", {kbps:g} kbit/s" if kbps else "") for rtt, kbps in POINTS]
    print(f"| kept per level | draft, ms | target, ms | {' | '.join(titles)} |")
    print(f"|{'--:|' * (3 + len(POINTS))}")
    cells: list[float] = []
    for _ in range(given.worlds):
        world = World(
            keep=float(rng.uniform(0.3, 0.92)),
            draft=float(rng.uniform(2, 12)),
            one=float(rng.uniform(10, 60)),
            row=float(rng.uniform(0.1, 0.6)),
            queue=float(rng.choice([0, 0, 10])),
        )
        lost = [_lost(world, rtt, kbps) for rtt, kbps in POINTS]
        shown = " | ".join(f"{share:.3f}" for share in lost)
        print(f"| {world.keep:.2f} | {world.draft:.1f} | {world.one:.0f} | {shown} |", flush=True)
        cells += lost
    print(
        f"mean {np.mean(cells):.3f}, 95th percentile {np.percentile(cells, 95):.3f}, most "
        f"{max(cells):.3f}; {np.mean(np.array(cells) < 0.05):.0%} of {len(cells)} cells below 0.05"
    )
    return 0


def _lost(world: World, rtt: float, kbps: float) -> float:
    """Share of time above the better mode's."""
    here = replace(world, rtt=lambda ms: rtt, kbps=kbps)
    return float(np.mean([regret(here, 300, answers=5, seed=100 + i)[0] for i in range(2)]))


if __name__ == "__main__":
    sys.exit(main())
