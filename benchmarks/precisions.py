"""What each precision costs and brings: size, quality, speed, verify curve, equality of texts.

    python benchmarks/precisions.py --work precisions                     # the built-in family
    python benchmarks/precisions.py --work big --target DIR --speed-only  # any other checkpoint

Bundles are kept in ``--work`` and measured again where they are there. Times of steps are minima
over repeats in which all variants take turns, tokens per second of medians; quality is against
float32 on questions that no variant was calibrated on. The last table counts the texts of
speculative decoding that are those of plain decoding in the same precision, with the logit gap of
every difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.precisions_texts import equality, speeds  # noqa: E402
from edgespec.bundle import Bundle, read_bundle
from edgespec.flavour import Flavour
from edgespec.precisions import Precisions
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.family import export_request, sample_folder
from edgespec_export.quantise import quality
from edgespec_export.questions import read_questions
from edgespec_runtime import Model
from edgespec_runtime.engines import open_engine
from edgespec_runtime.prefill import causal_mask, prefill

ROWS = (1, 2, 4, 8, 16, 32)
CALIBRATED = "calibrated"
VARIANTS = {
    "fp32": "target=fp32",
    "int8": "target=int8",
    "int8, block 64": "target=int8,block=64",
    "int4, block 32": "target=int4,block=32",
    "int4, block 32, GPTQ": f"target=int4,block=32 {CALIBRATED}",
    "int4, block 64": "target=int4,block=64",
    "int4, block 64, GPTQ": f"target=int4,block=64 {CALIBRATED}",
    "int4, block 128": "target=int4,block=128",
    "int4, block 128, GPTQ": f"target=int4,block=128 {CALIBRATED}",
    "int4, block 64, head int4": "target=int4,block=64,head=int4",
}


@dataclass
class Variant:
    """One precision, exported and loaded."""

    name: str
    bundle: Bundle
    model: Model

    @property
    def weights_mb(self) -> float:
        """Of the target's step graph."""
        spec = self.bundle.manifest.graph("target")
        assert spec is not None
        return float(spec.meta["weight_bytes"]) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", required=True, type=Path, help="directory of the bundles")
    parser.add_argument("--target", help="a checkpoint; default: the built-in family")
    parser.add_argument("--only", action="append", help="a variant; may be repeated")
    parser.add_argument("--questions", type=int, default=48, help="of the quality table")
    parser.add_argument("--texts", type=int, default=24, help="of the equality table")
    parser.add_argument("--context", type=int, default=192, help="rows before a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    # Calibration questions are about the built-in family's pictures, and change no speed.
    usual = [name for name in VARIANTS if not (arguments.target and CALIBRATED in VARIANTS[name])]
    names = arguments.only or usual
    variants = [_open(arguments, name) for name in names]
    figures: dict[str, dict[str, Any]] = {v.name: {"weights_mb": v.weights_mb} for v in variants}
    for name, curve in _curves(variants, arguments.context, arguments.repeats).items():
        figures[name]["curve_ms"] = curve
    if not arguments.speed_only:
        _judge(variants, figures, arguments)
    _print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _open(arguments: argparse.Namespace, name: str) -> Variant:
    parts, _, calibrated = VARIANTS[name].partition(" ")
    precisions = Precisions.parse(parts)
    out = arguments.work / name.replace(", ", "-").replace(" ", "")
    if not out.exists():
        started = perf_counter()
        request = export_request("draft", out)
        if arguments.target:
            request = ExportRequest(arguments.target, out)
        questions = str(sample_folder() / "out_of_domain.jsonl") if calibrated else None
        export_bundle(
            replace(
                request,
                flavours=(Flavour("ort", precisions.target),),
                precisions=precisions,
                calibration=questions,
            )
        )
        print(f"{name}: exported in {perf_counter() - started:.1f} s", file=sys.stderr)
    bundle = read_bundle(out, check_hashes=False)
    return Variant(
        name, bundle, Model(bundle, open_engine(threads=arguments.threads, huge_pages=True))
    )


def _curves(variants: Sequence[Variant], context: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of a step of each of ROWS, behind ``context`` rows."""
    best = {v.name: [float("inf")] * len(ROWS) for v in variants}
    rng = np.random.default_rng(0)
    sessions = {}
    for variant in variants:
        table = variant.model.tables["target"]
        session = variant.model.steps["target"].open(context + max(ROWS))
        prefill(session, table[rng.integers(4, len(table), context).tolist()])
        sessions[variant.name] = (session, table)
    for _ in range(repeats):
        for at, rows in enumerate(ROWS):
            for name, (session, table) in sessions.items():
                embeds = table[rng.integers(4, len(table), rows).tolist()]
                mask, positions = causal_mask(context, rows), np.arange(context, context + rows)
                for number in range(8):
                    started = perf_counter()
                    session.step(embeds, positions, mask)
                    took = (perf_counter() - started) * 1e3
                    session.cache.commit(())
                    if number:
                        best[name][at] = min(best[name][at], took)
    return best


def _judge(
    variants: Sequence[Variant], figures: dict[str, dict[str, Any]], arguments: argparse.Namespace
) -> None:
    """Adds quality, tokens/s and equality."""
    file = sample_folder() / "in_domain.jsonl"
    reference = next(v for v in variants if v.name == "fp32")
    answered = quality.answers(reference.model, read_questions([file], arguments.questions))
    texts = [q for q in read_questions([file]) if "everything" in q.prompt or "escribe" in q.prompt]
    models = {variant.name: variant.model for variant in variants}
    for name, found in speeds(models, texts[:6], arguments.repeats).items():
        figures[name] |= found
    for variant in variants:
        own = figures[variant.name]
        own["quality"] = quality.compared(variant.model, answered)
        exactly = Model(
            variant.bundle, open_engine(threads=arguments.threads, huge_pages=True), exact=True
        )
        own["equal"] = {
            **equality(variant.model, texts[: arguments.texts], ""),
            **equality(exactly, texts[: arguments.texts], ", exact"),
        }
        print(f"{variant.name}: {json.dumps(own)}", file=sys.stderr, flush=True)


def _print(figures: dict[str, dict[str, Any]]) -> None:
    for line in _lines(figures):
        print(line)


def _lines(figures: dict[str, dict[str, Any]]) -> Iterator[str]:
    judged = all("quality" in own for own in figures.values())
    ratios = " | ".join(f"t({n})/t(1)" for n in ROWS[1:])
    more = " perplexity | divergence | agreement | equal answers | plain tok/s | spec. tok/s |"
    yield f"| precision | MB | ms, 1 row | {ratios} |{more if judged else ''}"
    yield "|---|" + "--:|" * (2 + len(ROWS[1:]) + (6 if judged else 0))
    for name, own in figures.items():
        curve = own["curve_ms"]
        cells = [name, f"{own['weights_mb']:.1f}", f"{curve[0]:.2f}"]
        cells += [f"{ms / curve[0]:.2f}" for ms in curve[1:]]
        if judged:
            q = own["quality"]
            cells += [
                f"{q['perplexity']:.4f}", f"{q['divergence']:.5f}", f"{q['agreement']:.4f}",
                f"{q['exact_match']:.3f}", f"{own['plain_tok_s']:.0f}",
                f"{own['speculative_tok_s']:.0f}",
            ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"
    if judged:
        yield ""
        for name, own in figures.items():
            for policy, found in own["equal"].items():
                share = f"{found['equal']} of {found['texts']}"
                yield f"| {name} | {policy} | {share} | {sorted(found['gaps'])} |"


if __name__ == "__main__":
    sys.exit(main())
