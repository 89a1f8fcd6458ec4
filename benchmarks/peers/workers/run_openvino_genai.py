"""OpenVINO GenAI: IR made by optimum-intel; plain, prompt lookup, and with a draft model. Of a
LLaVA its pipeline takes the prompt as text and the picture as an array, and prepares both itself.

fp32 is forced to compute and to cache in float32; int8 and int4 run as OpenVINO chooses, which on
processors with bfloat16 means that, over a cache of 8 bits.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, Picture, call, main, sees

FORMATS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int4": "int4"}
LOOKUP, MATCHED = 5, 3
"""Tokens proposed at a time, and of the n-gram looked up, as OpenVINO's samples have them."""


class Engine:
    def __init__(self, imported: Any, pipeline: Any, job: Job) -> None:
        self._numpy, self._openvino, self._genai = imported
        self._pipeline, self._job = pipeline, job

    def run(
        self,
        ids: list[int],
        new: int,
        eos: list[int],
        clock: Clock,
        picture: Picture | None = None,
    ) -> None:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = new, False
        config.stop_token_ids = set(eos)
        if self._job.mode == "lookup":
            config.num_assistant_tokens, config.max_ngram_size = LOOKUP, MATCHED
        if self._job.mode == "draft":
            config.num_assistant_tokens = LOOKUP
        asked, images = self._asked(ids, picture)
        genai = self._genai

        class Streamer(genai.StreamerBase):  # type: ignore[name-defined,misc]
            def write(self, token: Any) -> Any:
                clock.put([token] if isinstance(token, int) else token)
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        clock.start()
        if picture is None:
            self._pipeline.generate(asked, config, Streamer())
            return
        config.apply_chat_template = False  # the text has been through it
        made = self._pipeline.generate(
            asked, images=images, generation_config=config, streamer=Streamer()
        )
        read = made.perf_metrics.get_num_input_tokens()
        if read != len(ids):
            raise ValueError(f"it read a prompt of {len(ids)} tokens as {read}")

    def _asked(self, ids: list[int], picture: Picture | None) -> tuple[Any, list[Any]]:
        """The prompt, and its pictures."""
        tensor = self._openvino.Tensor
        if picture is None:
            return tensor(self._numpy.array([ids], dtype="int64")), []
        # It puts a line's end behind every picture.
        text = picture.text.replace(f"{picture.mark}\n", picture.mark, 1)
        return text, [tensor(self._numpy.load(picture.array)[None])]


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
    pipeline = genai.VLMPipeline if sees(job.checkpoint) else genai.LLMPipeline
    return Engine(imported, pipeline(str(job.model), "CPU", **settings), job)


def convert(checkpoint: Path, out: Path, precision: str) -> None:
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
    task = "image-text-to-text" if sees(checkpoint) else "text-generation-with-past"
    command += ["--model", str(checkpoint), "--task", task]
    command += ["--weight-format", FORMATS[precision]]
    if precision == "int4":
        command += ["--sym", "--ratio", "1.0", "--group-size", str(group_size(checkpoint))]
    call([*command, str(out)])
    if sees(checkpoint):
        _write_processor(checkpoint, out)


def _write_processor(checkpoint: Path, out: Path) -> None:
    """As the pipeline looks for it; without the file it takes one of another size."""
    name = "preprocessor_config.json"
    if (checkpoint / name).is_file():
        shutil.copyfile(checkpoint / name, out / name)
        return
    nested = json.loads((checkpoint / "processor_config.json").read_text(encoding="utf-8"))
    (out / name).write_text(json.dumps(nested["image_processor"]), encoding="utf-8")


def group_size(checkpoint: Path) -> int:
    """The largest of the usual sizes that divides every row."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    rows = (text["hidden_size"], text["intermediate_size"])
    return next(size for size in (128, 64, 32, 16) if not any(row % size for row in rows))


if __name__ == "__main__":
    main(Peer(("openvino-genai", "openvino", "optimum-intel"), libraries, load, convert))
