"""ONNX Runtime GenAI: its model builder and generator; plain, n-gram lookup, and a draft model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, call, main

MATCHED = 3
"""Tokens of the n-gram looked up; how many are proposed at a time is the library's default."""


class Engine:
    def __init__(self, library: Any, model: Any, speculation: dict[str, Any]) -> None:
        self._library, self._model, self._speculation = library, model, speculation

    def run(self, ids: list[int], new: int, eos: list[int], clock: Clock) -> None:
        clock.start()
        settings = self._library.GeneratorParams(self._model)
        settings.set_search_options(do_sample=False, max_length=len(ids) + new)
        if self._speculation:
            settings.set_speculative_options(**self._speculation)
        generator = self._library.Generator(self._model, settings)
        generator.append_tokens(ids)
        for _ in range(new):
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            clock.put([token])
            if token in eos or generator.is_done():
                break


def libraries() -> Any:
    import onnxruntime_genai

    return onnxruntime_genai


def load(library: Any, job: Job) -> Engine:
    threads = {"session_options": {"intra_op_num_threads": job.threads}}
    model: dict[str, Any] = {"decoder": threads}
    if job.draft_model:
        model["draft"] = draft(job.draft_model, job.model) | threads
    config = library.Config(str(job.model))
    config.overlay(json.dumps({"model": model}))
    speculation = {"ngram_size": MATCHED} if job.mode == "lookup" else {}
    return Engine(library, library.Model(config), speculation)


def draft(folder: Path, beside: Path) -> dict[str, Any]:
    """The section of a configuration that names a draft, whose file lies in another folder."""
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    section: dict[str, Any] = config["model"]["decoder"]
    return section | {"filename": os.path.relpath(folder / section["filename"], beside)}


def convert(checkpoint: Path, out: Path, precision: str) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-m", "edgespec/peers", "-i", str(checkpoint), "-o", str(out)]
    command += ["-p", precision, "-e", "cpu", "-c", str(out / "cache")]
    if precision != "fp32":
        command += ["--extra_options", "accuracy_level=4", "block_size=32"]
    call(command)


if __name__ == "__main__":
    main(Peer(("onnxruntime-genai", "onnxruntime"), libraries, load, convert))
