"""edgespec, by its own API: ``load`` and ``stream``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, Picture, call, main

DRAFTS = {"plain": "none", "lookup": "ngram", "draft": "model"}
VOCABULARY = "frequencies.json"
"""In a draft's directory: the tokens that it may propose (``edgespec export --draft-vocab``)."""
NODES, CONTEXT = 16, 768
"""The largest tree, and the longest context, that are measured."""


class Engine:
    def __init__(self, model: Any, draft: str) -> None:
        self._model, self._draft = model, draft

    def run(
        self,
        ids: list[int],
        new: int,
        eos: list[int],
        clock: Clock,
        picture: Picture | None = None,
    ) -> None:
        image, ids = seen(picture, ids) if picture else (None, ids)
        clock.start()
        request = self._model.stream(
            image, ids, draft=self._draft, max_new_tokens=new, temperature=0.0,
            repetition_penalty=1.0,
        )  # fmt: skip
        for record in request:
            clock.put([record.token])


def seen(picture: Picture, ids: list[int]) -> tuple[Any, list[int]]:
    """The array, and the ids with one mark, for which edgespec makes room itself."""
    import numpy

    mark = picture.mark_id
    kept = [i for i, before in zip(ids, [-1, *ids], strict=False) if not i == before == mark]
    return numpy.load(picture.array), kept


def load(library: Any, job: Job) -> Engine:
    if job.mode != "draft":
        return Engine(library.load(job.model, threads=job.threads), DRAFTS[job.mode])
    assert job.draft_model is not None
    profile = profiled(job.draft_model, job.threads)
    model = library.load(job.draft_model, threads=job.threads, profile=profile)
    return Engine(model, DRAFTS[job.mode])


def profiled(bundle: Path, threads: int) -> Path:
    """What a round costs on this machine, measured once per bundle: the depth of drafts is chosen
    by it."""
    profile = bundle.with_name(f"{bundle.name}-threads{threads}.yaml")
    if not profile.is_file():
        from edgespec.bundle import read_bundle

        positions = int(read_bundle(bundle, check_hashes=False).manifest.text["max_positions"])
        command = ["profile", "--quick", "--bundle", str(bundle), "--out", str(profile)]
        command += ["--max-nodes", str(NODES), "--max-context", str(min(CONTEXT, positions - 1))]
        call([sys.executable, "-m", "edgespec", *command, "--threads", str(threads)])
    return profile


def libraries() -> Any:
    import edgespec_runtime

    _ = edgespec_runtime.load
    return edgespec_runtime


def convert(checkpoint: Path, out: Path, precision: str) -> None:
    """``checkpoint``, or "target with draft" as two paths joined by a comma."""
    target, draft = named(*str(checkpoint).split(","))
    command = ["export", "--target", target, "--out", str(out), "--precision", precision]
    if draft:
        command += ["--draft", draft]
        vocabulary = Path(draft) / VOCABULARY
        command += ["--draft-vocab", str(vocabulary)] if vocabulary.is_file() else []
    call([sys.executable, "-m", "edgespec", *command])


def named(target: str, draft: str = "") -> tuple[str, str]:
    """The built-in family's own pair by name: drafts then come with their compressor and words."""
    from edgespec_export.family import checkpoint_path

    own = checkpoint_path("target").resolve()
    if draft and Path(target) == own and Path(draft).parent == own.parent:
        return "builtin", Path(draft).name
    return target, draft


if __name__ == "__main__":
    main(Peer(("edgespec", "onnxruntime", "numpy"), libraries, load, convert))
