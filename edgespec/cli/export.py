"""``edgespec export``: checkpoints in, one bundle out."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import add_command, add_config, needs_extra, note, print_json
from edgespec.config import Assignments

if TYPE_CHECKING:
    from edgespec.bundle import Manifest
    from edgespec.flavour import Flavour
    from edgespec_export.exporter import ExportRequest

BUILTIN = "builtin"
CHECKPOINT = "a Hugging Face-format directory or a hub id"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "export",
        "Export a LLaVA or a text model, with a draft and a compressor, to one bundle of graphs.",
        "edgespec export --target llava-hf/llava-1.5-7b-hf --draft my-llava-160m "
        "--compressor pool:4 --out llava.bundle",
    )
    parser.add_argument(
        "--target",
        required=True,
        metavar="MODEL",
        help=f"a LLaVA, Llama, Mistral or Qwen2: {CHECKPOINT}; or {BUILTIN}, the small family that "
        "edgespec brings along",
    )
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="directory to write")
    _add_draft(parser.add_argument_group("the draft"))
    _add_graphs(parser.add_argument_group("the graphs"))
    _add_precision(parser.add_argument_group("the numbers"))
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with what a killed export of the same to --out left behind; where this one "
        "fails (a full disk, Ctrl-C), keep what is finished. Default: both are removed",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def _add_draft(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--draft",
        metavar="MODEL",
        help="a small model of the target's kind, or, for a LLaVA, a feature-level draft "
        "(EAGLE-1/2/3, EagleVLM, MSD, ViSpec, "
        f"SpecVLM): {CHECKPOINT}; with --target {BUILTIN} also draft (its default), eaglevlm, "
        "vispec or specvlm",
    )
    group.add_argument(
        "--draft-variant",
        metavar="NAME",
        help="the rule a feature-level draft follows, where its tensors do not tell: msd or eagle",
    )
    group.add_argument(
        "--draft-vocab",
        metavar="FILE[:N]",
        help="let the draft propose only the N most frequent tokens of a list that `edgespec "
        "frequencies` made; the target judges with its whole vocabulary",
    )
    group.add_argument(
        "--compressor",
        metavar="KIND[:N]",
        help="what the draft sees of an image: pool:N (averages), prune:N (a random N-th), "
        "stride:N, text-only; trained compressors come with their draft",
    )


def _add_graphs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lowering",
        action="append",
        metavar="NAME[:PRECISION]",
        help="ort (ONNX Runtime's fast operators, default), cuda (the same for its CUDA provider; "
        "not fp32), native (opset 24: TensorRT from 10.15, ONNX Runtime) or portable (opset 20: "
        "TensorRT from 10.3); give it again for a bundle with several, of which a device takes "
        "the one that suits it",
    )
    group.add_argument(
        "--sessions",
        type=int,
        default=0,
        metavar="N",
        help="for a server: add the graph that verifies up to N sessions in one call, e.g. 8 "
        "(default: none; the server then verifies one after another)",
    )
    group.add_argument(
        "--part",
        default="whole",
        metavar="PART",
        help="whole (default), or device: what drafts, without the target, for a device that "
        "generates with --remote",
    )
    group.add_argument(
        "--parity", action="store_true", help="compare every graph with torch (needs [train])"
    )


def _add_precision(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--precision",
        default="fp32",
        action=Assignments,
        metavar="[NAME,]PART=NAME,...",
        help="of lowerings that name none: fp32 (default), fp16, bf16, int8 or int4. By part, e.g. "
        "target=int4,draft=int8,vision=fp16,head=int8,embedding=fp16,block=64 (block: inputs that "
        "share a scale, of int4 and, where given, of int8); docs/precision.md",
    )
    group.add_argument(
        "--calibration",
        metavar="FILE[:N]",
        help="round int4 weights of the target by what its layers read on N questions "
        "(default 64) of a file as `edgespec distill` takes them, better with 'answers' (GPTQ; "
        f"lowerings ort and cuda); {BUILTIN}: the family's own. Default: to the nearest",
    )
    group.add_argument(
        "--quality",
        metavar="FILE[:N]",
        help="compare quantised targets with float32 on N questions of a file (default 48): "
        f"perplexity and equal answers, among others, in the manifest; {BUILTIN}: the family's own",
    )


def run(arguments: argparse.Namespace) -> int:
    request = request_of(arguments)
    manifest = export_with_progress(request)
    report(manifest, request.out, arguments.json)
    return 0


def request_of(arguments: argparse.Namespace) -> ExportRequest:
    """What was asked for. The built-in family comes with the draft, the compressor and the words
    that belong to it, as far as nothing else was named."""
    from edgespec.precisions import Precisions

    with needs_extra("edgespec export", "export"):
        from edgespec_export.exporter import ExportRequest
        from edgespec_export.family import DRAFTS, checkpoint_path, export_request
    asked = ExportRequest(
        target=arguments.target,
        out=Path(arguments.out),
        draft=arguments.draft,
        compressor=arguments.compressor,
        draft_variant=arguments.draft_variant,
        draft_vocab=arguments.draft_vocab,
        flavours=flavours_of(arguments),
        sessions=arguments.sessions,
        part=arguments.part,
        overwrite=arguments.overwrite,
        parity=arguments.parity,
        precisions=Precisions.parse(arguments.precision),
        calibration=_questions(arguments.calibration, "out_of_domain"),
        quality=_questions(arguments.quality, "in_domain"),
        resume=arguments.resume,
    )
    if asked.target != BUILTIN:
        return asked
    role = asked.draft or "draft"
    if role not in dict(DRAFTS):  # one of the user's own
        return replace(asked, target=str(checkpoint_path("target")))
    family = export_request(role, asked.out)
    return replace(
        asked,
        target=family.target,
        draft=family.draft,
        compressor=asked.compressor or family.compressor,
        draft_vocab=asked.draft_vocab or family.draft_vocab,
    )


def _questions(asked: str | None, name: str) -> str | None:
    """``FILE[:N]`` of questions; the family's own file of that name for "builtin"."""
    from edgespec_export.family import sample_folder

    file, colon, number = (asked or "").partition(":")
    if file != BUILTIN:
        return asked
    return f"{sample_folder() / name}.jsonl{colon}{number}"


def flavours_of(arguments: argparse.Namespace) -> tuple[Flavour, ...]:
    """Those asked for, in their order, none twice. Raises ConfigError for unknown names."""
    from edgespec.flavour import Flavour
    from edgespec.precisions import Precisions

    asked = arguments.lowering or ["ort"]
    own = Precisions.parse(arguments.precision).target
    return tuple(dict.fromkeys(Flavour.parse(name, own) for name in asked))


def export_with_progress(request: Any) -> Manifest:
    """Exports with a progress bar over bytes of weights on stderr (off where it is no terminal)."""
    from tqdm import tqdm

    from edgespec_export.exporter import export_bundle
    from edgespec_export.plan import Plan

    with tqdm(unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def announce(plan: Plan) -> None:
            bar.reset(total=plan.weight_bytes)
            if plan.draft:
                note(f"draft: {plan.draft.description}")

        def progress(what: str, written: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(written)

        return export_bundle(request, progress, announce, note)


def report(manifest: Manifest, out: Path, as_json: bool) -> None:
    """The graphs with their sizes, or one JSON object."""
    size = sum(entry.size for entry in manifest.files.values())
    if as_json:
        graphs = [
            {"role": g.role, "lowering": g.lowering, "precision": g.precision}
            for g in manifest.graphs
        ]
        models = {role: asdict(identity) for role, identity in manifest.models.items()}
        print_json(
            {"bundle": str(out), "bytes": size, "graphs": graphs, "models": models,
             "compressor": manifest.compressor, "parity": manifest.parity}
        )  # fmt: skip
        return
    for graph in manifest.graphs:
        data = manifest.files.get(graph.file.replace(".onnx", ".bin"))
        weights = data.size if data else 0
        checked = manifest.parity[graph.stem]
        difference = checked if isinstance(checked, str) else f"{checked['max_abs_diff']:.1e}"
        note(f"  {graph.stem:<28} {weights / 1e6:8.1f} MB   parity: {difference}")
    print(f"wrote {out} ({size / 1e6:.1f} MB)")
