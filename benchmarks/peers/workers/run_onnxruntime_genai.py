"""ONNX Runtime GenAI: its model builder and its generator. It has no speculation of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, call, main


class Engine:
    def __init__(self, library: Any, model: Any) -> None:
        self._library, self._model = library, model

    def run(self, ids: list[int], new: int, eos: list[int], clock: Clock) -> None:
        clock.start()
        settings = self._library.GeneratorParams(self._model)
        settings.set_search_options(do_sample=False, max_length=len(ids) + new)
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
    set_threads(job.model, job.threads)
    return Engine(library, library.Model(str(job.model)))


def set_threads(folder: Path, threads: int) -> None:
    """Threads are a matter of the model's own configuration file."""
    file = folder / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    file.write_text(json.dumps(config, indent=1), encoding="utf-8")


def convert(checkpoint: Path, out: Path, precision: str) -> None:
    kinds = {"fp32": "fp32", "int8": "int8", "int4": "int4"}
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-m", "edgespec/peers", "-i", str(checkpoint), "-o", str(out)]
    command += ["-p", kinds[precision], "-e", "cpu", "-c", str(out / "cache")]
    if precision == "int4":
        command += ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
    call(command)


if __name__ == "__main__":
    main(Peer(("onnxruntime-genai", "onnxruntime"), libraries, load, convert))
