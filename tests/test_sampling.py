"""Processors against transformers' warpers, and the position-keyed noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.errors import ConfigError
from edgespec.sampling import Sampler, SamplingParams, gumbel_noise, process, softmax


def logits_of(seed: int, size: int, ties: bool = False) -> Any:
    values = np.random.default_rng(seed).standard_normal(size) * 4
    return (np.round(values) if ties else values).astype(np.float32)


# --- Noise ----------------------------------------------------------------------------------------


def test_noise_is_what_it_always_was() -> None:
    """Golden values: a seed must give the same text on every machine and in every version."""
    expected = {
        (0, 0): [-1.49545161157695, -0.351137118361487, -0.7859067841515],
        (0, 1): [-0.439436008682834, -0.428257880430674, 1.27351271820465],
        (12345, 77): [-0.505685400513863, -1.07202830653006, -0.998428285871895],
        (2**64 - 1, 4096): [1.19147182312037, 0.547289195824182, -0.191037363626201],
    }
    for (seed, position), values in expected.items():
        np.testing.assert_allclose(gumbel_noise(seed, position, 3), values, rtol=1e-14)


def test_noise_is_keyed_by_seed_position_and_token() -> None:
    base = gumbel_noise(3, 10, 1000)
    np.testing.assert_array_equal(base, gumbel_noise(3, 10, 1000))
    # A token's noise does not depend on how many tokens there are.
    np.testing.assert_array_equal(base[:17], gumbel_noise(3, 10, 17))
    for other in (gumbel_noise(3, 11, 1000), gumbel_noise(4, 10, 1000)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.15
        assert not np.intersect1d(base, other).size


def test_streams_of_neighbouring_positions_do_not_overlap() -> None:
    """The position is in a higher word of the counter than the token: no vocabulary reaches it."""
    rows = [gumbel_noise(0, position, 4096) for position in range(8)]
    assert np.unique(np.concatenate(rows)).size == 8 * 4096


@settings(max_examples=50)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63), st.integers(1, 300))
def test_noise_is_finite(seed: int, position: int, size: int) -> None:
    noise = gumbel_noise(seed, position, size)
    assert noise.shape == (size,) and np.isfinite(noise).all()


def test_noise_is_gumbel() -> None:
    from scipy import stats

    noise = np.concatenate([gumbel_noise(1, p, 500) for p in range(60)])
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-3


# --- Processors -----------------------------------------------------------------------------------


def warped(logits: Any, params: SamplingParams, context: list[int]) -> Any:
    """transformers' processors in the order of its generate, in float64."""
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    chain: list[Any] = []
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    processors: Any = LogitsProcessorList(chain)
    return processors(torch.tensor([context]), scores)[0].numpy()


def processed(logits: Any, params: SamplingParams, context: list[int], path: list[int]) -> Any:
    sampler = Sampler(params, len(logits))
    sampler.observe(context)
    if params.repetition_penalty != 1.0:
        logits = sampler._penalised(logits.astype(np.float64), path)
    return process(logits, params)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(2, 60),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 10, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 1.2, 2.0, 0.7]),
    ties=st.booleans(),
)
def test_processors_equal_transformers(
    seed: int,
    size: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
    ties: bool,
) -> None:
    # Tied tokens at the edge of a nucleus may be kept in either order; without one they are equal.
    ties = ties and top_p == 1.0
    logits = logits_of(seed, size, ties)
    params = SamplingParams(temperature, top_k, top_p, min_p, penalty)
    rng = np.random.default_rng(seed)
    context = rng.integers(size, size=5).tolist()
    ours = processed(logits, params, context[:3], context[3:])
    theirs = warped(logits, params, context)
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    kept = ~np.isneginf(ours)
    np.testing.assert_allclose(ours[kept], theirs[kept], rtol=1e-12)


def test_nucleus_keeps_the_head_and_drops_the_tail() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.05, 0.35], dtype=np.float32))
    kept = np.isfinite(process(logits, SamplingParams(temperature=1.0, top_p=0.8)))
    assert kept.tolist() == [False, True, False, True]
    # The token that crosses the line stays; one token always does.
    kept = np.isfinite(process(logits, SamplingParams(temperature=1.0, top_p=0.01)))
    assert kept.tolist() == [False, True, False, False]


def test_ties_at_the_k_th_place_stay() -> None:
    logits = np.array([1, 2, 2, 2, 0], dtype=np.float32)
    kept = np.isfinite(process(logits, SamplingParams(temperature=1.0, top_k=2)))
    assert kept.tolist() == [False, True, True, True, False]


def test_the_logits_given_are_not_changed() -> None:
    logits = logits_of(1, 30)
    before = logits.copy()
    params = SamplingParams(0.5, 3, 0.5, 0.1, 1.5)
    sampler = Sampler(params, 30)
    sampler.observe([1, 2])
    sampler.pick(logits, 4, [3])
    np.testing.assert_array_equal(logits, before)


def test_softmax_is_stable() -> None:
    np.testing.assert_allclose(softmax(np.array([1000.0, 1000.0, -np.inf])), [0.5, 0.5, 0.0])


# --- Picking --------------------------------------------------------------------------------------


def test_greedy_is_argmax_and_reads_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgespec.sampling.gumbel_noise", None)
    logits = np.array([0.5, 2.0, 2.0, -1.0], dtype=np.float32)
    assert Sampler(SamplingParams(), 4).pick(logits, 0, ()) == 1


@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 2**64 - 1))
def test_a_draw_is_the_best_of_score_and_noise(case: int, position: int, seed: int) -> None:
    logits = logits_of(case, 20)
    params = SamplingParams(temperature=0.9, seed=seed)
    scores = [float(x) / 0.9 for x in logits]
    noise = gumbel_noise(seed, position, 20)
    expected = max(range(20), key=lambda t: scores[t] + noise[t])
    assert Sampler(params, 20).pick(logits, position, ()) == expected


def test_a_tiny_temperature_draws_like_greedy() -> None:
    for case in range(30):
        logits = logits_of(case, 25)
        sampler = Sampler(SamplingParams(temperature=1e-5), 25)
        assert sampler.pick(logits, case, ()) == int(logits.argmax())


def test_removed_tokens_are_never_drawn() -> None:
    logits = logits_of(2, 30)
    best = set(np.argsort(-logits)[:4].tolist())
    sampler = Sampler(SamplingParams(temperature=50.0, top_k=4), 30)
    assert {sampler.pick(logits, position, ()) for position in range(300)} == best


def test_penalty_sees_the_prompt_the_text_and_the_path() -> None:
    logits = np.array([1.0, 0.9, 0.8, 0.7, -5.0], dtype=np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 5)
    assert sampler.pick(logits, 0, ()) == 0
    sampler.observe([0])
    assert sampler.pick(logits, 1, ()) == 1
    assert sampler.pick(logits, 2, [1]) == 2
    assert sampler.pick(logits, 3, [1, 2]) == 3
    # A path is a supposition: the next walk knows nothing of it.
    assert sampler.pick(logits, 1, ()) == 1
    sampler.observe(iter([1, 2, 3]))
    assert sampler.pick(logits, 4, ()) == 0


def test_penalty_pushes_negative_logits_down() -> None:
    logits = np.array([-1.0, -1.5], dtype=np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 2)
    sampler.observe([0])
    assert sampler.pick(logits, 0, ()) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.5),
        ("repetition_penalty", 0.0), ("repetition_penalty", float("inf")),
        ("seed", -1), ("seed", 2**64),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=setting):
        SamplingParams(**{setting: value})  # type: ignore[arg-type]
