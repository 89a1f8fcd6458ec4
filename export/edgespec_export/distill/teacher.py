"""The frozen target in the training loop: it answers the questions, and shows its features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from edgespec.errors import CheckpointError, InputError
from edgespec_export.questions import Question


@dataclass(frozen=True)
class Sample:
    """One answered question as the target sees it. L tokens, of which ``prompt`` are the prompt's.

    Row a of ``logits`` [A, V] and ``states`` [A, H] belongs to token ``prompt + a``, which it
    follows: they say what the draft has to predict after that token, and from which feature.
    """

    ids: torch.Tensor
    spans: tuple[tuple[int, int], ...]
    prompt: int
    embeds: torch.Tensor
    """[L, H], visual tokens spliced in."""
    features: torch.Tensor
    """[L, F]: the last normed hidden state, or EAGLE-3's three."""
    logits: torch.Tensor
    states: torch.Tensor
    pixels: torch.Tensor | None = None
    """[images, 3, h, w], for drafts that look for themselves."""

    @property
    def answers(self) -> int:
        """A: answer tokens but the last, each of which a draft has to continue."""
        return len(self.ids) - self.prompt - 1


class Teacher:
    """A LLaVA target on one device; what it shows is float32 whatever it computes in."""

    def __init__(
        self, source: Path, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        import transformers

        hf: Any = transformers  # its annotations are not complete
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecations in the checkpoint's own files
                self.processor = hf.AutoProcessor.from_pretrained(source)
                model = hf.LlavaForConditionalGeneration.from_pretrained(source, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"transformers cannot load target '{source}': {error}") from None
        self.model: Any = model.to(device).eval().requires_grad_(False)
        self.processor.tokenizer.padding_side = "left"
        self.device = device
        config = model.config
        self.image_token = int(config.image_token_id)
        self.context = int(config.text_config.max_position_embeddings)
        eos = model.generation_config.eos_token_id
        self.eos = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])
        pad = model.generation_config.pad_token_id
        self.pad = int(min(self.eos, default=0) if pad is None else pad)
        # Answers are plain draws from the target: penalties and filters of the checkpoint's own
        # defaults would give texts that its logits do not explain.
        model.generation_config = hf.GenerationConfig(
            eos_token_id=sorted(self.eos) or None, pad_token_id=self.pad
        )

    @property
    def embedding(self) -> torch.Tensor:
        """[V, H]."""
        table: torch.Tensor = self.model.get_input_embeddings().weight.detach()
        return table.float()

    @property
    def head(self) -> torch.Tensor:
        """[V, H]."""
        table: torch.Tensor = self.model.get_output_embeddings().weight.detach()
        return table.float()

    def check(self, questions: Sequence[Question]) -> None:
        """Raises InputError for prompts that write the picture's place themselves."""
        token = self.processor.image_token
        for question in questions:
            if token in question.prompt:
                raise InputError(
                    f"prompt '{question.prompt[:60]}' contains {token}; leave it out: the chat "
                    "template puts the picture of 'image' in its place"
                )

    @torch.no_grad()
    def answer(
        self, questions: Sequence[Question], limit: int, temperature: float = 0.0, seed: int = 0
    ) -> list[list[int]]:
        """The target's own answers as token ids, end-of-sequence token included.

        Raises InputError where a prompt leaves no room for an answer in the target's context.
        """
        inputs = self._inputs(questions)
        prompts = inputs["attention_mask"].sum(1).tolist()
        room = self.context - inputs["input_ids"].shape[1]
        if room < 2:
            longest = questions[prompts.index(max(prompts))]
            raise InputError(
                f"prompt '{longest.prompt[:60]}' takes {max(prompts)} tokens of the target's "
                f"context of {self.context}; there is no room for an answer"
            )
        draw: dict[str, Any] = {"do_sample": False}
        if temperature:
            draw = {"do_sample": True, "temperature": temperature, "top_k": 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            whole = self.model.generate(**inputs, max_new_tokens=min(limit, room), **draw)
        rows = whole[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._cut(row) for row in rows]

    @torch.no_grad()
    def study(
        self,
        questions: Sequence[Question],
        answers: Sequence[Sequence[int]],
        feature_layers: Sequence[int] = (),
    ) -> list[Sample]:
        """Runs the target over questions with their answers; one Sample each."""
        inputs = self._inputs(questions)
        real = inputs["attention_mask"].bool()
        asked = [ids[keep].tolist() for ids, keep in zip(inputs["input_ids"], real, strict=True)]
        whole = [[*q, *map(int, a)] for q, a in zip(asked, answers, strict=True)]
        width = max(map(len, whole))
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in whole])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in whole])
        extra = {"pixel_values": inputs["pixel_values"]} if "pixel_values" in inputs else {}
        seen = self._shown(ids.to(self.device), mask.to(self.device), extra, feature_layers)
        features = torch.cat([seen[k] for k in feature_layers or (-1,)], -1)
        pictures = (
            torch.split(inputs["pixel_values"], [int(q.image is not None) for q in questions])
            if extra
            else [None] * len(questions)
        )
        samples = []
        for row, (all_ids, prompt) in enumerate(zip(whole, map(len, asked), strict=True)):
            length = len(all_ids)
            known = seen[-1][row, prompt : length - 1]
            samples.append(
                Sample(
                    ids=torch.tensor(all_ids, device=self.device),
                    spans=spans_of(all_ids, self.image_token),
                    prompt=prompt,
                    embeds=seen[0][row, :length],
                    features=features[row, :length],
                    logits=known @ self.head.T,
                    states=known,
                    pixels=pictures[row],
                )
            )
        return samples

    def _shown(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        extra: dict[str, torch.Tensor],
        layers: Sequence[int],
    ) -> dict[int, torch.Tensor]:
        """One pass: the embeddings (0), what enters each of ``layers``, the last normed state (-1).

        Only these are kept: all hidden states of a 7B target would be 0.5 GB a sample.
        """
        seen: dict[int, torch.Tensor] = {}
        decoder = self.model.get_decoder()

        def before(index: int) -> Callable[..., None]:
            def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen[index] = (args[0] if args else kwargs["hidden_states"]).float()

            return keep

        def after(module: Any, args: Any, out: torch.Tensor) -> None:
            seen[-1] = out.float()

        hooks = [
            decoder.layers[k].register_forward_pre_hook(before(k), with_kwargs=True)
            for k in {0, *layers}
        ]
        hooks.append(decoder.norm.register_forward_hook(after))
        try:
            self.model(
                input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1, **extra
            )
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def _inputs(self, questions: Sequence[Question]) -> dict[str, Any]:
        texts, images = [], []
        for question in questions:
            content = [{"type": "image"}] if question.image else []
            text = {"type": "text", "text": question.prompt}
            message = [{"role": "user", "content": [*content, text]}]
            texts.append(self.processor.apply_chat_template(message, add_generation_prompt=True))
            if question.image:
                images.append(_picture(question.image))
        prepared = self.processor(
            images=images or None, text=texts, padding=True, return_tensors="pt"
        )
        return {
            name: value.to(self.device)
            for name, value in prepared.items()
            if name in ("input_ids", "attention_mask", "pixel_values")
        }

    def _cut(self, row: Sequence[int]) -> list[int]:
        ends = [i for i, token in enumerate(row) if token in self.eos]
        return list(row[: ends[0] + 1] if ends else row)


def spans_of(ids: Sequence[int], image_token: int) -> tuple[tuple[int, int], ...]:
    """Runs [start, end) of image tokens."""
    spans: list[tuple[int, int]] = []
    for i, token in enumerate(ids):
        if token != image_token:
            continue
        if spans and spans[-1][1] == i:
            spans[-1] = (spans[-1][0], i + 1)
        else:
            spans.append((i, i + 1))
    return tuple(spans)


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # the last two: damaged inside
        raise InputError(f"picture '{path}' cannot be read: {error}") from None
