"""Coupled drafting: a draft that ranks its tokens with the target's own noise, graph and engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import EngineError
from edgespec.sampling import Sampler, SamplingParams, gumbel_noise
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.vocabulary import write_frequencies
from edgespec_runtime.engines import StepSession, open_engine
from edgespec_runtime.kv import KVCache
from edgespec_runtime.prefill import causal_mask, prefill
from tests.support.zoo import HAS_NATIVE, NATIVE_REASON, Zoo

Floats = npt.NDArray[np.float32]

ROWS = 3
PREFIX = 4
TEMPERATURE = 2.5
KINDS = [
    ("vlm", "ort"), ("eaglevlm", "ort"), ("vispec", "ort"), ("eagle3", "ort"),
    *(pytest.param(kind, "native", marks=pytest.mark.skipif(not HAS_NATIVE, reason=NATIVE_REASON))
      for kind in ("vlm", "eagle3")),
    ("vlm", "portable"), ("vispec", "portable"),
]  # fmt: skip


class Draft:
    """A bundle's draft on random rows behind a random prefix."""

    def __init__(self, bundle: Path) -> None:
        self.bundle: Bundle = read_bundle(bundle, check_hashes=False)
        graph = self.bundle.manifest.graph("draft")
        assert graph is not None
        self.meta = graph.meta
        self.proposed = int(self.meta["proposed"])
        self.table: Floats = np.load(bundle / "draft.embed.npy")
        self.head = any(tensor.name == "hidden" for tensor in graph.inputs)
        rng = np.random.default_rng(3)
        width = int(self.meta["hidden"])
        self.prefix = self.table[rng.integers(4, 300, PREFIX)]
        self.embeds = self.table[rng.integers(4, 300, ROWS)]
        self._hidden = rng.standard_normal((PREFIX + ROWS, width), dtype=np.float32)
        self.noise = rng.gumbel(size=(ROWS, self.proposed)).astype(np.float32)

    def open(
        self, role: str, outputs: tuple[str, ...], cache: KVCache | None = None
    ) -> StepSession:
        spec = self.bundle.manifest.graph(role)
        assert spec is not None
        graph = open_engine("ort", threads=1).load_step(spec, self.bundle.path)
        return graph.open(64, outputs, cache)

    def prefilled(self) -> StepSession:
        session = self.open("draft", ("logits", "topk_logprobs", "topk_ids"))
        prefill(session, self.prefix, hidden=self.hidden(0, PREFIX))
        return session

    def hidden(self, start: int, end: int) -> Floats | None:
        return self._hidden[start:end] if self.head else None

    def run(self, session: StepSession, **more: Any) -> list[Any]:
        """The rows' logits, scores and ids; the cache is as before."""
        found = session.step(
            self.embeds, range(PREFIX, PREFIX + ROWS), causal_mask(PREFIX, ROWS),
            hidden=self.hidden(PREFIX, PREFIX + ROWS), **more,
        )  # fmt: skip
        session.cache.commit(())
        return [array.copy() for array in found]


def bundle_of(zoo: Zoo, kind: str, lowering: str) -> Path:
    if kind == "vlm":
        return zoo.bundle("gqa", "shared", lowering)
    return zoo.head_bundle("gqa", kind, lowering=lowering)


def best(scores: npt.NDArray[Any], count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The ``count`` best of the log-softmax of [R, V_d] scores, in double precision."""
    scores = scores.astype(np.float64)
    shifted = scores - scores.max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    ids = np.argsort(-logprobs, axis=-1)[:, :count]
    return np.take_along_axis(logprobs, ids, axis=-1), ids


@pytest.mark.parametrize("kind, lowering", KINDS)
def test_candidates_are_the_best_of_the_noisy_scores(zoo: Zoo, kind: str, lowering: str) -> None:
    draft = Draft(bundle_of(zoo, kind, lowering))
    session = draft.prefilled()
    plain = draft.run(session)
    top_k = int(draft.meta["top_k"])
    session.set_temperature(TEMPERATURE)
    for noise, last_only in (
        (draft.noise, False),  # a row each
        (draft.noise[:1], False),  # one that all rows share
        (draft.noise[:1], True),
    ):
        logits, scores, ids = draft.run(session, noise=noise, last_only=last_only)
        raw = plain[0][-1:] if last_only else plain[0]
        np.testing.assert_allclose(logits, raw, atol=1e-5)
        wanted, expected = best(raw / TEMPERATURE + noise, top_k)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(scores, wanted, atol=1e-4)
        assert not np.array_equal(ids, plain[2][-len(ids) :]), "the noise changed nothing"


@pytest.mark.parametrize("kind, lowering", KINDS)
def test_noise_holds_for_one_call(zoo: Zoo, kind: str, lowering: str) -> None:
    draft = Draft(bundle_of(zoo, kind, lowering))
    session = draft.prefilled()
    plain = draft.run(session)
    np.testing.assert_array_equal(plain[2], best(plain[0], plain[2].shape[1])[1])
    session.set_temperature(TEMPERATURE)
    draft.run(session, noise=draft.noise)
    session.set_temperature(1.0)
    for before, after in zip(plain, draft.run(session), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", ["vlm", "eaglevlm", "eagle3"])
def test_a_coupled_chain_follows_its_noisy_best(zoo: Zoo, kind: str) -> None:
    """Every step of the chain gives what the step graph gives, fed with the token drawn before."""
    draft = Draft(bundle_of(zoo, kind, "ort"))
    outputs = ("topk_logprobs", "topk_ids", *(("feedback",) if draft.head else ()))
    session = draft.open("draft", outputs)
    prefill(session, draft.prefix, hidden=draft.hidden(0, PREFIX))
    chain = draft.open("draft_chain", outputs, session.cache)
    spec = draft.bundle.manifest.graph("draft_chain")
    assert spec is not None
    steps = int(spec.meta["steps"])
    noise = np.random.default_rng(4).gumbel(size=(steps, draft.proposed)).astype(np.float32)
    for opened in (session, chain):
        opened.set_temperature(TEMPERATURE)
    embeds, hidden = draft.embeds[:1], draft.hidden(PREFIX, PREFIX + 1)
    found = chain.step(embeds, [PREFIX], causal_mask(PREFIX, 1), hidden=hidden, noise=noise)
    session.cache.commit(())
    for step in range(steps):
        used = session.cache.used
        scores, ids, *more = session.step(
            embeds, [used], causal_mask(used, 1), hidden=hidden, noise=noise[step : step + 1]
        )
        np.testing.assert_array_equal(ids[0], found[1][step])
        np.testing.assert_allclose(scores[0], found[0][step], atol=1e-3)
        embeds = draft.table[ids[:, 0]]
        hidden = more[0].copy() if more else None
    if hidden is not None:
        np.testing.assert_allclose(found[2], hidden, rtol=1e-4, atol=1e-3)


def test_a_draft_that_is_its_target_proposes_what_the_target_draws(
    zoo: Zoo, tmp_path: Path
) -> None:
    source = str(zoo.checkpoint("gqa"))
    export_bundle(ExportRequest(source, tmp_path / "b", source))
    draft = Draft(tmp_path / "b")
    session = draft.prefilled()
    logits = draft.run(session)[0]
    session.set_temperature(TEMPERATURE)
    drawn = set()
    for seed in range(20):
        sampler = Sampler(SamplingParams(temperature=TEMPERATURE, seed=seed), draft.proposed)
        positions = range(PREFIX + 1, PREFIX + 1 + ROWS)
        rows = [gumbel_noise(seed, position, draft.proposed) for position in positions]
        ids = draft.run(session, noise=np.stack(rows).astype(np.float32))[2]
        wanted = [sampler.pick(logits[i], p, ()) for i, p in enumerate(positions)]
        assert ids[:, 0].tolist() == wanted
        drawn.update(wanted)
    assert len(drawn) > 10, "the draws hardly differ: this test shows nothing"


def test_a_trimmed_draft_says_which_tokens_its_noise_is_for(zoo: Zoo, tmp_path: Path) -> None:
    kept = {7: 9, 300: 5, 41: 3, 12: 2, 99: 1}
    write_frequencies(tmp_path / "f.json", 320, kept, [2])
    source = zoo.checkpoint("gqa")
    for kind in ("shared", "eagle3"):
        out = tmp_path / kind
        head = kind != "shared"
        folder = zoo.head_checkpoint("gqa", kind) if head else zoo.checkpoint("gqa", kind)
        export_bundle(
            ExportRequest(str(source), out, str(folder), draft_vocab=str(tmp_path / "f.json"))
        )
        draft = Draft(out)
        ids = np.load(read_bundle(out).file("draft.ids.npy"))
        assert ids.dtype == np.int64 and set(kept) <= set(ids.tolist())
        assert draft.proposed == len(ids) < draft.meta["vocab"]
        session = draft.prefilled()
        for row in range(len(ids)):
            noise = np.zeros((1, len(ids)), dtype=np.float32)
            noise[0, row] = 1000.0
            assert (draft.run(session, noise=noise)[2][:, 0] == ids[row]).all()


def test_a_whole_vocabulary_needs_no_map(zoo: Zoo) -> None:
    draft = Draft(zoo.bundle("gqa", "shared"))
    assert draft.proposed == draft.meta["vocab"] == 320
    assert "draft.ids.npy" not in draft.bundle.manifest.files


def test_what_is_no_noise_is_refused(zoo: Zoo) -> None:
    draft = Draft(zoo.bundle("gqa", "shared"))
    session = draft.prefilled()
    for noise in (draft.noise[:2], draft.noise[:, :-1], draft.noise[0], draft.noise[None]):
        with pytest.raises(EngineError, match=r"draft\.onnx: noise must be \[1 or 3, 320\]"):
            draft.run(session, noise=noise)
    chain = draft.open("draft_chain", ("topk_ids",), session.cache)
    for rows in (1, 3):
        with pytest.raises(EngineError, match=r"noise must be \[6, 320\].*it is"):
            draft.run(chain, noise=draft.noise[:rows])
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(EngineError, match="temperature above 0"):
            session.set_temperature(temperature)


def test_a_target_takes_no_noise(zoo: Zoo) -> None:
    draft = Draft(zoo.bundle("gqa", "shared"))
    target = draft.open("target", ("logits",))
    with pytest.raises(EngineError, match=r"target\.onnx takes no noise"):
        target.step(draft.embeds, range(ROWS), causal_mask(0, ROWS), noise=draft.noise)
    with pytest.raises(EngineError, match=r"target\.onnx takes no noise"):
        target.set_temperature(0.5)
