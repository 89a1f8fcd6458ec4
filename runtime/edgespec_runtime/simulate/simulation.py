"""All answers under all policies, and which of them a profile can speak for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgespec.errors import ConfigError, InputError
from edgespec.latency import DeviceProfile
from edgespec.latency.geometry import Geometry
from edgespec.sizing import Plain, Policy
from edgespec.sizing.feasible import check_budget
from edgespec_runtime.simulate.answers import Answer, Group, Pool, replayable
from edgespec_runtime.simulate.lines import Line
from edgespec_runtime.simulate.replay import (
    AUTO,
    HYBRID,
    LOCAL,
    REMOTE,
    Conditions,
    Replay,
    check_policy,
    load_of,
    replay,
)
from edgespec_runtime.simulate.streaming import Past

PLAIN = "plain"


@dataclass(frozen=True)
class Way:
    """How an answer was decoded."""

    policy: str
    """Its name as it was given, or "plain"."""
    mode: str = HYBRID
    """Where its target is elsewhere."""


@dataclass(frozen=True)
class Simulated:
    """One answer in every way: plain first, then under every policy."""

    group: Group
    replays: Mapping[Way, Replay]

    @property
    def plain(self) -> Replay:
        return self.replays[Way(PLAIN)]


def fitting(lines: Sequence[Line], profile: DeviceProfile, path: str) -> list[Line]:
    """The runs of the models that ``profile`` was made with; ``path`` names it in errors.

    Lowering and precision may differ, for they change times alone. Raises ConfigError where no run
    fits, and for a profile without a draft's costs.
    """
    costs, bundle = profile.costs, profile.bundle
    if costs.draft_prefill is None or (costs.draft_step is None and costs.chain_next is None):
        raise ConfigError(
            f"profile '{path}' is of a bundle without a draft ({bundle.name}); profile one that "
            "holds the draft of the traces"
        )
    fit = [line for line in lines if _models(line) == (bundle.target, bundle.draft or "")]
    fit = [line for line in fit if not replayable(line) or line.compressor == bundle.compressor]
    if not any(replayable(line) for line in fit):
        raise ConfigError(
            f"profile '{path}' is of other models ({bundle.name}: target {bundle.target[:12]}, "
            f"draft {(bundle.draft or 'none')[:12]}, compressor {bundle.compressor}) than the "
            f"traces: {_listed(lines)}; make a profile with their bundle"
        )
    return fit


def as_if(lines: Sequence[Line], geometry: Geometry) -> list[Line]:
    """The runs of models' drafts, whatever they were, as if models of ``geometry`` had made them:
    prompts and pictures are as long as those would have them, texts and proposals stay."""

    def rows(line: Line, each: int) -> int:
        return geometry.text_tokens + line.images * each

    return [
        replace(
            line,
            bundle=geometry.name,
            prompt_tokens=rows(line, geometry.visual_tokens),
            draft_prompt_tokens=rows(line, geometry.draft_visual_tokens),
            draft_positions=geometry.draft.max_positions,
        )
        for line in lines
        if replayable(line)
    ]


def simulate(
    answers: Sequence[Answer],
    pools: Mapping[Group, Pool],
    policies: Mapping[str, Policy],
    conditions: Conditions,
) -> Iterator[Simulated]:
    """Replays answer by answer, in their order. A policy learns from answer to answer, as it does
    over the requests of one loaded bundle. Raises ConfigError for a policy that cannot be asked."""
    for name, policy in policies.items():
        for pool in pools.values():
            check_policy(policy, pool, name)
    taught: dict[tuple[str, str, Way], Past] = {}
    for answer in answers:
        group, replays = answer.group, {}
        for way, policy in _ways(policies, conditions).items():
            past = taught.setdefault((group.bundle, group.method, way), Past())
            where, mode = conditions, way.mode
            if mode == LOCAL:
                assert conditions.local is not None
                where, mode = replace(conditions, profile=conditions.local, network=None), HYBRID
            replays[way] = replay(answer, pools[group], policy, where, past, mode)
        yield Simulated(group, replays)


def _ways(policies: Mapping[str, Policy], conditions: Conditions) -> dict[Way, Policy]:
    """Plain decoding and every policy; where the target is elsewhere also the server by itself,
    what is chosen, and this device by itself."""
    ways: dict[Way, Policy] = {Way(PLAIN): Plain()}
    if conditions.network is None:
        return ways | {Way(name): policy for name, policy in policies.items()}
    ways[Way(PLAIN, REMOTE)] = Plain()
    if conditions.local is not None:
        ways[Way(PLAIN, LOCAL)] = Plain()
    for name, policy in policies.items():
        ways[Way(name)] = policy
        if policy.max_nodes:
            ways[Way(name, AUTO)] = policy
    return ways


def unmet(answers: Sequence[Answer], conditions: Conditions) -> list[str]:
    """Why the budget cannot be met at all, for every answer for which it cannot: a request like it
    would be refused on the device."""
    found = []
    for answer in answers:
        try:
            check_budget(
                conditions.budget, conditions.profile_with_way, load_of(answer, conditions)
            )
        except ConfigError as error:
            found.append(str(error))
    return found


def check_answers(answers: Sequence[Answer]) -> None:
    """Raises InputError where no answer has a second token: there is nothing to speed up."""
    if all(len(answer.tokens) == 1 for answer in answers):
        raise InputError("every recorded answer ends with its first token; record longer ones")


def _models(line: Line) -> tuple[str, str]:
    return line.target, line.draft


def _listed(lines: Sequence[Line]) -> str:
    """The models of the traces, for people."""
    found = dict.fromkeys(
        f"{line.bundle}: target {line.target[:12]}, draft {(line.draft or 'none')[:12]}, "
        f"compressor {line.compressor}"
        for line in lines
        if replayable(line)
    )
    return "; ".join(found) or "no runs of a model's draft"
