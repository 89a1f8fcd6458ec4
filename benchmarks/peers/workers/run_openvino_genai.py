"""OpenVINO GenAI: IR made by optimum-intel; plain, prompt lookup, and with a draft model.

fp32 is forced to compute and to cache in float32; int8 and int4 run as OpenVINO chooses, which on
processors with bfloat16 means that, over a cache of 8 bits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, call, main

FORMATS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int4": "int4"}
LOOKUP, MATCHED = 5, 3
"""Tokens proposed at a time, and of the n-gram looked up, as OpenVINO's samples have them."""


class Engine:
    def __init__(self, imported: Any, pipeline: Any, job: Job) -> None:
        self._numpy, self._openvino, self._genai = imported
        self._pipeline, self._job = pipeline, job

    def run(self, ids: list[int], new: int, eos: list[int], clock: Clock) -> None:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = new, False
        config.stop_token_ids = set(eos)
        if self._job.mode == "lookup":
            config.num_assistant_tokens, config.max_ngram_size = LOOKUP, MATCHED
        if self._job.mode == "draft":
            config.num_assistant_tokens = LOOKUP
        asked = self._openvino.Tensor(self._numpy.array([ids], dtype="int64"))
        genai = self._genai

        class Streamer(genai.StreamerBase):  # type: ignore[name-defined,misc]
            def write(self, token: Any) -> Any:
                clock.put([token] if isinstance(token, int) else token)
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        clock.start()
        self._pipeline.generate(asked, config, Streamer())


def libraries() -> Any:
    import numpy
    import openvino
    import openvino_genai

    return numpy, openvino, openvino_genai


def load(imported: Any, job: Job) -> Engine:
    genai = imported[2]
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads}
    if job.precision == "fp32":
        settings |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    if job.mode == "lookup":
        settings["prompt_lookup"] = True
    if job.mode == "draft":
        settings["draft_model"] = genai.draft_model(str(job.draft_model), "CPU")
    return Engine(imported, genai.LLMPipeline(str(job.model), "CPU", **settings), job)


def convert(checkpoint: Path, out: Path, precision: str) -> None:
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
    command += ["--model", str(checkpoint), "--task", "text-generation-with-past"]
    command += ["--weight-format", FORMATS[precision]]
    if precision == "int4":
        command += ["--sym", "--ratio", "1.0", "--group-size", str(group_size(checkpoint))]
    call([*command, str(out)])


def group_size(checkpoint: Path) -> int:
    """The largest of the usual sizes that divides every row."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    rows = (config["hidden_size"], config["intermediate_size"])
    return next(size for size in (128, 64, 32, 16) if not any(row % size for row in rows))


if __name__ == "__main__":
    main(Peer(("openvino-genai", "openvino", "optimum-intel"), libraries, load, convert))
