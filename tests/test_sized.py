"""Sizing decides how fast, never what: under any profile, budget and experience."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgespec_runtime
from edgespec.errors import ConfigError
from edgespec.latency import Costs, Curve, DeviceProfile
from edgespec.sizing import Setting, Sized
from edgespec.sizing.budgets import Budget
from edgespec_export.family import sample_image
from edgespec_runtime import decoder, request
from edgespec_runtime.records import Generation
from tests.support.profiles import profile

ASKED = (
    ("Describe this image in detail.", True),
    ("Write a short caption.", True),
    ("Is there a dog in the image?", True),
    ("Hello", False),
)
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 1.5, "seed": 6, "top_p": 0.9, "repetition_penalty": 1.1},
)


def random_curve(rng: np.random.Generator, sizes: tuple[int, ...] = (1, 2, 4, 8, 16)) -> Curve:
    """Any positive times: stairs, dips, a draft dearer than the target."""
    rows = tuple(tuple(float(t) for t in rng.uniform(0.05, 9.0, len(sizes))) for _ in range(2))
    return Curve(sizes, (0, 200), rows, tuple(tuple(2 * t for t in row) for row in rows))


def random_profile(seed: int, kinds: str) -> DeviceProfile:
    """Garbage costs; ``kinds`` of growth: "both", "steps" or "chain"."""
    rng, given = np.random.default_rng(seed), profile()
    steps, chain = kinds != "chain", kinds != "steps"
    costs: Costs = dataclasses.replace(
        given.costs,
        verify=random_curve(rng),
        draft_first=random_curve(rng) if steps else None,
        draft_step=random_curve(rng) if steps else None,
        chain_first=random_curve(rng) if chain else None,
        chain_next=random_curve(rng) if chain else None,
        chain_steps=6 if chain else 0,
    )
    return dataclasses.replace(given, costs=costs)


@pytest.fixture(scope="module")
def bundle(builtin_bundle: Path) -> Path:
    return builtin_bundle


def asked() -> list[tuple[list[Any], str, dict[str, Any]]]:
    """Every question in every way of sampling."""
    return [
        ([sample_image()] if picture else [], question, {"max_new_tokens": 40, **settings})
        for question, picture in ASKED
        for settings in SAMPLING
    ]


@pytest.fixture(scope="module")
def plain(bundle: Path) -> list[Generation]:
    """The target's own answers."""
    model = edgespec_runtime.load(bundle, threads=1)
    return [model.generate(i, q, draft="none", **more) for i, q, more in asked()]


@pytest.mark.parametrize("kinds", ["both", "steps", "chain"])
@pytest.mark.parametrize("draft", ["model", "ngram", "model+ngram"])
def test_the_text_is_plain_decodings_under_any_profile(
    bundle: Path,
    plain: list[Generation],
    draft: str,
    kinds: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Experience is carried from request to request, of one draft to the other's coupled ones. The
    clock is this thread's own work: where a machine lets it wait again and again, n-grams would be
    given up, and nothing be tried."""
    decoding = functools.partial(decoder.decode, clock=time.thread_time)
    monkeypatch.setattr(request, "decode", decoding)
    seed = len(draft) * 10 + len(kinds)
    model = edgespec_runtime.load(bundle, threads=1, profile=random_profile(seed, kinds))
    drafted = 0
    for (images, question, more), expected in zip(asked(), plain, strict=True):
        for coupled in (True, False):
            ours = model.generate(images, question, draft=draft, coupled=coupled, **more)
            assert ours.token_ids == expected.token_ids, (question, more, coupled)
            drafted += ours.stats.rounds < expected.stats.rounds
    assert drafted, "it never drafted, so nothing was tried"


def test_the_text_is_plain_decodings_under_any_budget(bundle: Path) -> None:
    """Times of this machine are none of the profile's: drift is learnt, budgets are missed or kept,
    and the text does not change."""
    model = edgespec_runtime.load(bundle, threads=1, profile=profile())
    question, images = ASKED[0][0], [sample_image()]
    plain = model.generate(images, question, draft="none", max_new_tokens=60)
    for limit in (3.6, 5.0, 7.0, 20.0):
        for budget in (Budget(ms_per_round=limit), Budget(p95_itl_ms=limit)):
            ours = model.generate(images, question, budget=budget, max_new_tokens=60)
            assert ours.token_ids == plain.token_ids, budget


def test_feature_heads_are_sized_as_well(tmp_path: Path) -> None:
    from edgespec_export.exporter import export_bundle
    from edgespec_export.family import export_request

    export_bundle(export_request("eaglevlm", tmp_path / "b"))
    model = edgespec_runtime.load(tmp_path / "b", threads=1, profile=random_profile(3, "both"))
    for settings in SAMPLING[:2]:
        for question, _ in ASKED[:3]:
            plain = model.generate([sample_image()], question, draft="none", **settings)
            ours = model.generate([sample_image()], question, **settings)
            assert ours.token_ids == plain.token_ids


def test_a_request_tells_what_was_learnt(bundle: Path) -> None:
    model = edgespec_runtime.load(bundle, threads=1, profile=profile())
    answer = model.generate([sample_image()], ASKED[0][0])
    assert answer.sizing is not None
    (lesson,) = answer.sizing["lessons"]
    assert lesson["calibration"]["nodes"] > 0 and 0 <= lesson["calibration"]["ece"] <= 1
    forecast = lesson["forecast"]
    assert forecast["rounds"] == answer.stats.rounds
    assert forecast["tokens_per_round"] == pytest.approx(answer.stats.accepted_length)
    assert model.generate(None, "Hello", policy="eagle2", max_new_tokens=4).sizing is None


def test_without_a_profile_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a device profile; make one with"):
        Sized().start(Setting())
