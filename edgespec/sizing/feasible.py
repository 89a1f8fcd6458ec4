"""Whether budgets can be met at all: said before generation starts, with the nearest that can."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgespec.errors import ConfigError
from edgespec.latency import Curve, DeviceProfile
from edgespec.sizing.budgets import Budget
from edgespec.sizing.contract import Policy
from edgespec.sizing.policies.plain import Plain
from edgespec.sizing.policies.sized import Sized

MB = 2.0**20


@dataclass(frozen=True)
class Load:
    """What a request asks of the device."""

    prompt_tokens: int
    images: int
    new_tokens: int
    draft_prompt_tokens: int = 0


def check_budget(
    budget: Budget, profile: DeviceProfile, load: Load, *, draft_loaded: bool = False
) -> None:
    """Raises ConfigError for a limit below what plain decoding takes, the least there is.
    ``draft_loaded``: whether the draft's weights take memory even where nothing is drafted."""
    context = load.prompt_tokens + load.new_tokens
    plain = tail(profile.costs.verify, 1, context)
    plain += profile.costs.host_round_ms + profile.costs.host_token_ms
    first = tail(profile.costs.prefill, load.prompt_tokens)
    if load.images:
        first += tail(profile.costs.vision, load.images)
    step = f"one plain step at {context} tokens"
    prompt = f"{load.images} pictures and {load.prompt_tokens} prompt tokens"
    whole = f"the target with {load.prompt_tokens} prompt and {load.new_tokens} new tokens"
    least_mb = memory_mb(profile, load, drafts=False)
    if draft_loaded:
        least_mb += profile.memory.draft_mb
        whole += " beside the draft's weights"
    checks = (
        ("--budget-ms-per-round", budget.ms_per_round, plain, step),
        ("--budget-p95-itl-ms", budget.p95_itl_ms, plain, step),
        ("--budget-ttft-ms", budget.ttft_ms, first, prompt),
        ("--budget-memory-mb", budget.memory_mb, least_mb, whole),
    )
    for flag, limit, least, what in checks:
        if limit < least:
            raise ConfigError(
                f"{flag} {limit:g} cannot be met on {profile.device.name}: {what} takes "
                f"{least:.4g} (95th percentile where times vary); the nearest budget that can be "
                f"met is {_rounded_up(least):g}"
            )


def memory_mb(profile: DeviceProfile, load: Load, *, drafts: bool, nodes: int = 0) -> float:
    """Resident memory of a request, with trees of ``nodes`` nodes."""
    memory = profile.memory
    rows = load.prompt_tokens + load.new_tokens + nodes + 1
    total = memory.base_mb + memory.target_mb + rows * memory.target_kv_bytes / MB
    if drafts:
        rows = load.draft_prompt_tokens + load.new_tokens + nodes + 1
        total += memory.draft_mb + rows * memory.draft_kv_bytes / MB
    return total


def most_nodes(budget: Budget, profile: DeviceProfile, load: Load) -> int | None:
    """How many nodes a tree may have in the memory budget; None where not even the draft fits."""
    left = budget.memory_mb - memory_mb(profile, load, drafts=True)
    if left < 0:
        return None
    per_node = (profile.memory.target_kv_bytes + profile.memory.draft_kv_bytes) / MB
    return int(min(left / per_node, 1e6)) if per_node else 1_000_000


def fitted(
    policy: Policy, budget: Budget, profile: DeviceProfile, load: Load, *, drafts: bool
) -> Policy:
    """``policy`` with trees for which the memory budget has room; plain decoding where it has none
    for the draft. Other policies than ``sized`` keep their settings."""
    nodes = most_nodes(budget, profile, load) if drafts else policy.max_nodes
    if not nodes:
        return Plain()
    if nodes < policy.max_nodes and isinstance(policy, Sized):
        return replace(policy, nodes=nodes)
    return policy


def tail(curve: Curve, size: int, context: int = 0) -> float:
    """95th percentile at a size: the median there, by the spread of the nearest measured point."""
    near = min(range(len(curve.sizes)), key=lambda i: abs(curve.sizes[i] - size))
    row = min(range(len(curve.contexts)), key=lambda i: abs(curve.contexts[i] - context))
    spread = curve.p95_ms[row][near] / curve.median_ms[row][near]
    return curve.at(size, context) * spread


def _rounded_up(value: float) -> float:
    """Two digits, upwards; as it is printed it is not below ``value``."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    digits = math.ceil(value / scale)
    while float(f"{digits * scale:g}") < value:
        digits += 1
    return float(f"{digits * scale:g}")
