"""From a target's logits to one token: processors and position-keyed noise.

A draw is Gumbel-max: token = argmax(log p + g), with g = g(seed, absolute position, token) from a
counter-based generator (Philox 4x64). The draw at a position therefore does not depend on the tree,
a retry or a replica: speculative sampling reproduces plain sampling token for token with the same
seed (DESIGN, decision 1). Processors follow Hugging Face's order: repetition penalty, temperature,
top-k, top-p, min-p; each node is processed with its own path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import ConfigError

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class SamplingParams:
    """How the target's distribution is processed and drawn from. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0.0 <= self.temperature < float("inf"), "a finite number >= 0"),
            ("top_k", self.top_k >= 0, "an integer >= 0 (0: off)"),
            ("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "in [0, 1]"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < float("inf"), "a number > 0"),
            ("seed", 0 <= self.seed < 2**64, "in [0, 2**64)"),
        )
        for name, fine, wanted in checks:
            if not fine:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {wanted}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def gumbel_noise(seed: int, position: int, size: int) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of the tokens 0..size-1 at one absolute position, [size] float64.

    Token t gets the t-th draw of the Philox stream with key ``seed`` whose counter holds
    ``position`` in its second word, so the value depends on (seed, position, token) alone.
    """
    return _gumbel(_uniform(seed, position, size))


def _uniform(seed: int, position: int, size: int) -> npt.NDArray[np.float64]:
    bits = np.random.Philox(key=seed, counter=[0, position, 0, 0]).random_raw(size)
    # 53 random bits, centred in their cell: never 0 and never 1, so both logarithms are finite.
    uniform: npt.NDArray[np.float64] = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return uniform


def _gumbel(uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


class Noise:
    """One request's noise by position, kept while it may be asked for again: the draft ranks with
    it what the target will draw with it (coupled drafting), and a rejected position is drawn for
    again in the next round."""

    KEPT = 64

    def __init__(self, seed: int, size: int, kept: int = KEPT) -> None:
        """``kept``: positions at most; each takes 8 bytes per token of the vocabulary."""
        self._seed, self._size, self._kept = seed, size, kept
        self._uniform: dict[int, npt.NDArray[np.float64]] = {}

    def at(self, position: int) -> npt.NDArray[np.float64]:
        """``gumbel_noise`` of the request's seed at an absolute position, [V]."""
        return _gumbel(self._drawn(position))

    def roughly(self, position: int) -> npt.NDArray[np.float32]:
        """The same in single precision, which is quick: good enough to guess with."""
        below_one = np.float32(1.0 - 2.0**-24)
        uniform = np.minimum(self._drawn(position).astype(np.float32), below_one)
        noise: npt.NDArray[np.float32] = -np.log(-np.log(uniform))
        return noise

    def _drawn(self, position: int) -> npt.NDArray[np.float64]:
        found = self._uniform.get(position)
        if found is None:
            if len(self._uniform) >= self._kept:
                del self._uniform[min(self._uniform)]  # positions only ever move on
            found = self._uniform[position] = _uniform(self._seed, position, self._size)
        return found


class Sampler:
    """Draws the target's token at a node; one instance per request, shared by every policy."""

    def __init__(
        self, params: SamplingParams, vocab_size: int, noise_kept: int = Noise.KEPT
    ) -> None:
        """``noise_kept``: positions whose noise is kept for the next round."""
        self.params = params
        self.noise = Noise(params.seed, vocab_size, noise_kept)
        self._seen = np.zeros(vocab_size, dtype=np.bool_)

    @property
    def plain_argmax(self) -> bool:
        """Whether ``pick`` is the arg-max of the raw logits, whatever the path."""
        return self.params.greedy and self.params.repetition_penalty == 1.0

    def observe(self, tokens: Iterable[int]) -> None:
        """Records committed tokens (the prompt's included) for the repetition penalty."""
        if self.params.repetition_penalty != 1.0:
            self._seen[np.fromiter(tokens, dtype=np.int64)] = True

    def pick(self, logits: Floats, position: int, path: Sequence[int]) -> int:
        """The target's token after ``path``: argmax, or the seeded draw.

        ``logits`` [V] are the target's raw ones, ``position`` is the absolute index of the token
        being chosen, ``path`` the uncommitted tokens between the root and this node.
        """
        params = self.params
        if params.repetition_penalty != 1.0:
            logits = self._penalised(logits, path)
        if params.greedy:
            return int(logits.argmax())
        scores = process(logits, params)
        return int((scores + self.noise.at(position)).argmax())

    def _penalised(self, logits: Floats, path: Sequence[int]) -> Floats:
        seen = self._seen
        if path:
            seen = seen.copy()
            seen[list(path)] = True
        penalty = self.params.repetition_penalty
        return np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)


def process(logits: Floats, params: SamplingParams) -> npt.NDArray[np.float64]:
    """Temperature, top-k, top-p, min-p: [V] logits -> [V] float64, removed tokens at -inf."""
    scores = logits.astype(np.float64) / params.temperature
    if 0 < params.top_k < scores.shape[0]:
        # Ties with the k-th value stay, as in Hugging Face's TopKLogitsWarper.
        threshold = np.partition(scores, -params.top_k)[-params.top_k]
        scores[scores < threshold] = -np.inf
    if params.top_p < 1.0:
        order = np.argsort(-scores, kind="stable")
        before = np.cumsum(softmax(scores[order])) - softmax(scores[order])
        scores[order[before >= params.top_p]] = -np.inf
    if params.min_p > 0.0:
        scores[scores < scores.max() + np.log(params.min_p)] = -np.inf
    return scores


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities of [V] scores in double precision."""
    weights = np.exp(scores - scores.max())
    probabilities: npt.NDArray[np.float64] = weights / weights.sum()
    return probabilities
