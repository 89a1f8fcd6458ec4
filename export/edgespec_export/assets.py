"""The small files beside the weights: tokenizer, chat template, image processor, generation
defaults. Read and checked here, copied into the bundle, used by the runtime without transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgespec.errors import CheckpointError
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import LlavaGeometry, ModelGeometry
from edgespec_runtime.vision import ImageProcessor

# What decides the ids a text becomes; truncation and padding do not belong to it.
TOKENIZER_PARTS = (
    "model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
)  # fmt: skip

# Defaults of generation_config.json that the runtime applies, and neutral values of those it
# does not have: anything else would change the target's text, so it is refused.
APPLIED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": (),
    "num_beams": (1,), "num_beam_groups": (1,), "penalty_alpha": (), "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "diversity_penalty": (0.0,),
    "encoder_repetition_penalty": (1.0,), "length_penalty": (1.0,), "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "sequence_bias": (), "guidance_scale": (1.0,), "min_length": (0,), "min_new_tokens": (0,),
    "exponential_decay_length_penalty": (), "force_words_ids": (), "constraints": (),
    "remove_invalid_values": (False,), "watermarking_config": (), "top_h": (),
    "stop_strings": (), "token_healing": (False,), "dola_layers": (), "max_time": (),
}  # fmt: skip


BARE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The template of a text model that has none: the prompt is continued as it is."""

CONFIGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "processor_config.json",
)  # fmt: skip
"""What transformers reads beside the files that every bundle has."""


@dataclass(frozen=True)
class Assets:
    """Contents of the bundle's small files, checked."""

    tokenizer: Mapping[str, Any]
    chat_template: str
    processor: Mapping[str, Any] | None
    """None where the model sees no pictures."""
    text: Mapping[str, Any]
    generation: Mapping[str, Any]


def read_assets(checkpoint: Checkpoint, geometry: ModelGeometry) -> Assets:
    """Everything of a target but its weights. Raises CheckpointError naming what is missing."""
    tokenizer = read_tokenizer(checkpoint)
    settings = checkpoint.json_file("tokenizer_config.json") or {}
    template = _chat_template(checkpoint, settings)
    text = _text(geometry, settings)
    if isinstance(geometry, LlavaGeometry):
        text |= _image_token(checkpoint, geometry, tokenizer)
        if template is None:
            raise CheckpointError(
                f"{checkpoint.source} has no chat template (chat_template.jinja, "
                "chat_template.json, or a chat_template in processor_config.json or "
                "tokenizer_config.json)"
            )
    else:  # as transformers: a text model's template writes its special tokens itself
        text["adds_special_tokens"] = template is None
    return Assets(
        tokenizer=tokenizer,
        chat_template=BARE if template is None else template,
        processor=read_processor(checkpoint) if isinstance(geometry, LlavaGeometry) else None,
        text=text,
        generation=_generation(checkpoint, geometry),
    )


def config_files(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the configuration files that a checkpoint has."""
    for name in CONFIGS:
        if (checkpoint.path / name).is_file():
            yield name, (checkpoint.path / name).read_bytes()


def read_tokenizer(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """tokenizer.json, parsed."""
    tokenizer = checkpoint.json_file("tokenizer.json")
    if tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.source} has no tokenizer.json; make one with transformers: "
            "AutoTokenizer.from_pretrained(PATH).save_pretrained(PATH)"
        )
    return tokenizer


def check_vocabulary(checkpoint: Checkpoint, geometry: ModelGeometry) -> None:
    """Every id that the tokenizer can give, and the image token's, has a row in the embedding."""
    tokenizer = read_tokenizer(checkpoint)
    try:
        words = tokenizer["model"]["vocab"]
        ids = words.values() if isinstance(words, dict) else range(len(words))
        added = [int(row["id"]) for row in tokenizer.get("added_tokens") or []]
        highest = max([geometry.image_token_id or 0, *map(int, ids), *added])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.source}: tokenizer.json has no vocabulary of the usual shape: {error!r}"
        ) from None
    if highest >= geometry.text.vocab:
        raise CheckpointError(
            f"{checkpoint.source}: the tokenizer or the image token uses id {highest}, but the "
            f"vocabulary has {geometry.text.vocab} rows; resize the embeddings"
        )


def check_image_size(checkpoint: Checkpoint, geometry: LlavaGeometry) -> ImageProcessor:
    """The image processor, if what it makes is what the vision tower takes."""
    processor = ImageProcessor.from_config(read_processor(checkpoint))
    height, width = processor.size
    side = geometry.vision.image_size
    if (height, width) != (side, side):
        raise CheckpointError(
            f"{checkpoint.source}: the image processor makes {height} x {width} pixels, but "
            f"vision_config.image_size is {side}; make them agree"
        )
    return processor


def check_same_tokenizer(target: Checkpoint, draft: Checkpoint) -> None:
    """A draft speaks in the target's ids, or it is refused, naming what differs."""
    ours, theirs = read_tokenizer(target), read_tokenizer(draft)
    differing = [part for part in TOKENIZER_PARTS if ours.get(part) != theirs.get(part)]
    if differing:
        raise CheckpointError(
            f"the tokenizers of target '{target.source}' and draft '{draft.source}' differ in: "
            f"{', '.join(differing)}; a draft must use its target's tokenizer"
        )


def read_processor(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The image processor's settings, from either of the two places where they are kept."""
    own = checkpoint.json_file("preprocessor_config.json")
    if own is not None:
        return own
    nested = (checkpoint.json_file("processor_config.json") or {}).get("image_processor")
    if not isinstance(nested, dict):
        raise CheckpointError(
            f"{checkpoint.source} has neither preprocessor_config.json nor an image_processor in "
            "processor_config.json"
        )
    return nested


def _chat_template(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str | None:
    file = checkpoint.path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for holder in (
        checkpoint.json_file("chat_template.json"),
        checkpoint.json_file("processor_config.json"),
        settings,
    ):
        template = (holder or {}).get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {row.get("name"): row.get("template") for row in template}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


def _text(geometry: ModelGeometry, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "visual_tokens": geometry.visual_tokens,
        "vocab_size": geometry.text.vocab,
        "max_positions": geometry.text.max_positions,
        "special_tokens": {
            key: _content(settings[key])
            for key in ("bos_token", "eos_token", "unk_token", "pad_token")
            if settings.get(key)
        },
    }


def _image_token(
    checkpoint: Checkpoint, geometry: LlavaGeometry, tokenizer: Mapping[str, Any]
) -> dict[str, Any]:
    by_id = {row["id"]: row["content"] for row in tokenizer.get("added_tokens") or []}
    image_token = by_id.get(geometry.image_token_id)
    if image_token is None:
        vocabulary = (tokenizer.get("model") or {}).get("vocab")
        words = vocabulary if isinstance(vocabulary, dict) else {}
        image_token = next((w for w, i in words.items() if i == geometry.image_token_id), None)
    if image_token is None:
        raise CheckpointError(
            f"{checkpoint.source}: the image token id {geometry.image_token_id} of config.json is "
            "not in tokenizer.json"
        )
    return {"image_token": image_token, "image_token_id": geometry.image_token_id}


def _content(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token)


def _generation(checkpoint: Checkpoint, geometry: ModelGeometry) -> Mapping[str, Any]:
    config = checkpoint.json_file("generation_config.json") or {}
    for key, neutral in NEUTRAL.items():
        value = config.get(key)
        if value is not None and value not in neutral:
            raise CheckpointError(
                f"{checkpoint.source}: generation_config.json sets {key}={json.dumps(value)}, "
                "which edgespec cannot apply; remove it there if you can do without"
            )
    text_config = checkpoint.config.get("text_config") or {}
    eos = config.get(
        "eos_token_id", checkpoint.config.get("eos_token_id", text_config.get("eos_token_id", 2))
    )
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    outside = [i for i in eos_ids if not (isinstance(i, int) and 0 <= i < geometry.text.vocab)]
    if outside:
        raise CheckpointError(f"{checkpoint.source}: end-of-sequence ids {outside} do not exist")
    applied = {key: config[key] for key in APPLIED if config.get(key) is not None}
    return {"eos_token_ids": eos_ids, **applied}
