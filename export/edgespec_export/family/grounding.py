"""Teach one attention layer where to look.

Finding an object by its place, or a place by its object, takes a small text model thousands of
steps to discover by itself. The scene's record knows the answer, so two heads of one layer are
asked to look at the right patches whenever an answer names an object or its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from edgespec_export.family.models import Llava
from edgespec_export.family.objects import PLACES, objects
from edgespec_export.family.packing import IGNORE, Packed, Writer

COPIERS = 2
"""How many heads, each of its own key-value group, are taught where to look."""


@dataclass(frozen=True)
class Gaze:
    """Places of a batch that should look somewhere: row and column [N], patches [N, P] bool."""

    rows: torch.Tensor
    columns: torch.Tensor
    patches: torch.Tensor


class Glossary:
    """The tokens that name objects and places."""

    def __init__(self, writer: Writer) -> None:
        self.offset = len(writer.encode("USER: ")) + 1
        self.kinds: dict[int, int] = {}
        for kind, thing in enumerate(objects()):
            for form in (thing.plural, thing.name):
                for text in (f" {form}", form, f" {form.capitalize()}"):
                    ids = writer.encode(text)
                    if len(ids) == 1:
                        self.kinds[ids[0]] = kind
        places = [(tuple(writer.encode(f" {place}")), cell) for cell, place in enumerate(PLACES)]
        self.places = sorted(places, key=lambda item: -len(item[0]))

    def gaze(
        self, packed: Packed, shown: Sequence[NDArray[np.int64] | None], *, pooled: bool = False
    ) -> Gaze:
        """Where each answer token of each row should look; `shown` holds patch labels [2, P].

        With `pooled` the visual tokens are those of the draft, averaged 2 x 2.
        """
        rows: list[int] = []
        columns: list[int] = []
        patches: list[NDArray[np.bool_]] = []
        for row, truth in enumerate(shown):
            if truth is None:
                continue
            labels = packed.labels[row].tolist()
            for column, wanted in self._looks(labels, truth):
                if wanted.any():
                    rows.append(row)
                    columns.append(column)
                    patches.append(_pooled(wanted) if pooled else wanted)
        return Gaze(torch.tensor(rows), torch.tensor(columns), torch.from_numpy(np.stack(patches)))

    def _looks(
        self, labels: list[int], truth: NDArray[np.int64]
    ) -> list[tuple[int, NDArray[np.bool_]]]:
        what, where = truth
        found = []
        at = 0
        while at < len(labels):
            token = labels[at]
            if token == IGNORE:
                at += 1
                continue
            for ids, cell in self.places:
                if tuple(labels[at : at + len(ids)]) == ids:
                    wanted = (where == cell) & (what < len(objects()))
                    found += [(at + k, wanted) for k in range(len(ids))]
                    at += len(ids)
                    break
            else:
                if token in self.kinds:
                    found.append((at, what == self.kinds[token]))
                at += 1
        return found


def _pooled(patches: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[n * n] -> [n * n / 4]: a pooled token is right where one of its four patches is."""
    half = round(patches.size**0.5) // 2
    grid = np.logical_or.reduce(patches.reshape(half, 2, half, 2), axis=(1, 3))
    return np.asarray(grid, np.bool_).reshape(-1)


def gaze_loss(
    model: Llava,
    layer: int,
    states: torch.Tensor,
    packed: Packed,
    gaze: Gaze,
    offset: int,
) -> torch.Tensor:
    """Minus the log of the attention that two heads of a layer pay to the right patches.

    `states` [B, S, H] are the inputs of that layer; the visual tokens begin at `offset`.
    """
    text = model.model.language_model
    block = text.layers[layer]
    plain = block.input_layernorm(states)
    batch, length, _ = plain.shape
    size = block.self_attn.head_dim
    query = block.self_attn.q_proj(plain).view(batch, length, -1, size).transpose(1, 2)
    key = block.self_attn.k_proj(plain).view(batch, length, -1, size).transpose(1, 2)
    cos, sin = text.rotary_emb(plain, packed.positions.to(plain.device))
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    share = query.shape[1] // key.shape[1]
    loss = states.new_zeros(())
    seen = packed.mask[gaze.rows, 0, gaze.columns].to(plain.device)
    for group in range(min(key.shape[1], COPIERS)):
        # Every pair of tokens, then the wanted ones: gathering keys by row would repeat indices,
        # and the gradient of that is not summed in a fixed order.
        every = query[:, group * share] @ key[:, group].transpose(1, 2) / size**0.5
        scores = every[gaze.rows, gaze.columns]
        logs = scores.masked_fill(~seen, float("-inf")).log_softmax(-1)
        right = logs[:, offset : offset + gaze.patches.shape[1]]
        right = right.masked_fill(~gaze.patches.to(plain.device), float("-inf"))
        loss = loss - right.logsumexp(-1).mean()
    return loss / COPIERS
