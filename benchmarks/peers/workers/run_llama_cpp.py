"""llama.cpp by its Python binding: plain, and its prompt lookup.

The GGUF is written here, from the checkpoint's tensors, since no package on PyPI converts one. Its
vocabulary holds names alone: prompts come as token ids, and nothing is tokenised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, main

LOOKUP, MATCHED = 10, 2
"""Tokens proposed at a time, and of the n-gram looked up: the binding's defaults."""
BATCH = 512


class Engine:
    def __init__(self, model: Any, draft: Any) -> None:
        self._model, self._draft = model, draft

    def run(self, ids: list[int], new: int, eos: list[int], clock: Clock) -> None:
        self._model.reset()
        self._model.draft_model = self._draft
        clock.start()
        made = self._model.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0, reset=True)
        for count, token in enumerate(made, start=1):
            clock.put([token])
            if count == new or token in eos:
                break


def libraries() -> Any:
    import llama_cpp
    import llama_cpp.llama_speculative

    return llama_cpp


def load(library: Any, job: Job) -> Engine:
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    draft = None
    if job.mode == "lookup":
        draft = LlamaPromptLookupDecoding(max_ngram_size=MATCHED, num_pred_tokens=LOOKUP)
    model = library.Llama(
        str(job.model / "model.gguf"),
        n_ctx=json.loads((job.model / "context.json").read_text()),
        n_batch=BATCH,
        n_threads=job.threads,
        n_threads_batch=job.threads,
        logits_all=draft is not None,  # which its verification reads
        verbose=False,
    )
    return Engine(model, draft)


def convert(checkpoint: Path, out: Path, precision: str) -> None:
    import gguf_file

    out.mkdir(parents=True, exist_ok=True)
    whole = out / "f32.gguf"
    context = gguf_file.write(checkpoint, whole)
    (out / "context.json").write_text(str(context))
    if precision == "fp32":
        whole.rename(out / "model.gguf")
        return
    gguf_file.quantise(whole, out / "model.gguf", precision)
    whole.unlink()


if __name__ == "__main__":
    main(Peer(("llama-cpp-python",), libraries, load, convert))
