"""Plain against speculative decoding on the built-in family: one process, interleaved, medians.

    python benchmarks/speed.py                      # the table of docs/performance.md
    python benchmarks/speed.py --policy eagle2:nodes=12,depth=8,top_k=2 --json

Every prompt is run plain and speculative in turn, ``--repeats`` times after a warm-up; its speed is
the median of its runs and a task's speedup the median over prompts of the per-prompt ratios.
Decoding speed leaves out the first token (images, vision tower, prefill), which is given beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

import edgespec_runtime
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.family import checkpoint_path, sample_folder
from edgespec_runtime import Generation, Model

TASKS = (("in_domain", "detailed"), ("out_of_domain", "detailed"), ("in_domain", "naming"))


@dataclass(frozen=True)
class Cell:
    """One task's figures; rates in tokens per second, times in milliseconds per round."""

    domain: str
    task: str
    prompts: int
    tokens: float
    plain_tokens_per_s: float
    tokens_per_s: float
    speedup_decode: float
    speedup_e2e: float
    accepted_length: float
    plain_round_ms: float
    draft_ms: float
    verify_ms: float
    host_share: float
    ttft_ms: float
    exact_match: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="a bundle of the built-in family (default: export it)")
    parser.add_argument("--policy", help="tree policy (default: the runtime's)")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=12, help="prompts per task")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(arguments.bundle or Path(scratch, "bundle"))
        if not arguments.bundle:
            target, draft = str(checkpoint_path("target")), str(checkpoint_path("draft"))
            export_bundle(ExportRequest(target, bundle, draft, "pool:4"))
        model = edgespec_runtime.load(bundle, threads=arguments.threads)
        cells = [measure(model, domain, task, arguments) for domain, task in TASKS]
    if arguments.json:
        print(json.dumps([asdict(cell) for cell in cells]))
    else:
        print(table(cells))
    return 0


def measure(model: Model, domain: str, task: str, arguments: argparse.Namespace) -> Cell:
    """Runs one task's prompts both ways in turn."""
    folder = sample_folder()
    lines = (folder / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["category"] == task and len(row["turns"]) == 1]
    pairs = [
        run_prompt(model, folder / row["image"], row["turns"][0], arguments)
        for row in tqdm(rows[: arguments.prompts], desc=f"{domain} {task}", disable=None)
    ]
    return summarise(domain, task, pairs)


Pair = tuple[list[Generation], list[Generation]]


def run_prompt(model: Model, image: Path, prompt: str, arguments: argparse.Namespace) -> Pair:
    """(plain runs, speculative runs) of one prompt, interleaved."""
    runs: Pair = ([], [])
    for repeat in range(arguments.repeats + 1):
        for side, draft in zip(runs, ("none", "model"), strict=True):
            result = model.generate(
                image,
                prompt,
                draft=draft,
                policy=arguments.policy,
                temperature=arguments.temperature,
                seed=1,
            )
            if repeat:
                side.append(result)
    return runs


def summarise(domain: str, task: str, pairs: list[Pair]) -> Cell:
    def middle(values: list[float]) -> float:
        return statistics.median(values)

    def per_prompt(side: int, field: str) -> list[float]:
        return [middle([getattr(g.stats, field) for g in pair[side]]) for pair in pairs]

    def ratio(field: str) -> float:
        columns = zip(per_prompt(0, field), per_prompt(1, field), strict=True)
        return middle([b / a for a, b in columns if a])

    def per_round(side: int, field: str) -> float:
        every = [g.stats for pair in pairs for g in pair[side] if g.stats.rounds]
        return middle([getattr(s, field) / s.rounds for s in every]) if every else 0.0

    total = {name: per_round(1, name) for name in ("draft_ms", "verify_ms", "host_ms")}
    return Cell(
        domain=domain,
        task=task,
        prompts=len(pairs),
        tokens=statistics.mean(len(pair[0][0].token_ids) for pair in pairs),
        plain_tokens_per_s=middle(per_prompt(0, "tokens_per_s")),
        tokens_per_s=middle(per_prompt(1, "tokens_per_s")),
        speedup_decode=ratio("tokens_per_s"),
        speedup_e2e=1 / ratio("total_ms"),
        accepted_length=statistics.mean(per_prompt(1, "accepted_length")),
        plain_round_ms=per_round(0, "verify_ms"),
        draft_ms=total["draft_ms"],
        verify_ms=total["verify_ms"],
        host_share=total["host_ms"] / (total["draft_ms"] + total["verify_ms"]),
        ttft_ms=middle(per_prompt(1, "ttft_ms")),
        exact_match=statistics.mean(a[0].token_ids == b[0].token_ids for a, b in pairs),
    )


def table(cells: list[Cell]) -> str:
    """A Markdown table, one row per task."""
    head = (
        "| task | prompts | tokens | plain tok/s | spec. tok/s | speedup decode | end to end | "
        "accepted length | T(1) ms | draft ms | verify ms | host share | first token ms | equal |"
    )
    lines = [head, "|---|" + "--:|" * 13]
    for c in cells:
        lines.append(
            f"| {c.domain} {c.task} | {c.prompts} | {c.tokens:.0f} | {c.plain_tokens_per_s:.0f} | "
            f"{c.tokens_per_s:.0f} | **{c.speedup_decode:.2f}x** | {c.speedup_e2e:.2f}x | "
            f"{c.accepted_length:.2f} | {c.plain_round_ms:.2f} | {c.draft_ms:.2f} | "
            f"{c.verify_ms:.2f} | {100 * c.host_share:.1f} % | {c.ttft_ms:.0f} | "
            f"{100 * c.exact_match:.0f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
