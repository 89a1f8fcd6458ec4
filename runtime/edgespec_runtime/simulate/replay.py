"""Replaying answers: the real decoding loop, policies and drafters on modelled time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgespec.acceptance import StopRules
from edgespec.errors import ConfigError
from edgespec.latency import DeviceProfile
from edgespec.sizing import Feedback, Plain, Policy, Setting, Sizer
from edgespec.sizing.budgets import Budget
from edgespec.sizing.experience import Experience
from edgespec.sizing.feasible import Load, fitted
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.drafts import Drafter, NoDraft
from edgespec_runtime.remote.link import Mode
from edgespec_runtime.remote.modes import Modes
from edgespec_runtime.simulate.answers import Answer, Pool
from edgespec_runtime.simulate.clock import Clock, Meter
from edgespec_runtime.simulate.draft import open_draft
from edgespec_runtime.simulate.lines import Line
from edgespec_runtime.simulate.network import Network, with_way
from edgespec_runtime.simulate.oracle import Oracle
from edgespec_runtime.simulate.streaming import Past, StreamingVerifier
from edgespec_runtime.simulate.verifier import ReplayVerifier

HYBRID, REMOTE, LOCAL, AUTO = "hybrid", "remote", "local", "auto"
"""Modes: where the target is elsewhere (``remote.link.Mode``), and the choice of one."""


@dataclass(frozen=True)
class Conditions:
    """What all replays share."""

    profile: DeviceProfile
    budget: Budget = field(default_factory=Budget)
    max_new_tokens: int | None = None
    """Where to cut answers; None: where they ended."""
    seed: int = 0
    noise: bool = False
    """Whether costs scatter around their medians."""
    network: Network | None = None
    """The way to the target, where it runs elsewhere; no part of ``profile``'s costs."""
    local: DeviceProfile | None = None
    """This device with a target of its own as well, where it can hold one beside ``network``."""
    ahead: bool = True
    """Whether a stand-alone draft goes on drafting while it waits for such a target."""

    @property
    def profile_with_way(self) -> DeviceProfile:
        """What rounds cost, all told."""
        return with_way(self.profile, self.network)


@dataclass(frozen=True)
class Moment:
    """One round after the prefill. Times in milliseconds."""

    tokens: int
    nodes: int
    calls: tuple[int, ...]
    """Rows of every draft call; none where nothing was drafted."""
    round_ms: float
    """What a budget of ``ms_per_round`` limits: the draft's prompt is left out."""
    gap_ms: float
    """From the tokens before to this round's."""
    streamed: bool = False
    """Whether the server started the round by itself."""


@dataclass(frozen=True)
class Replay:
    """One answer under one policy. Times in milliseconds."""

    ttft_ms: float
    total_ms: float
    rounds: tuple[Moment, ...]
    asked: int
    """Nodes on the answer's path whose proposals the policy asked for,"""
    drawn: int
    """and those that no run had seen, whose proposals were drawn."""

    @property
    def tokens_after_first(self) -> int:
        return sum(moment.tokens for moment in self.rounds)

    @property
    def tokens_per_s(self) -> float:
        """After the first token; 0 where there is none."""
        decode_ms = self.total_ms - self.ttft_ms
        return 1e3 * self.tokens_after_first / decode_ms if decode_ms > 0 else 0.0


def check_policy(policy: Policy, pool: Pool, name: str) -> None:
    """Raises ConfigError for a tree wider than what was recorded."""
    if policy.max_nodes and policy.top_k > pool.top_k:
        raise ConfigError(
            f"policy '{name}' asks for top_k={policy.top_k}, the traces hold {pool.top_k} children "
            f"of a node; record again with: --policy survey:top_k={policy.top_k}"
        )


def replay(
    answer: Answer,
    pool: Pool,
    policy: Policy,
    conditions: Conditions,
    past: Past | None = None,
    mode: str = HYBRID,
) -> Replay:
    """One answer under one policy; ``past`` is what the answers before it taught. ``mode`` matters
    where the target is elsewhere: "hybrid", "remote" (the server goes on by itself), or "auto"."""
    past = past or Past()
    line, clock = answer.line, Clock()
    past.start(clock)
    oracle = Oracle(answer, pool, conditions.seed)
    meter = Meter(
        conditions.profile.costs,
        clock,
        sampled=line.temperature > 0,
        noise=np.random.default_rng([conditions.seed, *line.question])
        if conditions.noise
        else None,
    )
    limit = _limit(answer, conditions.max_new_tokens)
    policy = fitted(
        policy,
        conditions.budget,
        conditions.profile_with_way,
        load_of(answer, conditions),
        drafts=True,
    )
    drafter: Drafter = NoDraft()
    if not isinstance(policy, Plain):
        ahead = conditions.ahead and conditions.network is not None
        drafter = open_draft(line, oracle, meter, policy, limit, ahead=ahead)
    setting = _setting(answer, limit, conditions, past.experience)
    verifier, sizer = _target(
        line, oracle, meter, conditions, policy.start(setting), setting, past, mode
    )
    moments: list[Moment] = []
    ttft_ms = before = 0.0
    for outcome in decode(verifier, drafter, sizer, _stops(answer, limit, verifier, meter), clock):
        if outcome.feedback is None:
            ttft_ms = clock.ms
        else:
            streamed = isinstance(verifier, StreamingVerifier) and verifier.mode is Mode.REMOTE
            moments.append(_moment(outcome, outcome.feedback, clock.ms - before, streamed))
        before = clock.ms
    return Replay(ttft_ms, clock.ms, tuple(moments), oracle.asked, oracle.drawn)


def _target(
    line: Line,
    oracle: Oracle,
    meter: Meter,
    conditions: Conditions,
    sizer: Sizer,
    setting: Setting,
    past: Past,
    mode: str,
) -> tuple[ReplayVerifier, Sizer]:
    """The answer's target, and ``sizer`` with the choice of mode."""
    network = conditions.network
    if network is None or mode == HYBRID:
        return ReplayVerifier(line, oracle, meter, network, named=line.named), sizer
    verifier = StreamingVerifier(line, oracle, meter, network, past.remote.link, named=line.named)
    pinned = None if mode == AUTO else Mode(mode)
    return verifier, Modes(sizer, setting, past.remote, verifier, pinned=pinned)


def _moment(outcome: Round, feedback: Feedback, gap_ms: float, streamed: bool) -> Moment:
    return Moment(
        len(outcome.tokens), outcome.tree_nodes, feedback.calls, feedback.round_ms, gap_ms, streamed
    )


def load_of(answer: Answer, conditions: Conditions) -> Load:
    """What the request asks of the device."""
    line = answer.line
    limit = _limit(answer, conditions.max_new_tokens)
    return Load(line.prompt_tokens, line.images, limit, line.draft_prompt_tokens)


def _limit(answer: Answer, asked: int | None) -> int:
    recorded = answer.line.max_new_tokens
    if asked is None:
        return recorded
    if asked > recorded and answer.line.finish_reason == "length":
        raise ConfigError(
            f"--max-new-tokens is {asked}, but the answer to '{answer.line.id}' was cut off at "
            f"{recorded} when it was recorded; ask for at most that, or record longer answers"
        )
    return asked


def _stops(answer: Answer, limit: int, verifier: ReplayVerifier, meter: Meter) -> StopRules:
    """Ends the answer where it ended; being told of every token, it is also where the host's part
    of a round is paid."""
    seen = rounds = 0

    def take(token: int) -> bool:
        nonlocal seen, rounds
        seen += 1
        meter.host(1, verifier.rounds - rounds)
        rounds = verifier.rounds
        return seen == len(answer.tokens) and answer.line.finish_reason != "length"

    return StopRules((), limit, take)


def _setting(
    answer: Answer, limit: int, conditions: Conditions, experience: Experience | None
) -> Setting:
    """What the policy may know of the request, on the device asked about."""
    line, profile = answer.line, conditions.profile
    return Setting(
        prompt_tokens=line.prompt_tokens,
        draft_prompt_tokens=line.draft_prompt_tokens,
        images=line.images,
        max_new_tokens=limit,
        temperature=line.temperature,
        coupled=line.coupled,
        chain_steps=profile.costs.chain_steps,
        draft="model",
        question=line.question,
        eos=frozenset(line.eos),
        profile=profile,
        away_ms=conditions.network.request_ms(1) if conditions.network else 0.0,
        budget=conditions.budget,
        experience=experience,
    )
