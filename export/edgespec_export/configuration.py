"""What a checkpoint's config.json says, of a LLaVA or of a text model, strictly: every key that
changes the numbers is either understood or refused by name. Defaults are those of the Hugging Face
config classes, which hub files leave out. Knows no tensors and no graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgespec.errors import CheckpointError
from edgespec_export.defaults import (
    INERT,
    LLAVA_TOWER,
    OTHER_ROTARY,
    TEXT_DEFAULTS,
    VISION_DEFAULTS,
)
from edgespec_export.geometry import (
    LlavaGeometry,
    ModelGeometry,
    Rope,
    TextGeometry,
    VisionGeometry,
)
from edgespec_export.kinds import check_architecture, check_kind

Config = Mapping[str, Any]


def read_geometry(config: Config) -> LlavaGeometry:
    """config.json of a LlavaForConditionalGeneration. Raises CheckpointError by key and value."""
    check_kind(config)
    known = {
        "text_config", "vision_config", "image_token_index", "image_token_id",
        "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy",
        "multimodal_projector_bias", "tie_word_embeddings", "vocab_size",
        "edgespec_target_fingerprint",
    }  # fmt: skip
    _refuse_unknown(config, known, "config.json")
    vision = _vision(_section(config, "vision_config") or LLAVA_TOWER)
    layers = config.get("vision_feature_layer", -2)
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise CheckpointError(f"vision_feature_select_strategy {strategy!r} is not understood")
    text_config = _section(config, "text_config")
    said = [c.get("tie_word_embeddings") for c in (config, text_config)]
    tied = any(said) if any(value is not None for value in said) else None  # either place ties
    return LlavaGeometry(
        vision=vision,
        text=read_text(text_config),
        feature_layers=_feature_layers(layers, vision.layers),
        drop_class_token=strategy == "default",
        projector_activation=_activation(config.get("projector_hidden_act", "gelu")),
        projector_bias=bool(config.get("multimodal_projector_bias", True)),
        image_token_id=_size(
            {"image_token_index": 32000, **_given(config, ("image_token_id", "image_token_index"))},
            "image_token_index",
            least=0,
        ),
        tied_in_config=tied,
    )


def read_model(config: Config) -> ModelGeometry:
    """config.json of a LLaVA or, by its ``model_type``, of a text model. Raises CheckpointError."""
    if str(config.get("model_type")) not in TEXT_DEFAULTS:
        return read_geometry(config)
    check_architecture(config)
    tied = config.get("tie_word_embeddings")
    return ModelGeometry(
        text=read_text(config, "config.json"), tied_in_config=tied, image_token_id=None
    )


def read_text(config: Config, where: str = "text_config") -> TextGeometry:
    """A Llama-family decoder's config; ``where`` names it in messages. Raises CheckpointError."""
    kind = config.get("model_type", "llama")
    defaults = TEXT_DEFAULTS.get(str(kind))
    if defaults is None:
        raise CheckpointError(
            f"{where}.model_type is {kind!r}; edgespec builds: {', '.join(TEXT_DEFAULTS)}"
        )
    known = set(defaults) | {
        "attention_bias", "mlp_bias", "head_dim", "rope_theta", "rope_scaling", "rope_parameters",
        "tie_word_embeddings", "use_sliding_window", "layer_types", *OTHER_ROTARY,
    }  # fmt: skip
    _refuse_unknown(config, known, where)
    asked = [key for key in OTHER_ROTARY if config.get(key)]
    if asked:
        raise CheckpointError(f"{where} sets {asked[0]}, a rotary embedding that is not built")
    merged = {**defaults, **{k: v for k, v in config.items() if v is not None}}
    if merged["hidden_act"] != "silu":
        raise CheckpointError(f"{where}.hidden_act is {merged['hidden_act']!r}; only 'silu'")
    _refuse_windows(config, str(kind), _size(merged, "max_position_embeddings"), where)
    bias = bool(config.get("attention_bias", False))
    hidden, heads = _size(merged, "hidden_size"), _size(merged, "num_attention_heads")
    kv_heads = _size({**merged, "num_key_value_heads": merged["num_key_value_heads"] or heads},
                     "num_key_value_heads")  # fmt: skip
    head_dim = _size({"head_dim": hidden // heads, **_given(config, ("head_dim",))}, "head_dim")
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(
            f"{where}: {heads} heads of size {head_dim} over {kv_heads} key-value heads; heads "
            "must be a multiple of key-value heads and the size even"
        )
    return TextGeometry(
        hidden=hidden,
        intermediate=_size(merged, "intermediate_size"),
        layers=_size(merged, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=_size(merged, "vocab_size"),
        max_positions=_size(merged, "max_position_embeddings"),
        eps=_real(merged, "rms_norm_eps"),
        rope=_rope(config, _size(merged, "max_position_embeddings"), where),
        qkv_bias=bias or kind == "qwen2",
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def _refuse_windows(config: Config, kind: str, positions: int, where: str) -> None:
    window = config.get("sliding_window", 4096) if kind == "mistral" else None  # as transformers
    windowed = window is not None and window < positions
    layer_types = config.get("layer_types") or ["full_attention"]
    full = isinstance(layer_types, list) and all(t == "full_attention" for t in layer_types)
    if windowed or config.get("use_sliding_window") or not full:
        raise CheckpointError(f"{where} asks for sliding-window attention, which is not built")


def _rope(config: Config, max_positions: int, where: str) -> Rope:
    """Reads ``rope_parameters`` (transformers 5) or ``rope_theta`` + ``rope_scaling`` (before)."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{where} asks for rotary scaling {given!r}; not understood")
    rule = {key: value for key, value in given.items() if value is not None}
    theta = _real({"rope_theta": config.get("rope_theta") or 10000.0, **rule}, "rope_theta")
    rule.pop("rope_theta", None)
    old_name = rule.pop("type", "default")
    kind = str(rule.pop("rope_type", old_name))
    if rule.get("partial_rotary_factor") == 1:
        del rule["partial_rotary_factor"]
    known: dict[str, set[str]] = {
        "default": set(),
        "linear": {"factor"},
        "llama3": {
            "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
        },
    }  # fmt: skip
    if kind not in known or set(rule) - known[kind]:
        raise CheckpointError(
            f"{where} asks for rotary scaling {kind!r} with {sorted(rule)}; "
            f"edgespec builds: {', '.join(known)}"
        )
    optional = "original_max_position_embeddings"
    lacking = sorted(known[kind] - set(rule) - {optional})
    if lacking:
        raise CheckpointError(f"{where}: rotary scaling {kind!r} lacks {', '.join(lacking)}")
    trained = max_positions if kind == "llama3" else Rope.original_max_position  # else unused
    return Rope(
        theta=theta,
        kind=kind,
        factor=_real({"factor": 1.0, **rule}, "factor"),
        low_freq_factor=_real({"low_freq_factor": 1.0, **rule}, "low_freq_factor"),
        high_freq_factor=_real({"high_freq_factor": 4.0, **rule}, "high_freq_factor"),
        original_max_position=_size({optional: trained, **rule}, optional),
    )


def _vision(config: Config) -> VisionGeometry:
    kind = config.get("model_type", "clip_vision_model")
    defaults = VISION_DEFAULTS.get(str(kind))
    if defaults is None:
        raise CheckpointError(
            f"vision_config.model_type is {kind!r}; edgespec builds: {', '.join(VISION_DEFAULTS)}"
        )
    _refuse_unknown(config, {*defaults, "vocab_size"}, "vision_config")
    merged = {**defaults, **{k: v for k, v in config.items() if v is not None}}
    if merged["num_channels"] != 3:
        raise CheckpointError(f"vision_config.num_channels is {merged['num_channels']}; only 3")
    vision = VisionGeometry(
        kind=kind.split("_")[0],
        hidden=_size(merged, "hidden_size"),
        intermediate=_size(merged, "intermediate_size"),
        layers=_size(merged, "num_hidden_layers"),
        heads=_size(merged, "num_attention_heads"),
        image_size=_size(merged, "image_size"),
        patch_size=_size(merged, "patch_size"),
        eps=_real(merged, "layer_norm_eps"),
        activation=_activation(merged["hidden_act"]),
    )
    if vision.hidden % vision.heads or vision.patch_size > vision.image_size:
        raise CheckpointError(
            f"vision_config: width {vision.hidden} in {vision.heads} heads, image size "
            f"{vision.image_size} in patches of {vision.patch_size}; that does not divide"
        )
    return vision


def _section(config: Config, key: str) -> Config:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"{key} is {value!r} where an object is expected")
    return value or {}


def _size(config: Config, key: str, least: int = 1) -> int:
    value = config[key]
    most = 1 << 12 if key == "num_hidden_layers" else 1 << 31
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise CheckpointError(
            f"{key} is {value!r} where a whole number from {least} to {most} is expected"
        )
    return value


def _real(config: Config, key: str) -> float:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CheckpointError(f"{key} is {value!r} where a number > 0 is expected")
    return float(value)


def _given(config: Config, keys: tuple[str, ...]) -> Config:
    """The first of ``keys`` that the config sets, under the last one's name."""
    return next(({keys[-1]: config[k]} for k in keys[::-1] if config.get(k) is not None), {})


def _feature_layers(value: Any, layers: int) -> tuple[int, ...]:
    chosen = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in chosen):
        raise CheckpointError(f"vision_feature_layer is {value!r}; a number or a list is expected")
    resolved = tuple(i if i >= 0 else layers + 1 + i for i in chosen)
    if not resolved or any(not 0 <= i <= layers for i in resolved):
        raise CheckpointError(f"vision_feature_layer {value} does not exist in {layers} layers")
    return resolved


def _activation(name: Any) -> str:
    known = ("gelu", "quick_gelu", "gelu_pytorch_tanh")
    if name not in known:
        raise CheckpointError(f"activation {name!r} is not understood; there are {known}")
    return str(name)


def _refuse_unknown(config: Config, known: set[str], where: str) -> None:
    unknown = sorted(set(config) - known - INERT)
    if unknown:
        raise CheckpointError(
            f"{where} has keys edgespec does not understand: {', '.join(unknown)}; "
            "exporting without them could change what the model says"
        )
