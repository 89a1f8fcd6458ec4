"""Training rows: one image prefix shared by several independent conversations.

The visual tokens of a picture are paid once: conversations follow each other in a row, each sees
the prefix and itself only, and each starts at the position right after the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgespec_export.family.sentences import Exchange
from edgespec_export.family.tokenizer import Words, words

IGNORE = -100


@dataclass(frozen=True)
class Conversation:
    """Token ids of one conversation, and which of them belong to an answer."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]


@dataclass(frozen=True)
class Row:
    """A prefix (with its image tokens) and the conversations that share it."""

    prefix: tuple[int, ...]
    conversations: tuple[Conversation, ...]


@dataclass(frozen=True)
class Packed:
    """A batch of rows: ids, positions, labels are [B, S]; mask is [B, 1, S, S], True = may attend.

    A label is the next token where that token is part of an answer, else IGNORE.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor


class Writer:
    """Turns exchanges into token ids in the format of the chat template."""

    def __init__(self, tokenizer: Tokenizer, visual_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.words: Words = words(tokenizer)
        self.visual_tokens = visual_tokens

    def encode(self, text: str) -> list[int]:
        """Token ids without a leading BOS."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prefix(self, images: int) -> tuple[int, ...]:
        """BOS, "USER:" and the visual tokens of the pictures."""
        start = [self.words.bos, *self.encode("USER:")]
        if images == 0:
            return tuple(start)
        picture = [*[self.words.image] * self.visual_tokens, *self.encode("\n")]
        return (*start, *self.encode(" "), *picture * images)

    def prompt(self, text: str, *, images: int) -> list[int]:
        """What follows the prefix until the answer begins."""
        return self.encode(f"{text if images else ' ' + text} ASSISTANT:")

    def conversation(self, exchanges: Sequence[Exchange], *, images: int) -> Conversation:
        """One conversation of one or more turns."""
        ids: list[int] = []
        answer: list[bool] = []
        for turn, exchange in enumerate(exchanges):
            asked = self.prompt(exchange.prompt, images=images)
            if turn:
                asked = self.encode(f"USER: {exchange.prompt} ASSISTANT:")
            said = [*self.encode(f" {exchange.answer}"), self.words.eos]
            ids += asked + said
            answer += [False] * len(asked) + [True] * len(said)
        return Conversation(tuple(ids), tuple(answer))


def pack(rows: Sequence[Row], pad: int) -> Packed:
    """Lay rows out as tensors, padded to the longest."""
    length = max(len(row.prefix) + sum(len(c.ids) for c in row.conversations) for row in rows)
    ids = np.full((len(rows), length), pad, np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    labels = np.full((len(rows), length), IGNORE, np.int64)
    branch = np.full((len(rows), length), -1, np.int64)
    for r, row in enumerate(rows):
        end = len(row.prefix)
        ids[r, :end], positions[r, :end], branch[r, :end] = row.prefix, np.arange(end), 0
        for number, conversation in enumerate(row.conversations, 1):
            begin, end = end, end + len(conversation.ids)
            ids[r, begin:end] = conversation.ids
            positions[r, begin:end] = len(row.prefix) + np.arange(end - begin)
            branch[r, begin:end] = number
            following = np.where(conversation.answer, conversation.ids, IGNORE)
            labels[r, begin : end - 1] = following[1:]
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(labels),
        torch.from_numpy(_mask(branch)),
    )


def _mask(branch: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[B, S] conversation numbers (0 = prefix, -1 = padding) -> [B, 1, S, S], True = may attend."""
    length = branch.shape[1]
    causal = np.tril(np.ones((length, length), np.bool_))
    same = branch[:, :, None] == branch[:, None, :]
    shared = (branch[:, None, :] == 0) & (branch[:, :, None] > 0)
    allowed: NDArray[np.bool_] = ((same | shared) & causal)[:, None]
    return allowed
