"""edgespec beside what else runs a model on a processor, on the same weights, in one session.

    python -m benchmarks.peers --checkpoint ~/smollm2 --work ~/peers

Makes an environment for every peer, converts the checkpoint for each, starts them all and lets them
answer the same prompts in turn. Prints a Markdown table; see docs/peers.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.peers.contenders import PEERS, Contender, contenders, left_out
from benchmarks.peers.environments import (
    HERE,
    VERSIONS,
    Environments,
    Skipped,
    read_versions,
    say,
)
from benchmarks.peers.family import checkpoint_of, draft_of
from benchmarks.peers.measure import Settings, as_json, measure
from benchmarks.peers.models import Models
from benchmarks.peers.prompts import read_prompts
from benchmarks.peers.report import facts, markdown
from edgespec.errors import EdgespecError


def main(given: list[str] | None = None) -> int:
    arguments = parse(given)
    checkpoint = checkpoint_of(arguments.checkpoint)
    draft = draft_of(arguments.draft, checkpoint)
    try:
        questions, eos = read_prompts(arguments.prompts, checkpoint, arguments.work / "pictures")
    except EdgespecError as error:
        say(f"{checkpoint}: {error}")
        return 2
    versions = read_versions(arguments.versions) | dict.fromkeys(arguments.here, HERE)
    environments = Environments(arguments.work / "environments", versions)
    models = Models(arguments.work / "models", environments, checkpoint, draft)
    sees, drafts = any(question.picture for question in questions), draft is not None
    wanted = list(contenders(arguments.only, draft=drafts, pictures=sees))
    if not wanted:
        labels = ", ".join(c.label for c in contenders((), draft=True, pictures=sees))
        say(f"--only names nobody; there are: {labels}")
        return 2
    if arguments.prepare:
        return prepare(models, wanted)
    settings = Settings(
        arguments.threads, arguments.new, arguments.repeats, arguments.starts, arguments.seed
    )
    results = measure(wanted, models, questions, eos, settings, arguments.work / "logs")
    blind = left_out(arguments.only, draft=drafts) if sees else {}
    told = {**facts(checkpoint, draft, questions), "left_out": blind}
    table = markdown(results, told, settings)
    print(table, end="")
    if arguments.markdown:
        arguments.markdown.write_text(table, encoding="utf-8")
    if arguments.json:
        whole = {**told, "settings": asdict(settings), "contenders": list(as_json(results))}
        arguments.json.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return 0 if any(result.tokens for result in results) else 1


def prepare(models: Models, wanted: list[Contender]) -> int:
    """Environments and conversions alone, for a run later on."""
    for contender in wanted:
        try:
            models.environments.python(contender.peer.name)
            models.target(contender)
            models.drafted(contender)
        except Skipped as reason:
            say(f"{contender.label} will be left out: {reason}")
    return 0


def parse(given: list[str] | None) -> argparse.Namespace:
    names = ", ".join(peer.name for peer in PEERS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="Llama, Qwen2 or LLaVA in Hugging Face's format; builtin: the family that edgespec "
        "brings along",
    )
    add(
        "--draft",
        type=Path,
        help="a small model of the same vocabulary, for a LLaVA one that sees; adds the mode "
        "'draft'. builtin, or a name of it: the built-in family's own",
    )
    add("--work", type=Path, default=Path("peers"), help="environments, models, logs (./peers)")
    add(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help=f"PEER[:PRECISION[:MODE]] with * for any; may be repeated. Peers: {names}",
    )
    add("--prompts", type=Path, help='JSON lines of "name", "text" and, for a LLaVA, "image"')
    add("--new", type=int, default=128, help="tokens of an answer at most (128)")
    add("--repeats", type=int, default=5, help="rounds; medians are told (5)")
    add("--starts", type=int, default=2, help="times that loading is clocked (2)")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0, help="of the order within rounds")
    add("--versions", type=Path, default=VERSIONS, help="packages of the environments")
    add(
        "--here",
        action="append",
        default=[],
        metavar="PEER",
        help="run a peer in this Python instead of an environment of its own; may be repeated",
    )
    add("--prepare", action="store_true", help="make environments and convert, measure nothing")
    add("--json", type=Path, help="write everything there")
    add("--markdown", type=Path, help="write the table there as well")
    return parser.parse_args(given)


if __name__ == "__main__":
    raise SystemExit(main())
