"""The same weights in transformers, on the same card: what texts and speeds are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.gpu_machine import card_mb, wait
from benchmarks.gpu_question import Floats, Question, logits_along
from benchmarks.gpu_rig import Rig

HALF, SINGLE = "float16", "float32"


class Reference:
    """A LLaVA of transformers. Attention is torch's own (sdpa), the cache transformers' default."""

    def __init__(self, checkpoint: Path, device: str, precision: str) -> None:
        import torch
        import transformers

        hf: Any = transformers
        before, started = card_mb(device), perf_counter()
        model = hf.LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=getattr(torch, precision), attn_implementation="sdpa"
        )
        self.model = model.to(device).eval()
        self.device = device
        wait(device)
        self.opening_s = perf_counter() - started
        self.card_mb = card_mb(device) - before

    def generate(self, question: Question, new: int, *, ends: bool = False) -> list[int]:
        """Greedy tokens: ``new`` of them, fewer where the text ``ends`` by itself."""
        import torch

        config = self.model.generation_config
        eos = config.eos_token_id
        config.eos_token_id = eos if ends else None
        try:
            with torch.inference_mode():
                found = self.model.generate(
                    **self._inputs(question), do_sample=False, max_new_tokens=new, pad_token_id=0
                )
        finally:
            config.eos_token_id = eos
        tokens: list[int] = found[0, len(question.ids) :].tolist()
        return tokens

    def clock(self, question: Question, new: int, repeats: int = 2) -> dict[str, float]:
        """Tokens per second after the first, and milliseconds to it (picture included)."""
        times: dict[int, list[float]] = {1: [], new: []}
        for _ in range(repeats + 1):
            for count, found in times.items():
                wait(self.device)
                started = perf_counter()
                self.generate(question, count)
                wait(self.device)
                found.append(perf_counter() - started)
        first, whole = (float(np.median(times[count][1:])) for count in (1, new))
        return {
            "tokens_per_s": round((new - 1) / (whole - first), 2),
            "ms_per_token": round(1e3 * (whole - first) / (new - 1), 3),
            "ttft_ms": round(1e3 * first, 2),
        }

    def logits_along(self, question: Question, tokens: Sequence[int]) -> Floats:
        """[len(tokens), V]: what it says where each of ``tokens`` stands, led along them."""
        import torch

        inputs = self._inputs(question)
        behind = torch.tensor([list(tokens[:-1])], device=self.device, dtype=torch.int64)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], behind], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logits = self.model(**inputs, logits_to_keep=len(tokens)).logits
        found: Floats = logits[0].float().cpu().numpy()
        return found

    def _inputs(self, question: Question) -> dict[str, Any]:
        import torch

        ids = torch.tensor([question.ids], device=self.device)
        pixels = torch.from_numpy(question.pixels).to(self.device, self.model.dtype)
        return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}

    def close(self) -> None:
        """Gives the card's memory back."""
        import torch

        del self.model
        if self.device == "cuda":
            torch.cuda.empty_cache()


def flips(tokens: Sequence[int], logits: Floats) -> dict[str, Any]:
    """Where ``logits`` [n, V] would have said something else than ``tokens``, and by how much."""
    rows = np.arange(len(tokens))
    best = logits.argmax(axis=1)
    gaps = logits[rows, best] - logits[rows, list(tokens)]
    found = [round(float(gap), 4) for gap, b, t in zip(gaps, best, tokens, strict=True) if b != t]
    two = np.partition(logits, -2, axis=1)[:, -2:]
    return {
        "tokens": len(tokens),
        "flips": len(found),
        "gaps": found[:16],
        "largest_gap": max(found, default=0.0),
        "median_margin": round(float(np.median(two[:, 1] - two[:, 0])), 4),
    }


def against_transformers(rig: Rig, figures: dict[str, Any]) -> None:
    """The same weights, read from the same shards, in transformers' own generate: greedy, one
    sequence, the same picture and prompt."""
    rig.clock.need(25)
    model = rig.model(rig.best)
    question = rig.question(model)
    precision = HALF if rig.device == "cuda" else SINGLE
    theirs = Reference(rig.checkpoint, rig.device, precision)
    figures |= {
        "precision": precision,
        "attention": "sdpa",
        "cache": "dynamic",
        "opening_s": round(theirs.opening_s, 2),
        "card_mb": round(theirs.card_mb),
        **theirs.clock(question, rig.new_tokens),
    }
    try:
        for flavour in rig.usable:
            own = rig.model(flavour)
            answer = own.generate(
                [question.image], question.text, draft="none", max_new_tokens=rig.new_tokens
            )
            tokens = list(answer.token_ids)
            ours, hf = logits_along(own, question, tokens), theirs.logits_along(question, tokens)
            figures[str(flavour)] = {
                **flips(tokens, hf),
                "largest_difference": round(float(np.abs(ours - hf).max()), 4),
                "spread": round(float(hf.std()), 3),
            }
    finally:
        theirs.close()
