"""Feature-level drafts of a target elsewhere, against the stand-alone draft: what they cost the
network, and what rounding their features costs them.

    python benchmarks/hybrid_features.py

The drafts of the built-in family, each with a server of its own on the loopback; chains of twelve,
greedy. Bytes are messages, without what HTTP/2 and TLS add. Figures are counts: they do not depend
on the machine. Every text is compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_rig import ROOT

sys.path.insert(0, str(ROOT))

from edgespec_export.exporter import export_bundle  # noqa: E402
from edgespec_export.family import DRAFTS, export_request, sample_folder  # noqa: E402
from edgespec_runtime import Model, load  # noqa: E402
from edgespec_runtime.bench.data import Row, read_sets, select  # noqa: E402
from edgespec_runtime.remote import RemoteSettings  # noqa: E402
from tests.support.servers import running_server  # noqa: E402

POLICY = "eagle2:nodes=12,depth=12,top_k=1"


@dataclass
class Counts:
    """Of all answers of one way to draft."""

    tokens: int = 0
    """Behind the first of every answer."""
    rounds: int = 0
    opens: int = 0
    open_up: int = 0
    open_down: int = 0
    up: int = 0
    down: int = 0
    different: int = 0
    """Texts that were not plain decoding's."""

    def line(self, name: str) -> str:
        opens = f"{self.open_up / self.opens / 1e3:.1f} | {self.open_down / self.opens / 1e3:.1f}"
        per_token = f"{self.up / self.tokens:.0f} | {self.down / self.tokens:.0f}"
        return f"| {name} | {self.tokens / self.rounds:.3f} | {per_token} | {opens} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=2, help="per task and set (default: 2)")
    parser.add_argument("--tokens", type=int, default=96, help="most per answer (default: 96)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    given = parser.parse_args()
    paths = [sample_folder() / f"{domain}.jsonl" for domain in ("in_domain", "out_of_domain")]
    rows = [row for row in read_sets(paths) if len(row.turns) == 1]
    rows = select(rows, (), given.prompts)
    figures: dict[str, Counts] = {}
    print("| draft | accepted length | bytes up a token | down | kB up an open | down |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for role, _ in DRAFTS:
            bundle = Path(folder) / role
            export_bundle(export_request(role, bundle))
            for name, counts in ways(role, bundle, rows, given.tokens):
                figures[name] = counts
                print(counts.line(name), flush=True)
    if given.json:
        cells = {name: vars(counts) for name, counts in figures.items()}
        given.json.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    return int(any(counts.different for counts in figures.values()))


def ways(role: str, bundle: Path, rows: Sequence[Row], tokens: int) -> Iterator[tuple[str, Counts]]:
    """Here, for comparison, and away in every form that the features have."""
    here = load(bundle, threads=1, check_hashes=False)
    right = [ask(here, row, tokens, Counts(), draft="none") for row in rows]
    yield f"{role}, target here", measure(here, rows, right, tokens)
    kinds = ("float16", "int8") if role != "draft" else ("float16",)
    with running_server(bundle) as server:
        for kind in kinds:
            settings = RemoteSettings((server.address,), mode="hybrid", ahead=False, features=kind)
            away = load(bundle, threads=1, check_hashes=False, remote=settings)
            ask(away, rows[0], 2, Counts())  # asks the server what it is, once
            counts = measure(away, rows, right, tokens)
            away.close()
            yield (f"{role}, {kind}" if role != "draft" else role), counts


def measure(
    model: Model, rows: Sequence[Row], right: Sequence[tuple[int, ...]], tokens: int
) -> Counts:
    counts = Counts()
    for row, text in zip(rows, right, strict=True):
        counts.different += ask(model, row, tokens, counts, policy=POLICY) != text
    return counts


def ask(model: Model, row: Row, tokens: int, counts: Counts, **settings: str) -> tuple[int, ...]:
    """One answer's tokens; what it took is added to ``counts``."""
    request = model.stream(
        list(row.images),
        row.turns[0],
        max_new_tokens=tokens,
        **settings,  # type: ignore[arg-type]
    )
    found = [next(request).token]
    opened = request.remote or {"bytes_up": 0, "bytes_down": 0}
    found += [record.token for record in request]
    closed = request.remote or opened
    counts.opens += 1
    counts.open_up += opened["bytes_up"]
    counts.open_down += opened["bytes_down"]
    counts.up += closed["bytes_up"] - opened["bytes_up"]
    counts.down += closed["bytes_down"] - opened["bytes_down"]
    counts.tokens += len(found) - 1
    counts.rounds += request.stats.rounds
    return tuple(found)


if __name__ == "__main__":
    raise SystemExit(main())
