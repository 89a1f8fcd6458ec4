"""What a request takes where it does not say: the policy, and the checkpoint's own sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgespec.latency import DeviceProfile
from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Policy, Sized, Threshold

# Without a profile: the cheapest shape where a draft step is dear, a chain, as measured on the
# built-in family (docs/performance.md).
DEFAULT_POLICY = Eagle2(nodes=12, depth=12, top_k=1)
# Of n-grams alone, which cost nothing to grow and are mostly wrong behind short matches: a chain
# that ends where the match no longer vouches for it (docs/peers.md).
LOOKUP_POLICY = Threshold(depth=8, min_path=0.4)
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def usual_policy(profile: DeviceProfile | None, *, ngram_alone: bool = False) -> Policy:
    """Sizing by measured cost where there is a profile to measure by; ``ngram_alone``: whether
    nothing drafts but look-ups."""
    if profile is not None:
        return Sized()
    return LOOKUP_POLICY if ngram_alone else DEFAULT_POLICY


def sampling(generation: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingParams:
    """A checkpoint's ``generation`` defaults with ``given`` (not None) over them; see
    ``Model.sampling``."""
    merged = {name: generation[name] for name in SAMPLING if name in generation}
    if not generation.get("do_sample", False):
        merged = {k: v for k, v in merged.items() if k == "repetition_penalty"}
    elif "temperature" not in merged:
        merged["temperature"] = 1.0
    merged.update({k: v for k, v in given.items() if v is not None})
    return SamplingParams(**merged)
