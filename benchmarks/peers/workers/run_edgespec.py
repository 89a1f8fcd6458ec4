"""edgespec, by its own API: ``load`` and ``stream``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, Picture, call, main

DRAFTS = {"plain": "none", "lookup": "ngram", "draft": "model"}


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
    bundle = job.draft_model if job.mode == "draft" else job.model
    model = library.load(bundle, threads=job.threads)
    return Engine(model, DRAFTS[job.mode])


def libraries() -> Any:
    import edgespec_runtime

    _ = edgespec_runtime.load
    return edgespec_runtime


def convert(checkpoint: Path, out: Path, precision: str) -> None:
    """``checkpoint``, or "target with draft" as two paths joined by a comma."""
    target, draft = named(*str(checkpoint).split(","))
    command = ["export", "--target", target, "--out", str(out), "--precision", precision]
    command += ["--draft", draft] if draft else []
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
