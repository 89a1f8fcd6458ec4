"""A target's own greedy answers, a batch at a time, kept in a JSON-lines file that is added to.

Every answer token comes with the target's most likely tokens at its place and their probabilities,
which teach a draft more than the token alone. A run that was broken off goes on behind the last
whole line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from benchmarks.peers.draft_questions import Asked
from benchmarks.peers.environments import say

if TYPE_CHECKING:
    import torch

LIKELY = 5
"""Tokens that are kept of a place."""


@dataclass(frozen=True)
class Answer:
    """What the target said to one question, all in token ids."""

    kind: str
    text: str
    prompt: list[int]
    answer: list[int]
    """Ended by the end-of-text token, unless the limit was reached before."""
    likely: list[list[int]]
    """[answer tokens, LIKELY] most likely tokens of each place, the likeliest first,"""
    shares: list[list[float]]
    """and their probabilities."""


class Answerer:
    """A checkpoint that is asked."""

    def __init__(self, checkpoint: Path, dtype: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        torch.set_num_threads(threads)
        loader: Any = AutoModelForCausalLM
        self.model = loader.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
        tokenizer: Any = AutoTokenizer
        self.tokenizer = tokenizer.from_pretrained(checkpoint)
        found = GenerationConfig.from_pretrained(checkpoint).eos_token_id
        self.ends = frozenset(found if isinstance(found, list) else [found])

    def prompt(self, text: str) -> list[int]:
        """Ids of a question, in the checkpoint's chat template where it has one."""
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer(text)["input_ids"])
        said = [{"role": "user", "content": text}]
        given = self.tokenizer.apply_chat_template(
            said, add_generation_prompt=True, return_dict=True
        )
        return list(given["input_ids"])

    def answers(self, asked: Sequence[Asked], new: int) -> list[Answer]:
        """Greedy, up to ``new`` tokens each; rows that have ended leave the batch."""
        import torch

        prompts = [self.prompt(question.text) for question in asked]
        said = [Answer(q.kind, q.text, p, [], [], []) for q, p in zip(asked, prompts, strict=True)]
        rows = list(range(len(asked)))
        with torch.inference_mode():
            batch = _Batch(self.model, prompts)
            for place in range(new):
                shares, likely = batch.likeliest(LIKELY)
                for row, ids, values in zip(rows, likely.tolist(), shares.tolist(), strict=True):
                    said[row].answer.append(ids[0])
                    said[row].likely.append(ids)
                    said[row].shares.append([round(value, 4) for value in values])
                kept = [i for i, row in enumerate(rows) if said[row].answer[-1] not in self.ends]
                if not kept or place + 1 == new:
                    break
                rows = [rows[i] for i in kept]
                batch.step(likely[:, 0], kept)
        return said


class _Batch:
    """Prompts of several lengths in one forward pass, padded on the left."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        import torch
        from transformers import DynamicCache

        from edgespec_export.family.generate import cache_argument

        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
        self._mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        self._model, self._cache = model, DynamicCache(config=model.config)
        self._name = cache_argument(model)
        self._forward(ids, (self._mask.cumsum(-1) - 1).clamp(min=0))

    def likeliest(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(probabilities, ids) of the next tokens, [rows, number] each, in falling order."""
        found: tuple[torch.Tensor, torch.Tensor] = self._logits.float().softmax(-1).topk(number)
        return found

    def step(self, tokens: torch.Tensor, kept: list[int]) -> None:
        """One token more for the rows that are ``kept``."""
        import torch

        if len(kept) < len(tokens):
            rows = torch.tensor(kept)
            tokens, self._mask = tokens[rows], self._mask[rows]
            self._cache.batch_select_indices(rows)
        self._mask = torch.cat([self._mask, torch.ones_like(tokens[:, None])], dim=1)
        self._forward(tokens[:, None], self._mask.sum(-1, keepdim=True) - 1)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> None:
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            logits_to_keep=1,
            **{self._name: self._cache},
        )
        self._logits = out.logits[:, -1]


def read_answers(file: Path) -> Iterator[Answer]:
    """The whole lines of a file, which need not be there."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
        yield Answer(**json.loads(line))


def answer_all(
    asked: Sequence[Asked],
    file: Path,
    checkpoint: Path,
    *,
    new: int = 128,
    batch: int = 64,
    dtype: str = "bfloat16",
    threads: int = 2,
    minutes: float | None = None,
) -> list[Answer]:
    """The answers to ``asked``: those that the file holds, and the others, which are added to it
    until ``minutes`` have passed (None: all of them)."""
    wanted = {question.text for question in asked}
    known = {a.text: a for a in read_answers(file) if a.text in wanted}
    left = [question for question in asked if question.text not in known]
    if left:
        _drop_unfinished(file)
        answerer, began = Answerer(checkpoint, dtype, threads), monotonic()
        with file.open("a", encoding="utf-8") as out:
            for start in range(0, len(left), batch):
                spent = monotonic() - began
                if minutes is not None and spent > 60 * minutes:
                    break
                for answer in answerer.answers(left[start : start + batch], new):
                    known[answer.text] = answer
                    out.write(json.dumps(asdict(answer), separators=(",", ":")) + "\n")
                out.flush()
                tokens = sum(len(a.answer) for a in known.values())
                say(f"{len(known)} of {len(asked)} answers, {tokens} tokens, {spent:.0f} s")
    return [known[question.text] for question in asked if question.text in known]


def _drop_unfinished(file: Path) -> None:
    """Takes off what a broken-off run left behind the last whole line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        content = file.read_bytes()
        file.write_bytes(content[: content.rfind(b"\n") + 1])
