"""Measuring a loaded bundle: everything in turn, pass after pass, in an order that always changes,
so that a machine that slows down or warms up does so for all operations alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from edgespec.errors import ConfigError
from edgespec.latency import (
    Card,
    Costs,
    Curve,
    Device,
    DeviceProfile,
    Memory,
    bundle_facts,
)
from edgespec_runtime.model import Model
from edgespec_runtime.profiling.measuring.agreement import agreement
from edgespec_runtime.profiling.measuring.prompts import PromptBench
from edgespec_runtime.profiling.measuring.requests import ClockedRound, RequestBench
from edgespec_runtime.profiling.measuring.rigs import Source
from edgespec_runtime.profiling.measuring.rounds import RoundBench
from edgespec_runtime.profiling.measuring.samples import FEWEST, NEXT_TO_NOTHING, Samples
from edgespec_runtime.profiling.measuring.sizes import Sizes

if TYPE_CHECKING:
    from edgespec_runtime.profiling.elsewhere import Elsewhere

ROUNDS, PROMPTS = GROUPS = ("rounds", "prompts")
Listener = Callable[[float], None]
"""Told after every job which share of the measuring is done."""


@dataclass(frozen=True)
class Settings:
    """How often everything is clocked."""

    passes: int = 40
    """Over all points at most; prompts take longer and are clocked less often."""
    seconds: float = 75.0
    """After which no repeats are added to points that were clocked five times."""
    time_limit: float | None = None
    """The same, but an error where it does not suffice for five times."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < FEWEST:
            raise ConfigError(f"passes is {self.passes}; a median needs at least {FEWEST}")
        if not self.enough_s > 0:
            raise ConfigError(f"--time-limit is {self.enough_s:g}; it must be above 0 seconds")

    @property
    def enough_s(self) -> float:
        """Seconds after which no repeats are added."""
        return self.seconds if self.time_limit is None else self.time_limit


QUICK = Settings(passes=16, seconds=10.0)


@dataclass(frozen=True)
class Measured:
    """What measuring gave."""

    costs: Costs
    noise: float
    """Median over all points of the curves of p95 / median."""
    repeats: int
    """Of the point that has the fewest."""
    agreement: float
    """Median over rounds of whole requests of predicted / measured time."""
    seconds: float


def measure(
    model: Model, sizes: Sizes, settings: Settings, listener: Listener = lambda done: None
) -> Measured:
    """The costs of every operation of ``model`` on this machine, at ``sizes``.

    Raises ConfigError for a time limit within which not every point could be clocked five times.
    """
    return _Measuring(model, sizes, settings, listener).run()


class _Measuring:
    """One measuring under way: passes over two groups of jobs, of which prompts take longer and
    are clocked less often."""

    def __init__(self, model: Model, sizes: Sizes, settings: Settings, listener: Listener) -> None:
        self._started = perf_counter()
        self._model, self._settings, self._listener = model, settings, listener
        source = Source(model, settings.seed)
        self._rng = np.random.default_rng(settings.seed)
        self._rounds = RoundBench(model, sizes, source)
        self._prompts = PromptBench(model, sizes, source, settings.seed)
        self._requests = RequestBench(model, source, settings.seed)
        self._curves, self._host = Samples(), Samples()
        self._seen: list[ClockedRound] = []
        self._repeats = dict.fromkeys(GROUPS, 0)

    def run(self) -> Measured:
        for job in self._jobs(GROUPS, Samples(), Samples()):
            job()  # to warm up: not counted
        self._seen.clear()
        number = 0
        while wanted := self._wanted(number):
            jobs = self._jobs(wanted, self._curves, self._host)
            for index, job in enumerate(jobs, start=1):
                job()
                self._tell(number + index / len(jobs))
            for group in wanted:
                self._repeats[group] += 1
            number += 1
        costs = costs_of(self._model, self._curves, self._host)
        return Measured(
            costs,
            noise=self._curves.noise,
            repeats=self._curves.fewest,
            agreement=agreement(costs, self._seen),
            seconds=self._elapsed,
        )

    @property
    def _elapsed(self) -> float:
        return perf_counter() - self._started

    def _wanted(self, number: int) -> tuple[str, ...]:
        """The groups to run in this pass; none when everything was clocked often enough."""
        settings = self._settings
        lacking = tuple(group for group in GROUPS if self._repeats[group] < FEWEST)
        late = self._elapsed > settings.enough_s
        if late and lacking and settings.time_limit is not None:
            raise ConfigError(self._too_short(settings.time_limit))
        if late or number >= settings.passes:
            return lacking
        every = 2 if PROMPTS in lacking else 4
        return (ROUNDS, PROMPTS) if number % every == 0 else (ROUNDS,)

    def _too_short(self, limit: float) -> str:
        share = (1 + min(self._repeats.values())) / (1 + FEWEST)  # the warm-up is one more
        return (
            f"--time-limit {limit:g} is too short: {FEWEST} repeats of every point take about "
            f"{self._elapsed / share:.0f} s here; raise it, or measure less with --quick, "
            "--max-nodes or --max-context"
        )

    def _jobs(
        self, groups: Sequence[str], curves: Samples, host: Samples
    ) -> list[Callable[[], None]]:
        """What one pass runs: rounds of one context behind each other, prompts in between."""
        prompts: list[Callable[[], None]] = []
        if PROMPTS in groups:
            prompts += [partial(job, curves) for job in self._prompts.jobs()]
            prompts += [partial(self._request, host), partial(self._prompts.pick, host)]
        prompts = [prompts[i] for i in self._rng.permutation(len(prompts))]
        if ROUNDS not in groups:
            return prompts
        jobs: list[Callable[[], None]] = []
        hands = self._rounds.deal(self._rng)
        for index, hand in enumerate(hands):
            jobs += prompts[index :: len(hands)]
            # Whatever ran before left other data in the caches: one round is not counted.
            jobs += [partial(self._rounds.run, planned, Samples()) for planned in hand[:1]]
            jobs += [partial(self._rounds.run, planned, curves) for planned in hand]
        return jobs

    def _request(self, host: Samples) -> None:
        self._seen += self._requests.run(host)

    def _tell(self, passes: float) -> None:
        settings = self._settings
        in_time = min(self._elapsed / settings.enough_s, passes / FEWEST)
        self._listener(min(max(passes / settings.passes, in_time), 1.0))


def costs_of(model: Model, curves: Samples, host: Samples) -> Costs:
    """Curves and figures from what was clocked."""
    vision = curves.curve("vision") or Curve.constant(NEXT_TO_NOTHING)
    prefill, verify = curves.curve("prefill"), curves.curve("verify")
    assert prefill and verify, "the target's operations are always clocked"
    round_ms, token_ms = host.line("host")
    return Costs(
        vision=vision,
        prefill=prefill,
        verify=verify,
        draft_vision=curves.curve("draft_vision"),
        draft_prefill=curves.curve("draft_prefill"),
        draft_first=curves.curve("draft_first"),
        draft_step=curves.curve("draft_step"),
        chain_first=curves.curve("chain_first"),
        chain_next=curves.curve("chain_next"),
        chain_steps=model.draft.chain_steps if model.draft else 0,
        commit_ms=host.median("commit") if model.draft else 0.0,
        pick_ms=max(host.median("pick"), 0.0),
        host_round_ms=round_ms,
        host_token_ms=token_ms,
    )


def profile_of(
    model: Model,
    measured: Measured,
    card: Card,
    memory: Memory,
    *,
    device: Device,
    telemetry: dict[str, Any] | None = None,
    elsewhere: Elsewhere | None = None,
) -> DeviceProfile:
    """A profile file's content from its parts. With ``elsewhere`` and no target in the bundle, the
    target's costs are the server's."""
    costs = measured.costs
    if elsewhere is not None and model.manifest.graph("target") is None:
        verify = elsewhere.remote.verify
        costs = replace(costs, vision=elsewhere.vision, prefill=elsewhere.prefill, verify=verify)
    return DeviceProfile(
        kind="measured",
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=measured.seconds,
        device=device,
        engine=model.engine,
        bundle=bundle_facts(model.bundle),
        card=card,
        costs=costs,
        memory=memory,
        noise=measured.noise,
        remote=elsewhere.remote if elsewhere else None,
        telemetry=telemetry,
    )
