"""A feature-level draft in training: its rows, its rollout, its losses.

Row i of a sample holds the embedding of token i + 1 and the feature of token i. At rollout step j
the draft's own output takes the feature's place, embeddings move on by j tokens, and a row sees the
true rows before it and its own earlier steps (EAGLE-3's training-time test, section 3.3 of the
facts). The same rollout with the target's greedy text tells exactly what a drafted chain of that
depth would have been accepted: as long as it agrees, its tokens are the text's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from edgespec.visual import run_positions
from edgespec_export.distill.settings import Losses
from edgespec_export.distill.teacher import Sample
from edgespec_export.heads.modules import Head


@dataclass(frozen=True)
class Laid:
    """A batch laid out for the draft; N rows, A of which continue answer tokens."""

    rows: torch.Tensor
    """[B, N, D] layer inputs, padded at the end."""
    positions: torch.Tensor
    start: torch.Tensor
    """[B]: row that continues the first answer token; the sample's answer rows follow it."""
    offset: torch.Tensor | None
    """[B, 1, H]: ViSpec's global vector of the last image."""
    answers: torch.Tensor
    """[B]: answer rows of every sample."""


class HeadStudent(nn.Module):
    """Wraps a head so that one forward is one training step's loss.

    Of a trimmed output head the loss knows only the tokens that it has, and only rows whose best
    token is among them (EAGLE-3).
    """

    def __init__(self, head: Head, losses: Losses) -> None:
        super().__init__()
        self.head = head
        self.losses = losses

    @property
    def vocabulary(self) -> torch.Tensor | None:
        """[V_d]: the target's id of every row of a trimmed output head; None where it is whole."""
        if not self.head.geometry.draft_vocab:
            return None
        offsets = self.head.get_buffer("d2t")
        return torch.arange(len(offsets), device=offsets.device) + offsets

    def forward(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, figures by name) of a batch."""
        losses = self.losses
        total, weight = torch.zeros((), device=samples[0].embeds.device), 0.0
        figures: dict[str, torch.Tensor] = {}
        wanted = pad_sequence([s.logits for s in samples], batch_first=True)
        states = pad_sequence([s.states for s in samples], batch_first=True)
        for step, (out, valid) in enumerate(self.rollout(samples, losses.rollout)):
            logits, target = self._known(self.head.logits(out[valid]), wanted[:, step:][valid])
            parts = {"logit": soft_cross_entropy(logits, target)}
            if losses.feature and self.head.geometry.variant != "eagle3":
                parts["feature"] = functional.smooth_l1_loss(out[valid], states[:, step:][valid])
            if losses.rank:
                parts["rank"] = list_mle(logits, target)
            scale = losses.decay**step
            total = total + scale * sum(getattr(losses, name) * v for name, v in parts.items())
            weight += scale
            if step == 0:
                agree = (logits.argmax(-1) == target.argmax(-1)).float().sum() / max(1, len(target))
                figures = {"agree": agree, **{k: v.detach() for k, v in parts.items()}}
        return total / weight, figures

    @torch.no_grad()
    def matches(self, samples: Sequence[Sample], depth: int) -> list[torch.Tensor]:
        """Per sample [A, depth] bool: is token j of a greedy chain after answer token a the
        text's, all before it given?"""
        text, vocabulary = _continuations(samples), self.vocabulary
        found = torch.zeros(*text.shape, depth, dtype=torch.bool)
        for step, (out, valid) in enumerate(self.rollout(samples, depth - 1)):
            best = self.head.logits(out).argmax(-1)
            ids = best if vocabulary is None else vocabulary[best]
            hit = (ids == text[:, step:]) & valid
            found[:, : hit.shape[1], step] = hit.cpu()
        return [found[i, : s.answers] for i, s in enumerate(samples)]

    def _known(
        self, logits: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both over the draft's vocabulary, rows whose best token lies outside it left out."""
        vocabulary = self.vocabulary
        if vocabulary is None:
            return logits, target
        inside = torch.isin(target.argmax(-1), vocabulary)
        return logits[inside], target[inside][:, vocabulary]

    def rollout(
        self, samples: Sequence[Sample], steps: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (outputs [B, A - j, H], valid [B, A - j]) of the first pass and each step j."""
        head = self.head
        laid = lay_out(head, samples)
        device = laid.rows.device
        count = int(laid.answers.max())
        each = torch.arange(count, device=device)
        rows = (laid.start[:, None] + each).clamp(max=laid.rows.shape[1] - 1)  # [B, A]
        batch = torch.arange(len(samples), device=device)[:, None]
        causal = torch.tril(torch.ones(laid.rows.shape[1:2] * 2, dtype=torch.bool, device=device))
        out, memory = head.layer(laid.rows, laid.positions, causal[None, None])
        out = out[batch, rows]
        seen = causal[rows][:, None]  # [B, 1, A, N]
        where = laid.positions[batch, rows]
        said = _continuations(samples)
        yield out, each < laid.answers[:, None]
        for step in range(1, steps + 1):
            left = count - step
            if left < 1:
                return
            embeds = head.embed_tokens(said[:, step - 1 : step - 1 + left])
            x = head.rows(embeds, head.feedback(out[:, :left]), laid.offset)
            memory.own = [(k[:, :, :left], v[:, :, :left]) for k, v in memory.own]
            out, memory = head.layer(x, where[:, :left] + step, seen[:, :, :left], memory)
            yield out, each[:left] + step < laid.answers[:, None]


def _continuations(samples: Sequence[Sample]) -> torch.Tensor:
    """[B, A]: the token that follows each answer token but the last."""
    return pad_sequence([s.ids[s.prompt + 1 :] for s in samples], batch_first=True)


def lay_out(head: Head, samples: Sequence[Sample]) -> Laid:
    """Draft rows of every sample, image runs compressed by the head's own rule."""
    parts = [_rows_of(head, sample) for sample in samples]
    rows, positions, offsets = zip(*parts, strict=True)
    answers = [sample.answers for sample in samples]
    # Rows end with the one of the last answer token but one, which continues the last label.
    start = [len(r) - count for r, count in zip(rows, answers, strict=True)]
    device = rows[0].device
    given = [o for o in offsets if o is not None]
    return Laid(
        rows=pad_sequence(list(rows), batch_first=True),
        positions=pad_sequence([torch.tensor(p, device=device) for p in positions], True),
        start=torch.tensor(start, device=device),
        offset=torch.stack(given)[:, None] if given else None,
        answers=torch.tensor(answers, device=device),
    )


def _rows_of(head: Head, sample: Sample) -> tuple[torch.Tensor, list[int], torch.Tensor | None]:
    """(rows [N, D], their positions, the last global vector) of one sample."""
    hidden = head.encode(sample.features)
    pieces: list[torch.Tensor] = []
    positions: list[int] = []
    # What a gate reads: the mean of the prompt's text after its last image, at least its last row.
    asked = min(sample.spans[-1][1], sample.prompt - 1) if sample.spans else 0
    question = hidden[asked : sample.prompt].mean(0)
    vispec = head.geometry.variant == "vispec"
    offset = torch.zeros_like(hidden[0]) if vispec else None

    def text(start: int, end: int) -> None:
        if end > start:
            embeds = sample.embeds[start + 1 : end + 1]
            pieces.append(head.rows(embeds[None], hidden[None, start:end], offset)[0])
            positions.extend(range(start, end))

    at = 0
    for first, behind in sample.spans:
        first = max(first, 1)  # no row holds a prompt's very first token
        start, end = first - 1, behind - 1  # rows are one ahead of their embeddings
        text(at, start)
        run, found = head.image_rows(sample.embeds[first:behind], hidden[start:end], question)
        offset = found if found is not None else offset
        pieces.append(run)
        count = len(run)
        if count == end - start:
            positions.extend(range(start, end))
        else:
            positions += run_positions(head.geometry.position_rule, start, end - start, count)
        at = end
    text(at, len(sample.ids) - 2)
    return torch.cat(pieces), positions, offset


def soft_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over rows of -sum softmax(target) log softmax(logits); 0 where there are none."""
    if not len(logits):
        return logits.sum()
    return functional.cross_entropy(logits, torch.softmax(target, -1))


def list_mle(logits: torch.Tensor, target: torch.Tensor, best: int = 10) -> torch.Tensor:
    """Negative log-likelihood of the target's order of its ``best`` tokens under the draft's
    scores (ListMLE, as ViSpec uses it), a mean over rows and places."""
    if not len(logits):
        return logits.sum()
    order = target.topk(min(best, target.shape[-1]), -1).indices
    scores = logits.gather(-1, order)
    remaining = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return (remaining - scores).mean()
