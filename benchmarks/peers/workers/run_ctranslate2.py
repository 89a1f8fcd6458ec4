"""CTranslate2's generator. It has no speculation of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocol import Clock, Job, Peer, main

KINDS = {"fp32": "float32", "int8": "int8"}


class Engine:
    def __init__(self, generator: Any, words: list[str]) -> None:
        self._generator, self._words = generator, words

    def run(self, ids: list[int], new: int, eos: list[int], clock: Clock) -> None:
        asked = [self._words[i] for i in ids]
        clock.start()
        self._generator.generate_batch(
            [asked],
            max_length=new,
            sampling_topk=1,
            end_token=eos or None,
            include_prompt_in_result=False,
            callback=lambda step: clock.put([step.token_id]),
        )


def libraries() -> Any:
    import ctranslate2

    return ctranslate2


def load(library: Any, job: Job) -> Engine:
    generator = library.Generator(
        str(job.model),
        device="cpu",
        compute_type=KINDS[job.precision],
        intra_threads=job.threads,
        inter_threads=1,
    )
    words = json.loads((job.model / "vocabulary.json").read_text(encoding="utf-8"))
    return Engine(generator, words)


def convert(checkpoint: Path, out: Path, precision: str) -> None:
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(checkpoint))
    converter.convert(str(out), quantization=KINDS[precision], force=True)


if __name__ == "__main__":
    main(Peer(("ctranslate2",), libraries, load, convert))
