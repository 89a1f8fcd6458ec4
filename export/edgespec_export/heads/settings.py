"""A head's config.json, cross-checked with its tensors: Llama's keys, the family's flags, and the
wrapper that speculators puts around them. Tensors have the last word on sizes; what they cannot
tell (heads, rotary base, epsilon) the config must say, or the Llama class's default holds and the
description says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgespec.errors import CheckpointError
from edgespec_export.configuration import read_text
from edgespec_export.defaults import TEXT_DEFAULTS
from edgespec_export.expected import Shapes, refuse
from edgespec_export.geometry import TextGeometry
from edgespec_export.heads.label import KEY

Config = Mapping[str, Any]

FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
"""EAGLE-3's relatives (SpecForge, speculators): same names, other functions.

All default to false where a config is silent, as they do in the engines that serve these heads.
"""
EAGLE3_KEYS = frozenset(
    {
        *FLAGS, "draft_vocab_size", "target_hidden_size", "eagle_config",
        "eagle_aux_hidden_state_layer_ids", "num_aux_hidden_states",
    }
)  # fmt: skip
BIASES = ("bias", "qkv_bias", "attention_bias", "mlp_bias")
INERT = re.compile(
    r"(mm|tune_mm|freeze_mm|unfreeze_mm|use_mm|vision)_.*"  # of a target's vision side
    r"|image_aspect_ratio|image_token_(id|index)|video_token_id|target_model_type|auto_map"
    r"|embed_requires_grad|has_no_defaults_at_init|speculators_.*"
)
"""Keys of published heads that change nothing a head computes."""


@dataclass(frozen=True)
class Settings:
    """What the config says, flattened."""

    text: Config
    """Llama's keys."""
    flags: Mapping[str, bool]
    feature_layers: tuple[int, ...]
    """EAGLE-3: indices into the target's hidden states (0 = embeddings); empty: not said."""
    target_hidden: int | None
    draft_vocab: int | None
    biases: Mapping[str, bool]
    """Those of ``BIASES`` that it says anything of."""
    wrapped: bool
    """Whether it is speculators' wrapper, which leaves out the Llama class's defaults."""


def read_settings(config: Config, variant: str, source: str) -> Settings:
    """Raises CheckpointError by key and value."""
    wrapped = "speculators_model_type" in config
    layer: Config = {}
    if wrapped:
        layer = _wrapped_layer(config, source)
    flat = {**{k: v for k, v in config.items() if k != "transformer_layer_config"}, **layer}
    own = EAGLE3_KEYS if variant == "eagle3" else frozenset[str]()
    text = {
        key: value
        for key, value in flat.items()
        if key not in own and key not in BIASES and key != KEY and not INERT.fullmatch(key)
    }
    return Settings(
        text={**text, "model_type": "llama"},  # the heads are Llama layers, whatever the target is
        flags={flag: _flag(flat, flag, source) or False for flag in FLAGS if flag in own},
        feature_layers=_feature_layers(flat, source) if own else (),
        target_hidden=_whole(flat, "target_hidden_size", source) if own else None,
        draft_vocab=_whole(flat, "draft_vocab_size", source) if own else None,
        biases={k: f for k in BIASES if (f := _flag(flat, k, source)) is not None},
        wrapped=wrapped,
    )


def read_layer(settings: Settings, shapes: Shapes, source: str, vocab: int) -> TextGeometry:
    """The head's one decoder layer. ``vocab``: the target's rows, which the embedding ends with."""
    text = dict(settings.text)
    sizes = tensor_sizes(shapes)
    problems = [
        f"{key} is {said} where the tensors have {sizes[key]}"
        for key in sorted(sizes)
        if isinstance(said := text.get(key), int) and said != sizes[key]
    ]
    layers = text.get("num_hidden_layers")
    if layers not in (None, 1):
        problems.append(f"num_hidden_layers is {layers!r} where a head has 1")
    refuse(source, problems + _bias_problems(settings.biases, shapes))
    text |= {key: size for key, size in sizes.items() if text.get(key) is None}
    text["num_hidden_layers"] = 1
    if text.get("num_attention_heads") is None and not settings.wrapped:
        heads = shapes.get("imadpt.q", ())[1:2]
        if not heads:
            raise CheckpointError(
                f"{source}: config.json lacks num_attention_heads, which no tensor tells"
            )
        text["num_attention_heads"] = heads[0]
    geometry = read_text(text, f"{source}: config.json")
    layer = _layer_prefix(shapes)
    return replace(
        geometry,
        vocab=vocab,
        qkv_bias=f"{layer}self_attn.q_proj.bias" in shapes,
        o_bias=f"{layer}self_attn.o_proj.bias" in shapes,
        mlp_bias=f"{layer}mlp.gate_proj.bias" in shapes,
    )


def defaults_taken(settings: Settings) -> list[str]:
    """Numbers that neither config nor tensors tell, for the description."""
    text = settings.text
    rope = [text.get(key) for key in ("rope_parameters", "rope_scaling")]
    based = any(isinstance(rule, Mapping) and rule.get("rope_theta") for rule in rope)
    taken = [] if text.get("rope_theta") or based else ["rope_theta 10000"]
    keys = ["rms_norm_eps", "max_position_embeddings"]
    if settings.wrapped:
        keys.append("num_attention_heads")
    return taken + [f"{k} {TEXT_DEFAULTS['llama'][k]}" for k in keys if text.get(k) is None]


def tensor_sizes(shapes: Shapes) -> dict[str, int]:
    """Sizes that tensors tell, by the config's names; a tensor that lacks tells nothing."""
    rows = {
        "hidden_size": "fc.weight",
        "intermediate_size": f"{_layer_prefix(shapes)}mlp.gate_proj.weight",
        "vocab_size": "embed_tokens.weight",
    }
    return {key: shapes[name][0] for key, name in rows.items() if len(shapes.get(name, ())) == 2}


def _layer_prefix(shapes: Shapes) -> str:
    return "midlayer." if any(n.startswith("midlayer.") for n in shapes) else "layers.0."


def _bias_problems(said: Mapping[str, bool], shapes: Shapes) -> list[str]:
    """Where a config says of a bias something else than the tensors."""
    layer = _layer_prefix(shapes)
    places = {
        "bias": ["fc"],
        "qkv_bias": [f"{layer}self_attn.q_proj"],
        "attention_bias": [f"{layer}self_attn.q_proj", f"{layer}self_attn.o_proj"],
        "mlp_bias": [f"{layer}mlp.gate_proj"],
    }
    if "qkv_bias" in said:  # the finer key; attention_bias then speaks for the output alone
        del places["attention_bias"][0]
    return [
        f"{key} is {str(value).lower()}, but {name}.bias is {'missing' if value else 'there'}"
        for key, value in said.items()
        for name in places[key]
        if (f"{name}.bias" in shapes) != value
    ]


def _wrapped_layer(config: Config, source: str) -> Config:
    kind, layer = config["speculators_model_type"], config.get("transformer_layer_config")
    if kind != "eagle3":
        raise CheckpointError(
            f"{source}: speculators_model_type is {kind!r}; of that layout edgespec reads 'eagle3'"
        )
    if not isinstance(layer, Mapping):
        raise CheckpointError(f"{source}: transformer_layer_config is {layer!r}; not an object")
    if layer.get("model_type", "llama") != "llama":
        raise CheckpointError(
            f"{source}: transformer_layer_config.model_type is {layer['model_type']!r}; edgespec "
            "builds heads of 'llama' layers"
        )
    return layer


def _feature_layers(flat: Config, source: str) -> tuple[int, ...]:
    """speculators numbers hidden states (0 = embeddings); SpecForge's ``eagle_config`` numbers the
    layers whose outputs they are, so one less."""
    key, shift = "eagle_aux_hidden_state_layer_ids", 0
    value, nested = flat.get(key), flat.get("eagle_config") or {}
    if not isinstance(nested, Mapping) or set(nested) - {key, "use_aux_hidden_state"}:
        raise CheckpointError(f"{source}: eagle_config {nested!r} is not understood")
    if nested.get("use_aux_hidden_state") is False:
        raise CheckpointError(f"{source}: eagle_config asks for a head without auxiliary features")
    if value is None:
        value, shift = nested.get(key), 1
    if _whole(flat, "num_aux_hidden_states", source) not in (None, 3):
        raise CheckpointError(f"{source}: num_aux_hidden_states is not 3; heads of three are built")
    if value is None:
        return ()
    whole = isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)
    if not whole or len(value) != 3:
        raise CheckpointError(f"{source}: {key} is {value!r} where three layers are expected")
    return tuple(i + shift for i in value)


def _flag(config: Config, key: str, source: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{source}: {key} is {value!r} where true or false is expected")
    return value


def _whole(config: Config, key: str, source: str) -> int | None:
    value = config.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise CheckpointError(f"{source}: {key} is {value!r} where a whole number is expected")
    return value
