"""``edgespec distill``: trains a draft on what the target says itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import needs_extra, note, print_json
from edgespec.cli.distill_flags import build_parser

if TYPE_CHECKING:
    from edgespec_export.distill.distillation import Distilled

SETTINGS = (
    "steps", "batch", "rate", "warmup", "seed", "answer_tokens", "answer_temperature", "pool",
    "evaluate_every", "save_every",
)  # fmt: skip
LOSSES = {
    "logit_weight": "logit", "feature_weight": "feature", "rank_weight": "rank",
    "rollout": "rollout", "rollout_decay": "decay",
}  # fmt: skip


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = build_parser(subparsers)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    with needs_extra("edgespec distill", "train"):
        import accelerate  # noqa: F401 - named before hours of work, not after
        import transformers  # noqa: F401

        from edgespec_export.distill.distillation import distill
        from edgespec_export.distill.methods import DraftOptions
        from edgespec_export.distill.plan import DistillRequest
    given = vars(arguments)
    request = DistillRequest(
        target=arguments.target,
        method=arguments.method,
        data=tuple(arguments.data),
        out=arguments.out,
        held_out=arguments.held_out,
        draft=DraftOptions(
            arguments.draft, arguments.compressor, arguments.intermediate, arguments.kv_heads,
            arguments.queries, arguments.draft_vocab, arguments.begin_from,
        ),
        settings={name: given[name] for name in SETTINGS if given[name] is not None},
        losses={short: given[n] for n, short in LOSSES.items() if given[n] is not None},
        dtype=arguments.dtype,
        target_dtype=arguments.target_dtype,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )  # fmt: skip
    done = distill(request)
    if done:  # only in the main process
        report(done, arguments.json)
    return 0


def report(done: Distilled, as_json: bool) -> None:
    """The checkpoint and what it earns, or one JSON object."""
    if as_json:
        print_json(
            {"out": str(done.out), "method": done.method, "steps": done.steps,
             "accepted_length": done.accepted_length, "agreement": done.agreement,
             "history": done.history, "seconds": done.seconds}
        )  # fmt: skip
        return
    for step, length in done.history:
        note(f"  step {step:>7}: accepted length {length:.2f}")
    print(
        f"wrote {done.out} ({done.method}, {done.steps} steps; accepted length "
        f"{done.accepted_length:.2f}, bonus counted, on held-out questions)"
    )
