"""transformers' generate: plain, prompt lookup, and assisted by a draft; texts and LLaVA."""

from __future__ import annotations

from typing import Any

from protocol import Clock, Job, Peer, Picture, main, sees

LOOKUP = 10
"""Tokens proposed at a time, as transformers' documentation has it."""


class Streamer:
    """Hears tokens as they are made; the prompt comes first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._prompt = True

    def put(self, value: Any) -> None:
        if not self._prompt:
            self._clock.put(value.reshape(-1).tolist())
        self._prompt = False

    def end(self) -> None:
        pass


class Engine:
    def __init__(self, torch: Any, model: Any, settings: dict[str, Any]) -> None:
        self._torch, self._model, self._settings = torch, model, settings

    def run(
        self,
        ids: list[int],
        new: int,
        eos: list[int],
        clock: Clock,
        picture: Picture | None = None,
    ) -> None:
        asked = self._torch.tensor([ids])
        seen = self._seen(picture) if picture else {}
        clock.start()
        self._model.generate(
            asked,
            attention_mask=self._torch.ones_like(asked),
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=new,
            eos_token_id=eos or None,
            pad_token_id=(eos or [0])[0],
            streamer=Streamer(clock),
            **self._settings,
            **seen,
        )

    def _seen(self, picture: Picture) -> dict[str, Any]:
        import numpy

        pixels = self._torch.from_numpy(numpy.load(picture.pixels)).to(self._model.dtype)
        if "prompt_lookup_num_tokens" not in self._settings:
            return {"pixel_values": pixels}
        # Or else it proposes the prompt's visual tokens, and fails for want of their picture.
        return {"pixel_values": pixels, "suppress_tokens": [picture.mark_id]}


def libraries() -> Any:
    import torch
    import transformers

    _ = transformers.AutoModelForCausalLM
    return torch, transformers


def load(imported: Any, job: Job) -> Engine:
    torch, transformers = imported
    torch.set_num_threads(job.threads)
    kind = torch.bfloat16 if job.precision == "bf16" else torch.float32

    def opened(folder: Any) -> Any:
        llava, text = "LlavaForConditionalGeneration", "AutoModelForCausalLM"
        loader = getattr(transformers, llava if sees(folder) else text)
        return loader.from_pretrained(folder, dtype=kind, local_files_only=True).eval()

    settings: dict[str, Any] = {}
    if job.mode == "lookup":
        settings["prompt_lookup_num_tokens"] = LOOKUP
    if job.mode == "draft":
        settings["assistant_model"] = opened(job.draft)
    return Engine(torch, opened(job.checkpoint), settings)


if __name__ == "__main__":
    main(Peer(("transformers", "torch"), libraries, load))
