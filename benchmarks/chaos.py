"""The long history check: many clients, servers that die, a network that fails.

    python benchmarks/chaos.py                  # 24 clients, 2 servers, 100,000 tokens, 150 faults
    python benchmarks/chaos.py --no-checks      # the same without the protocol's checks: must fail
    python benchmarks/chaos.py --servers 1 --ray-replicas 3 --tokens 10000     # replicas under Ray

Servers are real processes over a small random model; the oracle is plain decoding on this machine.
Exits with 1 where a token was lost, doubled or wrong, a round has two answers, or a user saw an
error. With --no-checks it is the other way round. Needs the extra [dev].
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for part in ("runtime", "export", ""):  # the helpers of the tests are not installed
    if str(ROOT / part) not in sys.path:
        sys.path.insert(0, str(ROOT / part))

from tests.support.chaos import Plan, Report, run  # noqa: E402
from tests.support.zoo import Zoo  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument(
        "--ray-replicas", type=int, default=0, help="per server, in which its target runs under Ray"
    )
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--faults", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="give up after (default: 30)")
    parser.add_argument("--no-checks", action="store_true", help="the negative control")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    plan = Plan(
        clients=given.clients,
        servers=given.servers,
        replicas=given.ray_replicas,
        tokens=given.tokens,
        faults=given.faults,
        seed=given.seed,
        cap_s=given.minutes * 60,
        checks=not given.no_checks,
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = Zoo(Path(folder)).bundle("gqa", sessions=4)
        report = run(bundle, plan, lambda text: print(text, file=sys.stderr))
    print(json.dumps(report.as_json(), indent=1) if given.json else table(report))
    if given.no_checks:
        return 0 if not report.findings.clean else 1
    return 0 if report.clean and report.complete else 1


def table(report: Report) -> str:
    """Markdown: a row per figure."""
    figures = report.as_json()
    rounds = figures["round_ms"]
    rows = {
        "committed tokens": f"{report.findings.tokens:,}",
        "lost, doubled, wrong": f"{figures['lost']}, {figures['doubled']}, {figures['wrong']}",
        "rounds with two answers": figures["two_answers"],
        "errors shown to users": len(report.errors),
        "faults": f"{sum(report.faults.values())}: "
        + ", ".join(f"{kind} {count}" for kind, count in figures["faults"].items()),
        "what clients met": ", ".join(f"{name} {n}" for name, n in figures["counts"].items()),
        "rounds, ms": f"p50 {rounds['p50']}, p99 {rounds['p99']}, max {rounds['max']}",
        "seconds": figures["seconds"],
    }
    lines = ["| figure | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    return "\n".join([*lines, *(f"- {note}" for note in [*report.errors[:5], *figures["notes"]])])


if __name__ == "__main__":
    sys.exit(main())
