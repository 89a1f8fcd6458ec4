"""The drafts that can be distilled, by name: what each one takes, and how it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from edgespec.errors import ConfigError
from edgespec_export.compression import Compression, check_fits, parse_compression
from edgespec_export.distill.settings import Losses
from edgespec_export.geometry import ModelGeometry
from edgespec_export.heads.geometry import HeadGeometry, captured_layers

HEAD_FLAGS = frozenset({"intermediate", "kv_heads", "begin_from"})
LOSS_FLAGS = frozenset({"logit", "rank"})
ROLLOUT_FLAGS = frozenset({"rollout", "decay"})
FEATURE = LOSS_FLAGS | ROLLOUT_FLAGS | {"feature"} | HEAD_FLAGS


@dataclass(frozen=True)
class Method:
    """What a method may be told (flags by their dest), and its losses if it is told nothing."""

    flags: frozenset[str] = FEATURE
    losses: Losses = field(default_factory=Losses)
    compressor: str | None = None


METHODS: Mapping[str, Method] = {
    "eagle": Method(),
    "eaglevlm": Method(),
    "msd": Method(),
    "vispec": Method(FEATURE | {"queries"}),
    "specvlm": Method(FEATURE | {"compressor"}, compressor="elastic:select"),
    # No loss holds EAGLE-3's features to the target's, so that it must see its own: 7 passes.
    "eagle3": Method(
        (FEATURE - {"feature"}) | {"draft_vocab"}, Losses(logit=1.0, feature=0.0, rollout=6)
    ),
    "vlm": Method(LOSS_FLAGS | {"draft", "compressor"}, Losses(logit=1.0, feature=0.0)),
}
FLAGS = {
    "logit": "--logit-weight", "feature": "--feature-weight", "rank": "--rank-weight",
    "rollout": "--rollout", "decay": "--rollout-decay", "intermediate": "--intermediate",
    "kv_heads": "--kv-heads", "queries": "--queries", "compressor": "--compressor",
    "draft": "--draft", "draft_vocab": "--draft-vocab", "begin_from": "--begin-from",
}  # fmt: skip


@dataclass(frozen=True)
class DraftOptions:
    """What the draft is to be made of; None is the method's default."""

    draft: str | None = None
    compressor: str | None = None
    intermediate: int | None = None
    kv_heads: int | None = None
    queries: int | None = None
    draft_vocab: str | None = None
    begin_from: str | None = None
    """A head of the same sizes whose weights the training begins with."""


def find_method(name: str, given: Mapping[str, Any]) -> Method:
    """The method, if it takes every flag that was given. Raises ConfigError saying which it does
    not, and which methods would."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"no method is called '{name}'{hint} There are: {', '.join(METHODS)}")
    method = METHODS[name]
    for flag, value in given.items():
        if value is not None and flag not in method.flags:
            takers = ", ".join(other for other, m in METHODS.items() if flag in m.flags)
            raise ConfigError(f"{FLAGS[flag]} means nothing to method '{name}'; it is for {takers}")
    if "draft" in method.flags and given.get("draft") is None:
        raise ConfigError("method 'vlm' distils into a small LLaVA: give it with --draft")
    return method


def losses_of(method: Method, given: Mapping[str, Any]) -> Losses:
    """The method's losses with what was given. Raises ConfigError where nothing is to be learnt."""
    losses = replace(method.losses, **given)
    if not losses.rollout and "decay" in given:
        raise ConfigError("--rollout-decay weighs rollout steps; it needs --rollout")
    parts = {p: getattr(losses, p) for p in ("logit", "feature", "rank") if p in method.flags}
    if not any(parts.values()):
        raise ConfigError(f"all weights of the loss are 0: {', '.join(FLAGS[p] for p in parts)}")
    return losses


def head_geometry(name: str, options: DraftOptions, target: ModelGeometry) -> HeadGeometry:
    """Sizes of a feature-level draft: the target's width, one layer, by default its MLP and a key
    for every head, as published drafts have. Raises ConfigError for what does not fit."""
    text = target.text
    kv_heads = options.kv_heads or text.heads
    if text.heads % kv_heads:
        raise ConfigError(f"--kv-heads {kv_heads} does not divide the target's {text.heads} heads")
    layer = replace(
        text, layers=1, intermediate=options.intermediate or text.intermediate, kv_heads=kv_heads
    )
    geometry = HeadGeometry(name, layer, text.hidden, compression=compression_of(options, target))
    if name == "vispec":
        if options.queries == 1:
            raise ConfigError("--queries 1 leaves no token of a picture: the last query is global")
        return replace(geometry, queries=options.queries or 2)
    if name != "eagle3":
        return geometry
    captured = captured_layers(text.layers)
    if not 0 < captured[0] < captured[1] < captured[2]:
        raise ConfigError(
            f"method 'eagle3' reads the target before layers 2, L/2 and L-3; its {text.layers} "
            "layers are too few for three different ones (7 are needed): use 'eaglevlm'"
        )
    return replace(geometry, fc_bias=False, feature_size=3 * text.hidden, feature_layers=captured)


def compression_of(options: DraftOptions, target: ModelGeometry) -> Compression | None:
    """The compressor that was asked for, if a picture of ``target`` can be compressed so."""
    if options.compressor is None:
        return None
    compression = parse_compression(options.compressor)
    check_fits(compression, target.visual_tokens)
    return compression


def default_rate(hidden: int) -> float:
    """Peak learning rate by width: SpecVLM's 8e-5 at 4096, more for narrower ones, 1e-3 at most."""
    return min(1e-3, 8e-5 * 4096 / hidden)


def trained_parts(compression: Compression) -> Sequence[str]:
    """Names of what a compressor has weights for."""
    parts = compression.branches or (compression,)
    return [str(part) for part in parts if part.trained]
