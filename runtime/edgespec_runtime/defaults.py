"""What a request takes where it does not say: policy, length, and the checkpoint's own sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgespec.errors import ConfigError, PromptError
from edgespec.latency import DeviceProfile
from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Policy, Sized, Threshold

# Without a profile: the cheapest shape where a draft step is dear, a chain, as measured on the
# built-in family (docs/performance.md).
DEFAULT_POLICY = Eagle2(nodes=12, depth=12, top_k=1)
# Of n-grams alone, which cost nothing to grow and are mostly wrong behind short matches: a chain
# that ends where the match no longer vouches for it (docs/peers.md).
LOOKUP_POLICY = Threshold(depth=8, min_path=0.4)
DEFAULT_NEW_TOKENS = 512
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


def new_tokens(asked: int | None, prompt_tokens: int, max_positions: int) -> int:
    """How many tokens a request may emit; by default as many as there is room for, up to
    ``DEFAULT_NEW_TOKENS``. Raises ConfigError for less than one, PromptError for too many."""
    room = max_positions - prompt_tokens
    if asked is None:
        return min(DEFAULT_NEW_TOKENS, room)
    if asked < 1:
        raise ConfigError(f"max_new_tokens is {asked}; it must be at least 1")
    if asked > room:
        raise PromptError(
            f"the prompt takes {prompt_tokens} tokens and {asked} new ones were asked for, but "
            f"the context holds {prompt_tokens + room}; ask for at most {room}"
        )
    return asked
