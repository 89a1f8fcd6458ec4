"""Feature-level drafts as their authors publish them, at small sizes: exactly their key names and
config keys, written with numpy. Needs neither torch nor the loaders that it is there to test.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.tiny import tiny_config, write_json, write_safetensors, write_tiny

HIDDEN, INTER, HEADS, KV, SIZE, VOCAB, LAYERS = 64, 80, 4, 2, 16, 96, 8
DRAFT_VOCAB = 40
Array = npt.NDArray[Any]


@dataclass
class PublishedHead:
    """A checkpoint that is not yet written; tests change what they like."""

    config: dict[str, Any]
    tensors: dict[str, Array] = field(default_factory=dict)

    def add(self, **shapes: tuple[int, ...]) -> PublishedHead:
        """Random tensors; ``__`` in a name stands for a dot."""
        for spelled, shape in shapes.items():
            name = spelled.replace("__", ".")
            self.tensors[name] = random(name, shape)
        return self

    def with_config(self, **values: Any) -> PublishedHead:
        self.config.update(values)
        return self

    def drop(self, *names: str) -> PublishedHead:
        for name in names:
            del self.tensors[name]
        return self

    def write(self, folder: Path, dtype: str = "F16") -> str:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.config)
        write_safetensors(folder / "model.safetensors", self.tensors, dtype)
        return str(folder)


def random(name: str, shape: tuple[int, ...]) -> Array:
    """Noise that the name seeds, of values that float16 holds exactly."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.integers(-128, 128, shape) / 256).astype(np.float32)


def target_folder(folder: Path, **text: Any) -> Path:
    """A tiny LLaVA of the sizes that the heads are made for."""
    return write_tiny(folder, tiny_config(text_extra={"num_hidden_layers": LAYERS, **text}))


def eagle(*, bias: bool = True, qkv_bias: bool = False, kv_heads: int = KV) -> PublishedHead:
    """EAGLE-1/2 (SafeAILab/EAGLE): with ``fc.bias`` for Vicuna, ``qkv_bias`` for Qwen2."""
    config = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": HIDDEN, "initializer_range": 0.02,
        "intermediate_size": INTER, "max_position_embeddings": 128, "model_type": "llama",
        "num_attention_heads": HEADS, "num_hidden_layers": 1, "pad_token_id": 0,
        "rms_norm_eps": 1e-05, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.28.1", "use_cache": True, "vocab_size": VOCAB,
    }  # fmt: skip
    if kv_heads != HEADS:
        config["num_key_value_heads"] = kv_heads
    if not bias:
        config["bias"] = False
    if qkv_bias:
        config["qkv_bias"] = True
    head = PublishedHead(config)
    head.add(embed_tokens__weight=(VOCAB, HIDDEN), fc__weight=(HIDDEN, 2 * HIDDEN))
    if bias:
        head.add(fc__bias=(HIDDEN,))
    layer(head, "layers.0", HIDDEN, kv_heads, qkv_bias)
    return head


def layer(head: PublishedHead, name: str, width: int, kv_heads: int, qkv_bias: bool) -> None:
    """One decoder layer without its input norms."""
    spelled = name.replace(".", "__")
    rows = {"q_proj": HEADS * SIZE, "k_proj": kv_heads * SIZE, "v_proj": kv_heads * SIZE}
    for linear, count in rows.items():
        head.add(**{f"{spelled}__self_attn__{linear}__weight": (count, width)})
        if qkv_bias:
            head.add(**{f"{spelled}__self_attn__{linear}__bias": (count,)})
    head.add(
        **{
            f"{spelled}__self_attn__o_proj__weight": (HIDDEN, HEADS * SIZE),
            f"{spelled}__mlp__gate_proj__weight": (INTER, HIDDEN),
            f"{spelled}__mlp__up_proj__weight": (INTER, HIDDEN),
            f"{spelled}__mlp__down_proj__weight": (HIDDEN, INTER),
            f"{spelled}__post_attention_layernorm__weight": (HIDDEN,),
        }
    )


def eaglevlm() -> PublishedHead:
    """EAGLE with the input norm restored (SpecVLM's baseline)."""
    return eagle().add(layers__0__input_layernorm__weight=(HIDDEN,))


def msd(*, missing_rows: int = 6) -> PublishedHead:
    """MSD for LLaVA-1.5 (Lyn-Lucy/MSD): original LLaVA's config and its shorter vocabulary."""
    head = eagle(kv_heads=KV).with_config(
        architectures=["LlavaLlamaForCausalLM"], freeze_mm_mlp_adapter=False,
        freeze_mm_vision_resampler=False, image_aspect_ratio="pad", max_length=4096,
        mm_hidden_size=1024, mm_projector_type="mlp2x_gelu", mm_resampler_type=None,
        mm_use_im_patch_token=False, mm_use_im_start_end=False, mm_vision_select_feature="patch",
        mm_vision_select_layer=-2, mm_vision_tower="clip", model_type="llava", pretraining_tp=1,
        rope_scaling=None, tune_mm_mlp_adapter=False, tune_mm_vision_resampler=False,
        unfreeze_mm_vision_tower=False, use_mm_proj=True, vocab_size=VOCAB - missing_rows,
    )  # fmt: skip
    return head.add(embed_tokens__weight=(VOCAB - missing_rows, HIDDEN))


def vispec(*, qkv_bias: bool = False, queries: int = 2) -> PublishedHead:
    """ViSpec (KangJialiang/ViSpec): full attention heads; biases in the drafts for Qwen2.5-VL."""
    head = eagle(qkv_bias=qkv_bias, kv_heads=HEADS).with_config(
        architectures=["LlavaNextForConditionalGeneration"], model_type="llava_next",
        num_key_value_heads=HEADS, rope_scaling=None, pretraining_tp=1,
    )  # fmt: skip
    head.add(
        imadpt__q=(queries, HEADS, SIZE), imadpt__k_proj__weight=(HIDDEN, HIDDEN),
        imadpt__v_proj__weight=(HIDDEN, HIDDEN), imadpt__o_proj__weight=(HIDDEN, HIDDEN),
        img_fc__weight=(HIDDEN, 2 * HIDDEN), img_fc__bias=(HIDDEN,),
    )  # fmt: skip
    if qkv_bias:
        head.add(imadpt__k_proj__bias=(HIDDEN,), imadpt__v_proj__bias=(HIDDEN,))
    return head


def vispec_nemo() -> PublishedHead:
    """ViSpec as NeMo Automodel names it."""
    head = vispec().with_config(architectures=["VispecDraftModel"], vispec_num_query_tokens=2)
    head.drop("imadpt.q").add(img_adaptor__query=(2, HEADS, SIZE), norm__weight=(HIDDEN,))
    return head


def medusa() -> PublishedHead:
    """Medusa heads (FasterDecoding/Medusa)."""
    config = {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "x"}
    head = PublishedHead(config)
    for i in range(2):
        head.tensors[f"{i}.0.linear.weight"] = random("linear", (HIDDEN, HIDDEN))
        head.tensors[f"{i}.0.linear.bias"] = random("bias", (HIDDEN,))
        head.tensors[f"{i}.1.weight"] = random("head", (VOCAB, HIDDEN))
    return head


def eagle3(*, draft_vocab: int = DRAFT_VOCAB, kv_heads: int = KV) -> PublishedHead:
    """EAGLE-3 (SafeAILab/EAGLE): the embedding is the target's; d2t holds offsets."""
    head = eagle(bias=False, kv_heads=kv_heads).with_config(draft_vocab_size=draft_vocab)
    del head.config["bias"]
    head.tensors.clear()
    layer(head, "midlayer", 2 * HIDDEN, kv_heads, False)
    head.add(
        fc__weight=(HIDDEN, 3 * HIDDEN), midlayer__hidden_norm__weight=(HIDDEN,),
        midlayer__input_layernorm__weight=(HIDDEN,), norm__weight=(HIDDEN,),
        lm_head__weight=(draft_vocab, HIDDEN),
    )  # fmt: skip
    kept = kept_ids(draft_vocab)
    head.tensors["d2t"] = kept - np.arange(draft_vocab)
    head.tensors["t2d"] = np.isin(np.arange(VOCAB), kept)
    return head


def kept_ids(count: int) -> npt.NDArray[np.int64]:
    """Which target tokens the drafts' heads keep."""
    rng = np.random.default_rng(3)
    return np.sort(rng.choice(VOCAB, count, replace=False)).astype(np.int64)


def specforge(**flags: Any) -> PublishedHead:
    """EAGLE-3 as SpecForge (sgl-project/SpecForge) writes it."""
    head = eagle3().with_config(
        architectures=["LlamaForCausalLMEagle3"], attention_bias=False, attention_dropout=0.0,
        head_dim=SIZE, max_window_layers=28, rope_scaling=None, rope_theta=1000000.0,
        sliding_window=None, use_sliding_window=False, **flags,
    )  # fmt: skip
    if flags.get("fc_norm"):
        for i in range(3):
            head.add(**{f"fc_norm__{i}__weight": (HIDDEN,)})
    return head


def speculators(**flags: Any) -> PublishedHead:
    """EAGLE-3 as speculators (vllm-project/speculators) writes it: another name for the layer, a
    wrapped config that leaves out what the Llama class takes by default."""
    inner = eagle3()
    text = {k: v for k, v in inner.config.items() if k not in ("draft_vocab_size", "architectures")}
    del text["max_position_embeddings"]
    config = {
        "architectures": ["Eagle3Speculator"], "draft_vocab_size": DRAFT_VOCAB,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3], "embed_requires_grad": False,
        "has_no_defaults_at_init": False, "norm_before_residual": True,
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "x"}},
        "speculators_model_type": "eagle3", "speculators_version": "0.3.0",
        "target_hidden_size": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformer_layer_config": text, "transformers_version": "4.57.1", **flags,
    }  # fmt: skip
    head = PublishedHead(config)
    for name, tensor in inner.tensors.items():
        head.tensors[name.replace("midlayer.", "layers.0.")] = tensor
    head.add(embed_tokens__weight=(VOCAB, HIDDEN))
    if flags.get("norm_before_fc"):
        head.add(input_norm__weight=(3 * HIDDEN,))
    return head


PUBLISHED: Mapping[str, Callable[[], PublishedHead]] = {
    "eagle-vicuna": eagle,
    "eagle-llama3": lambda: eagle(bias=False).with_config(rope_theta=500000.0),
    "eagle-qwen2": lambda: eagle(qkv_bias=True),
    "eagle-mha": lambda: eagle(kv_heads=HEADS),
    "eaglevlm": eaglevlm,
    "vispec-llava": vispec,
    "vispec-qwen": lambda: vispec(qkv_bias=True),
    "vispec-four": lambda: vispec(queries=4),
    "eagle3-official": eagle3,
    "eagle3-whole": lambda: eagle3(draft_vocab=VOCAB),
    "eagle3-specforge": specforge,
    "eagle3.1-specforge": lambda: specforge(fc_norm=True, norm_output=True),
    "eagle3-speculators": speculators,
    "eagle3-speculators-fc": lambda: speculators(norm_before_fc=True, norm_before_residual=False),
}
"""Every layout that opens without being told its variant; the name begins with the variant."""
