"""What the configuration of an image processor says, as Hugging Face writes it, read strictly.

Whatever raises here raises CheckpointError, naming the key and its value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgespec.errors import CheckpointError

_CLIP_MEAN, _CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
_CLIP_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
    "do_convert_rgb": True,
    "do_pad": False,
}
_SIGLIP_DEFAULTS: dict[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "crop_size": None,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_FAMILIES = {"CLIP": _CLIP_DEFAULTS, "Siglip": _SIGLIP_DEFAULTS, "Llava": _CLIP_DEFAULTS}
_SUFFIXES = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
_TYPES = {family + suffix: family for family in _FAMILIES for suffix in _SUFFIXES}
# Keys that Hugging Face writes and that change nothing for one picture on a CPU.
_INERT = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "use_fast", "device"),
    *("return_tensors", "disable_grouping", "image_seq_length", "_valid_processor_keys"),
    *("_name_or_path", "transformers_version", "pad_size"),
}


def known_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The family's defaults under the config's own values; refuse what has an unknown effect."""
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    if not isinstance(name, str) or name not in _TYPES:
        raise CheckpointError(
            f"image_processor_type is {name!r}; edgespec knows CLIPImageProcessor, "
            f"SiglipImageProcessor and LlavaImageProcessor (also as ...Fast): use one of these"
        )
    settings = dict(_FAMILIES[_TYPES[name]])
    for key, value in config.items():
        if value is None or key in _INERT:  # Hugging Face reads null as "the default"
            continue
        if key in settings:
            settings[key] = value
        elif value is not False and (key, value) not in (
            ("data_format", "channels_first"),
            ("input_data_format", "channels_first"),
        ):
            raise CheckpointError(
                f"the image processor config has {key} = {value!r}, which edgespec does not know; "
                f"remove it if it changes nothing"
            )
    for key in [key for key in settings if key.startswith("do_")]:
        if not isinstance(settings[key], bool):
            raise _bad(key, settings[key], "true or false")
    if settings["do_pad"] and _TYPES[name] != "Llava":
        raise CheckpointError(f"do_pad = true is known for LlavaImageProcessor only; found {name}")
    return settings


def resize_target(
    settings: Mapping[str, Any],
) -> tuple[tuple[int, int] | None, int | None, int | None]:
    """((H, W) or None, shortest edge or None, longest edge or None) from ``size``."""
    size = settings["size"]
    if isinstance(size, int) and not settings["default_to_square"]:
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if not set(size) <= {"shortest_edge", "longest_edge"}:
            raise _bad("size", size, "shortest_edge, with or without longest_edge")
        longest = size.get("longest_edge")
        return (
            None,
            whole("size.shortest_edge", size["shortest_edge"]),
            None if longest is None else whole("size.longest_edge", longest),
        )
    return height_width("size", size), None, None


def height_width(key: str, value: Any) -> tuple[int, int]:
    """(H, W), of one number or of two."""
    if isinstance(value, int):
        value = (value, value)
    elif isinstance(value, Mapping) and set(value) == {"height", "width"}:
        value = (value["height"], value["width"])
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _bad(key, value, "a number, or height and width")
    return whole(f"{key}.height", value[0]), whole(f"{key}.width", value[1])


def triple(key: str, value: Any) -> tuple[float, ...]:
    """One number for each channel, of one or of three."""
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise _bad(key, value, "three numbers")
    numbers = tuple(real(key, number) for number in values)
    if key == "image_std" and 0.0 in numbers:
        raise _bad(key, value, "three numbers other than 0")
    return numbers


def real(key: str, value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _bad(key, value, "a finite number")
    return float(value)


def whole(key: str, value: Any, low: int = 1, high: int = 8192) -> int:
    """A whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _bad(key, value, f"a whole number from {low} to {high}")
    return value


def _bad(key: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"the image processor config has {key} = {value!r}; it must be {wanted}")
