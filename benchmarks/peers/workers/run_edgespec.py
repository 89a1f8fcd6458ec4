"""edgespec, by its own API: ``load`` and ``stream``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, call, main

DRAFTS = {"plain": "none", "lookup": "ngram", "draft": "model"}


class Engine:
    def __init__(self, model: Any, draft: str) -> None:
        self._model, self._draft = model, draft

    def run(self, ids: list[int], new: int, eos: list[int], clock: Clock) -> None:
        clock.start()
        request = self._model.stream(
            None, ids, draft=self._draft, max_new_tokens=new, temperature=0.0,
            repetition_penalty=1.0,
        )  # fmt: skip
        for record in request:
            clock.put([record.token])


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
    target, _, draft = str(checkpoint).partition(",")
    command = ["export", "--target", target, "--out", str(out), "--precision", precision]
    command += ["--draft", draft] if draft else []
    call([sys.executable, "-m", "edgespec", *command])


if __name__ == "__main__":
    main(Peer(("edgespec", "onnxruntime", "numpy"), libraries, load, convert))
