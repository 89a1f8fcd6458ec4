"""Flags of ``edgespec distill``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgespec.cli.common import add_command, add_config, positive_int

MODEL = "a Hugging Face-format directory or a hub id"


def build_parser(subparsers: Any) -> argparse.ArgumentParser:
    """The command's parser, which does not know yet what to run."""
    parser = add_command(
        subparsers,
        "distill",
        "Train a draft with the frozen target in the loop: it answers the questions of --data "
        "itself,\nand the draft learns what it says (SpecVLM's online-logit distillation, arXiv "
        "2509.11815).\nMany processes: accelerate launch -m edgespec distill ...",
        "edgespec distill --target llava-hf/llava-1.5-7b-hf --method specvlm "
        "--data questions.jsonl --out my-draft",
    )
    parser.add_argument("--target", required=True, metavar="MODEL", help=f"target: {MODEL}")
    parser.add_argument(
        "--method",
        required=True,
        help="feature-level drafts eagle, eaglevlm, msd, vispec, specvlm, eagle3; vlm: a small "
        "LLaVA of its own (--draft)",
    )
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        type=Path,
        metavar="FILE",
        help="JSON lines with 'turns' (the first is asked) and 'image' (relative to the file; may "
        "be absent); may be repeated. Answers are the target's",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--held-out",
        type=Path,
        metavar="FILE",
        help="questions to evaluate on (default: the last 5 %% of the data, at most 48)",
    )
    _add_draft(parser.add_argument_group("the draft"))
    _add_losses(parser.add_argument_group("the loss"))
    _add_settings(parser.add_argument_group("the training"))
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--overwrite", action="store_true", help="begin anew in --out")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_config(parser)
    return parser


def _add_draft(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--draft", metavar="MODEL", help=f"vlm: what to distil into, {MODEL}")
    group.add_argument(
        "--compressor",
        metavar="KIND[:N]",
        help="specvlm (default elastic:select, its authors' choice): prune, stride, pool, conv, "
        "resampler, text-only, elastic:select|weighted|concat; vlm: those without weights",
    )
    group.add_argument(
        "--intermediate", type=positive_int, metavar="N", help="width of the MLP (the target's)"
    )
    group.add_argument(
        "--kv-heads", type=positive_int, metavar="N", help="key-value heads (one for each head)"
    )
    group.add_argument(
        "--queries",
        type=positive_int,
        metavar="N",
        help="vispec: learned queries (2, as published)",
    )
    group.add_argument(
        "--draft-vocab",
        metavar="FILE[:N]",
        help="eagle3: propose only the first N tokens of a list from `edgespec frequencies`",
    )
    group.add_argument(
        "--begin-from",
        metavar="HEAD",
        help="a head of these sizes whose weights training begins with, for recipes in stages "
        "(ViSpec's are two) or more data later",
    )
    group.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="of the weights written (float16; vlm: as --draft is stored)",
    )


def _add_losses(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--logit-weight",
        type=_weight,
        metavar="W",
        help="soft cross-entropy against the target's logits (0.1: SpecVLM; eagle3 and vlm: 1)",
    )
    group.add_argument(
        "--feature-weight",
        type=_weight,
        metavar="W",
        help="Smooth L1 against the target's features (1.0: SpecVLM; not eagle3, vlm)",
    )
    group.add_argument(
        "--rank-weight",
        type=_weight,
        metavar="W",
        help="ListMLE over the target's ten best tokens (0; ViSpec: 0.1)",
    )
    group.add_argument(
        "--rollout",
        type=_count,
        metavar="N",
        help="steps on the draft's own outputs after the first pass (0: SpecVLM; ViSpec: 1; "
        "eagle3: 6, its authors' training-time test of 7 passes)",
    )
    group.add_argument(
        "--rollout-decay",
        type=_weight,
        metavar="W",
        help="weight of a rollout step relative to the one before (0.8: EAGLE-3)",
    )


def _add_settings(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--steps", type=positive_int, metavar="N", help="optimiser steps (1000)")
    group.add_argument(
        "--batch", type=positive_int, metavar="N", help="answers a step (16; SpecVLM: 128)"
    )
    group.add_argument(
        "--rate",
        type=_positive,
        metavar="X",
        help="peak learning rate of AdamW (8e-5 x 4096 / width, at most 1e-3; SpecVLM at width "
        "4096: 8e-5), then a cosine down to a twentieth",
    )
    group.add_argument(
        "--warmup", type=_count, metavar="N", help="steps of linear warm-up (50; SpecVLM: none)"
    )
    group.add_argument("--seed", type=_count, metavar="N", help="of weights, order, draws (0)")
    group.add_argument(
        "--answer-tokens", type=positive_int, metavar="N", help="longest answer (256)"
    )
    group.add_argument(
        "--answer-temperature",
        type=_weight,
        metavar="T",
        help="of the answers learnt from (0, greedy); held-out answers are always greedy",
    )
    group.add_argument(
        "--pool", type=positive_int, metavar="N", help="questions answered in one go (64)"
    )
    group.add_argument(
        "--evaluate-every", type=positive_int, metavar="N", help="steps between evaluations (100)"
    )
    group.add_argument(
        "--save-every", type=positive_int, metavar="N", help="steps between saved states (100)"
    )
    group.add_argument(
        "--target-dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="what the target computes in; half of the memory of float32 for the other two",
    )


def _weight(text: str) -> float:
    """A number >= 0, for argparse."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def _positive(text: str) -> float:
    value = _weight(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is not more than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value
