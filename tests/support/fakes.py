"""Stand-ins behind the contracts: toy sessions, a scripted verifier, a scripted draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict, walk
from edgespec.sampling import Sampler, SamplingParams
from edgespec.sizing import Growth, Policy, Root, Setting, Sizer
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_runtime.drafts import Answered, Drafter
from edgespec_runtime.drafts.coupling import Coupling
from edgespec_runtime.drafts.growing import Chain
from edgespec_runtime.drafts.vlm import VlmDraft
from edgespec_runtime.kv import CacheShape, KVCache
from edgespec_runtime.verifiers import LocalVerifier, Meanwhile

Floats = npt.NDArray[np.float32]
Path = Sequence[int]
LAYERS = 2


class ToySession:
    """A StepSession that computes nothing but what a row may see.

    The cache holds (token, position, layer, key or value) and a row's logits are a function of
    exactly the rows it may attend to: one wrong mask bit, position or committed row changes them.
    """

    def __init__(self, vocab: int, seed: int, *, top_k: int = 0, disagree: float = 0.0) -> None:
        """``top_k`` > 0 makes it a draft's session, which replaces every ``disagree``-th row."""
        self.cache = KVCache(CacheShape(LAYERS, 1, 2), 256)
        self.engine_s = 0.0
        self.calls: list[int] = []
        self._vocab, self._seed = vocab, seed
        self._top_k, self._disagree = top_k, disagree
        self._temperature = 1.0

    def set_temperature(self, temperature: float) -> None:
        self._temperature = temperature

    def step(
        self,
        embeds: Floats,
        positions: Sequence[int] | npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        last_only: bool = False,
        *,
        hidden: Floats | None = None,
        offset: Floats | None = None,
        noise: Floats | None = None,
    ) -> list[npt.NDArray[Any]]:
        rows, used = len(embeds), self.cache.used
        assert mask.shape == (rows, used + rows), f"mask {mask.shape}, {used} used + {rows} new"
        assert used + rows <= self.cache.capacity, "the cache is too small"
        new = self.cache.rows[:, :, 0, 0, used : used + rows]  # [layers, 2, rows, 2]
        new[..., 0], new[..., 1] = embeds[:, 0], np.asarray(list(positions), dtype=np.float32)
        new[1:] += 0.5  # layers and values differ, so that a commit that skips some is seen
        new[:, 1] += 0.25
        self.cache.pending += rows
        self.calls.append(rows)
        logits = np.stack([self._logits(used + i, mask[i]) for i in range(rows)])
        logits = logits[-1:] if last_only else logits
        if not self._top_k:
            return [logits]
        scores = logits / np.float32(self._temperature) + (0.0 if noise is None else noise)
        shifted = scores - scores.max(axis=-1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        ids = np.argsort(-logprobs, axis=-1, kind="stable")[:, : self._top_k]
        return [np.take_along_axis(logprobs, ids, axis=-1), ids]

    def _logits(self, row: int, visible: npt.NDArray[np.bool_]) -> Floats:
        assert visible[row], "a row must see itself"
        seen = self.cache.rows[:, :, 0, 0, : len(visible)][:, :, visible]
        seen = seen[:, :, np.argsort(seen[0, 0, :, 1], kind="stable")]  # attention knows no order
        own = self.cache.rows[:, :, 0, 0, row]
        key = np.frombuffer(seen.tobytes() + own.tobytes(), dtype=np.uint32)
        # Seeded with an array: a list of the same numbers takes ten times as long.
        logits = np.random.default_rng(_words(self._seed, key)).standard_normal(self._vocab)
        if self._disagree:
            noise = np.random.default_rng(_words(self._seed + 1, key))
            if noise.random() < self._disagree:
                logits = noise.standard_normal(self._vocab)
        return (2.0 * logits).astype(np.float32)


def _words(seed: int, key: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return np.concatenate([np.array([seed], dtype=np.uint32), key])


class ToyChain:
    """A chain graph's session over a toy draft: ``steps`` levels a call, each level fed with the
    best token of the one before; its own rows are appended behind the given ones."""

    def __init__(self, session: ToySession, steps: int) -> None:
        self.cache = session.cache
        self.engine_s = 0.0
        self._session, self._steps = session, steps

    def set_temperature(self, temperature: float) -> None:
        self._session.set_temperature(temperature)

    def step(
        self,
        embeds: Floats,
        positions: Sequence[int] | npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        last_only: bool = False,
        *,
        hidden: Floats | None = None,
        offset: Floats | None = None,
        noise: Floats | None = None,
    ) -> list[npt.NDArray[Any]]:
        assert noise is None or len(noise) == self._steps, "a row of noise for every step"
        rows = [None if noise is None else noise[i : i + 1] for i in range(self._steps)]
        outputs = [self._session.step(embeds, positions, mask, last_only=True, noise=rows[0])]
        for ahead in range(1, self._steps):
            token = np.array([[outputs[-1][1][0, 0]]], dtype=np.float32)
            all_seen = np.ones((1, self.cache.used + 1), dtype=np.bool_)
            where = [positions[-1] + ahead]
            outputs.append(self._session.step(token, where, all_seen, noise=rows[ahead]))
        return [np.concatenate(level) for level in zip(*outputs, strict=True)]


def toy_table(vocab: int) -> Floats:
    """An embedding table whose rows tell ToySession the token."""
    return np.arange(vocab, dtype=np.float32)[:, None]


def toy_verifier(
    prompt: Sequence[int], vocab: int, params: SamplingParams, seed: int = 7
) -> LocalVerifier:
    """The real LocalVerifier over a toy target."""
    table = toy_table(vocab)
    session = ToySession(vocab, seed)
    ids = list(prompt)
    return LocalVerifier(session, table, lambda: table[ids], ids, Sampler(params, vocab))


def toy_draft(
    prompt: Sequence[int],
    vocab: int,
    seed: int = 7,
    top_k: int = 4,
    disagree: float = 0.3,
    *,
    chain_steps: int = 0,
    coupling: Coupling | None = None,
) -> VlmDraft:
    """The real VlmDraft over a toy draft that agrees with the toy target now and then."""
    table = toy_table(vocab)
    session = ToySession(vocab, seed, top_k=min(top_k, vocab), disagree=disagree)
    chain = Chain(ToyChain(session, chain_steps), chain_steps) if chain_steps else None
    return VlmDraft(session, table, lambda: table[list(prompt)], 10_000, chain, coupling)


class ScriptedVerifier:
    """The target is a function from the tokens so far to the next one."""

    engine_s = 0.0

    def __init__(self, target: Callable[[Path], int]) -> None:
        self._target = target
        self.committed: list[int] = []
        self.trees: list[TokenTree] = []

    @property
    def context(self) -> int:
        return len(self.committed) - 1  # as of a prompt without a token

    def begin(self) -> Verdict:
        self.committed.append(self._target(()))
        return Verdict((), (self.committed[-1],))

    def close(self) -> None:
        self.closed = True

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        self.trees.append(tree)
        verdict = walk(tree, lambda row, path: self._target((*self.committed, *path)))
        self.committed += verdict.tokens
        return verdict


class ScriptedDraft:
    """Proposes what a function says: rows (parent index or ROOT, token, log-probability)."""

    engine_s = 0.0
    ready = 0

    def __init__(self, propose: Callable[[Path, int], Sequence[tuple[int, int, float]]]) -> None:
        self._propose = propose
        self._candidates = Candidates()
        self.prepared = False
        self.unseen = 0
        self.calls: tuple[int, ...] = ()
        self.committed: list[int] = []
        self.roots: list[Root] = []
        self.accepted: list[tuple[int, ...]] = []

    @property
    def depths_left(self) -> list[int]:
        return [root.depth_left for root in self.roots]

    def begin(self, first: Verdict) -> None:
        assert not self.committed, "a draft begins once"
        self.committed += first.tokens
        self.unseen = len(first.tokens)

    def prepare(self) -> None:
        assert self.committed, "a draft begins before it is prepared"
        assert not self.prepared, "a draft is prepared once"
        self.prepared = True

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        assert self.prepared, "a draft is prepared before it grows"
        assert growth is not Growth.NONE
        assert root.unseen == self.unseen, "the sizer was told of other rows"
        self.roots.append(root)
        self.calls, self.unseen = (self.unseen,), 0
        self._candidates = Candidates()
        for parent, token, logprob in self._propose(tuple(self.committed), root.depth_left):
            self._candidates.extend(parent, [token], [logprob])
        return self._candidates

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        """Nothing to do ahead."""

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        indices = tuple(chosen[row - 1] for row in verdict.rows)
        tokens = tuple(self._candidates.tokens[i] for i in indices)
        assert tokens == verdict.tokens[: len(indices)], "accepted rows carry other tokens"
        self.accepted.append(indices)
        self.committed += verdict.tokens
        self.unseen += len(verdict.tokens)


def grown_by(draft: Drafter, policy: Policy, depth_left: int, *, context: int = 0) -> Candidates:
    """What ``draft``, begun, proposes step by step for a new sizer of ``policy``; ``context``
    matters where it is coupled."""
    if not draft.prepared:
        draft.prepare()
    root = Root(depth_left, context, draft.unseen, prepared=True, emitted=1)
    return draft.grow(policy.start(Setting()), Growth.STEPS, root)


def chain(tokens: Sequence[int], logprob: float = -0.1) -> list[tuple[int, int, float]]:
    """Rows of a ScriptedDraft: one path below the root."""
    return [(i - 1 if i else ROOT, token, logprob) for i, token in enumerate(tokens)]


def random_tree(rng: np.random.Generator, nodes: int, vocab: int) -> TokenTree:
    """Any shape: every node hangs below a random earlier row, siblings differ."""
    tokens: list[int] = []
    parents: list[int] = []
    taken: set[tuple[int, int]] = set()
    while len(tokens) < nodes:
        parent, token = int(rng.integers(len(tokens) + 1)), int(rng.integers(vocab))
        if (parent, token) not in taken:
            taken.add((parent, token))
            parents.append(parent)
            tokens.append(token)
    return TokenTree.build(tokens, parents)
