"""What a bundle's graphs, its context and a memory budget have room for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgespec.errors import ConfigError
from edgespec.latency import DeviceProfile
from edgespec.sizing import Plain, Policy, Sized
from edgespec.sizing.budgets import Budget
from edgespec.sizing.feasible import Load, check_budget, fitted, memory_mb
from edgespec_runtime.engines import StepGraph


def check_policy(policy: Policy, steps: Mapping[str, StepGraph]) -> None:
    """Raises ConfigError for a tree that a bundle's decoder graphs (by role) were not built for."""
    draft = steps.get("draft")
    if draft is not None and policy.top_k > int(draft.spec.meta["top_k"]):
        raise ConfigError(
            f"the policy asks for top_k={policy.top_k}; this bundle's draft graph gives "
            f"{draft.spec.meta['top_k']} candidates per node"
        )
    rows = max(policy.max_nodes, policy.max_drafted)
    most = min((int(step.spec.meta["tree_rows"]) for step in steps.values()), default=rows)
    if rows > most:
        raise ConfigError(
            f"the policy's trees take up to {rows} rows, this bundle's graphs take {most}; "
            "ask for fewer nodes, levels or candidates"
        )


def within(
    budget: Budget,
    policy: Policy,
    profile: DeviceProfile | None,
    load: Load,
    *,
    drafts: bool,
    draft_loaded: bool = False,
) -> Policy:
    """``policy`` with trees for which the memory budget has room; ``drafts``: whether the bundle's
    own draft is to be used, ``draft_loaded``: whether it takes memory anyway.

    Raises ConfigError for a budget that cannot be met, for one that there is no profile to keep by,
    and for limits on rounds under a policy that does not look at the clock."""
    if not budget.limited:
        return policy
    if profile is None:
        raise ConfigError(
            "budgets are kept by measured costs and need a device profile; make one with: "
            "edgespec profile --bundle BUNDLE --out PROFILE, and give it with --profile"
        )
    _check_keeps(budget, policy)
    check_budget(budget, profile, load, draft_loaded=draft_loaded)
    return fitted(policy, budget, profile, load, drafts=drafts)


def _check_keeps(budget: Budget, policy: Policy) -> None:
    limits = (
        ("--budget-ms-per-round", budget.ms_per_round),
        ("--budget-p95-itl-ms", budget.p95_itl_ms),
    )
    asked = [flag for flag, limit in limits if limit < math.inf]
    if asked and not isinstance(policy, (Sized, Plain)):
        raise ConfigError(
            f"{' and '.join(asked)} was asked for, which only policies 'sized' and 'plain' keep; "
            "leave --policy out"
        )


def why_draft_is_left_out(budget: Budget, profile: DeviceProfile | None) -> str:
    """The sentence for a memory budget without room for the draft; empty where there is room."""
    if profile is None:
        return ""
    needed = memory_mb(profile, Load(0, 0, 0), drafts=True)
    if needed <= budget.memory_mb:
        return ""
    return (
        f"the draft is not loaded: with it {needed:.0f} MB are needed before the first token, "
        f"the budget is {budget.memory_mb:.0f} MB"
    )
