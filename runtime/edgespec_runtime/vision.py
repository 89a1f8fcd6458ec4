"""From a picture to the tensor a vision tower reads, with transformers' own numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError, ImageError
from edgespec_runtime.images import ImageSource, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

# A 1 x 1,000,000 strip would be blown up to 224 x 224,000,000 before the centre is cut out of it.
MAX_RESIZED_PIXELS = 100_000_000

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


@dataclass(frozen=True)
class ImageProcessor:
    """Turn one picture into ``pixel_values``, bit for bit as transformers' Pillow processors do.

    The steps are: pad to a square (LLaVA's ``do_pad``), resize with Pillow, cut the centre (zeros
    where the picture is smaller), rescale, normalise. transformers' torchvision-backed "fast"
    processors do the same steps with another resize (tensors, antialiased) and fused constants.
    Measured with transformers 5.23 and torchvision 0.28: equal where nothing is resized, otherwise
    at most 1 or 2 of 255 levels apart (mean 0.002 to 0.02), and up to 18 (mean 0.36) for one noise
    picture; so an answer that hangs on a near tie may differ.
    """

    resize_to: tuple[int, int] | None  # (H, W) of the resized picture
    shortest_edge: int | None  # or the length of its shorter side, in pixels
    longest_edge: int | None  # with shortest_edge: an upper bound for the longer side
    resample: int  # Pillow's enum: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming
    crop: tuple[int, int] | None  # (H, W) of the centre that is kept
    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    convert_rgb: bool
    pad_square: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageProcessor:
        """Read a preprocessor_config.json, or a processor_config.json's ``image_processor`` part.

        Raises CheckpointError for a processor type or a setting that is not understood, and for
        settings whose output would have no fixed size.
        """
        nested = config.get("image_processor")
        settings = _known_settings(nested if isinstance(nested, Mapping) else config)
        resize_to = shortest = longest = None
        if settings["do_resize"]:
            resize_to, shortest, longest = _resize_target(settings)
        normalise = bool(settings["do_normalize"])
        processor = cls(
            resize_to=resize_to,
            shortest_edge=shortest,
            longest_edge=longest,
            resample=_number("resample", settings["resample"], 0, 5),
            crop=_height_width("crop_size", settings["crop_size"])
            if settings["do_center_crop"]
            else None,
            rescale_factor=_real("rescale_factor", settings["rescale_factor"])
            if settings["do_rescale"]
            else None,
            mean=_triple("image_mean", settings["image_mean"])
            if normalise or settings["do_pad"]
            else None,
            std=_triple("image_std", settings["image_std"]) if normalise else None,
            convert_rgb=bool(settings["do_convert_rgb"]),
            pad_square=bool(settings["do_pad"]),
        )
        processor.size  # noqa: B018  (refuses settings without a fixed output size)
        return processor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the output in pixels, the same for every picture."""
        if self.crop is not None:
            return self.crop
        if self.resize_to is not None:
            return self.resize_to
        if self.shortest_edge is not None and self.pad_square:
            return self._resized(1, 1)
        raise CheckpointError(
            "the image processor's output size depends on the picture (no centre crop, and size is "
            "not height and width); edgespec needs a fixed size: set do_center_crop and crop_size"
        )

    def __call__(self, image: Image) -> npt.NDArray[np.float32]:
        """Pixels of ``image`` as contiguous float32 ``[3, H, W]``. Raises ImageError."""
        picture = self._rgb(image)
        if self.pad_square:
            picture = self._padded(picture)
        height, width = self._resized(picture.height, picture.width)
        if not 0 < height * width <= MAX_RESIZED_PIXELS:
            raise ImageError(
                f"a {image.width} x {image.height} image is too long and thin: resizing it would "
                f"make {width} x {height} pixels; cut it first"
            )
        if self.resize_to is not None or self.shortest_edge is not None:
            picture = picture.resize((width, height), resample=self.resample)
        pixels = np.asarray(picture)
        if self.crop is not None:
            pixels = _center_crop(pixels, *self.crop)
        table = self._table()
        return np.stack([table[c][pixels[:, :, c]] for c in range(3)])

    def _rgb(self, image: Image) -> Image:
        """As transformers does: transparency is laid over white, everything else is converted."""
        from PIL import Image

        if not self.convert_rgb:
            if image.mode != "RGB":
                raise ImageError(
                    f"an image of mode {image.mode}, but this processor has do_convert_rgb off and "
                    f"needs RGB; open the picture with load_image"
                )
            return image
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")

    def _padded(self, picture: Image) -> Image:
        """The picture in the middle of a square of the mean colour."""
        from PIL import Image

        width, height = picture.size
        side = max(width, height)
        if side * side > MAX_RESIZED_PIXELS:
            raise ImageError(
                f"a {width} x {height} image is too long to pad to a square; cut it first"
            )
        red, green, blue = (int(value * 255) for value in self.mean or (0.0, 0.0, 0.0))
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        return square

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) after the resize, with transformers' rounding; unchanged where there is none."""
        if self.resize_to is not None:
            return self.resize_to
        short = self.shortest_edge
        if short is None:
            return height, width
        if self.longest_edge is not None:
            return _bounded_size(height, width, short, self.longest_edge)
        if width <= height:
            return int(short * height / width), short
        return short, int(short * width / height)

    def _table(self) -> npt.NDArray[np.float32]:
        """float32 ``[3, 256]``: what each 8-bit value becomes in each channel.

        Rescaling and normalising look at one value at a time, so 768 of them are computed instead
        of every pixel: the same operations in the same precision, so the same bits in less time.
        """
        values = np.arange(256, dtype=np.float32)
        if self.rescale_factor is not None:  # transformers multiplies in float64, then rounds
            values = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        table = np.repeat(values[None], 3, axis=0)
        if self.mean is None or self.std is None:
            return table
        mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (self.mean, self.std))
        return np.asarray((table - mean) / std, dtype=np.float32)


def preprocess(images: Sequence[ImageSource], processor: ImageProcessor) -> npt.NDArray[np.float32]:
    """Load and process ``images`` into float32 ``[N, 3, H, W]``. Raises ImageError."""
    pixels = np.empty((len(images), 3, *processor.size), dtype=np.float32)
    for row, image in enumerate(images):
        pixels[row] = processor(load_image(image))
    return pixels


def _bounded_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """(H, W) with the shorter side ``short``, unless the longer one would pass ``longest``."""
    target: float = short
    low, high = float(min(height, width)), float(max(height, width))
    if high / low * short > longest:
        target = longest * low / high
        short = round(target)
    if min(height, width) == short:
        return height, width
    if width < height:
        return int(target * height / width), short
    return short, int(target * width / height)


def _center_crop(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """The middle ``[height, width, 3]`` of ``[H, W, 3]``; zeros where the picture does not reach.

    Where the difference is odd, a cut leaves the extra row below and a border gets it above.
    """
    for axis, size in ((0, height), (1, width)):
        missing = size - pixels.shape[axis]
        if missing <= 0:
            start = -missing // 2
            pixels = pixels.take(range(start, start + size), axis=axis)
        else:
            before = math.ceil(missing / 2)
            border = [(0, 0)] * 3
            border[axis] = (before, missing - before)
            pixels = np.pad(pixels, border)
    return pixels


def _known_settings(config: Mapping[str, Any]) -> dict[str, Any]:
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


def _resize_target(
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
            _number("size.shortest_edge", size["shortest_edge"]),
            None if longest is None else _number("size.longest_edge", longest),
        )
    return _height_width("size", size), None, None


def _height_width(key: str, value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        value = (value, value)
    elif isinstance(value, Mapping) and set(value) == {"height", "width"}:
        value = (value["height"], value["width"])
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _bad(key, value, "a number, or height and width")
    return _number(f"{key}.height", value[0]), _number(f"{key}.width", value[1])


def _triple(key: str, value: Any) -> tuple[float, ...]:
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise _bad(key, value, "three numbers")
    numbers = tuple(_real(key, number) for number in values)
    if key == "image_std" and 0.0 in numbers:
        raise _bad(key, value, "three numbers other than 0")
    return numbers


def _real(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _bad(key, value, "a finite number")
    return float(value)


def _number(key: str, value: Any, low: int = 1, high: int = 8192) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _bad(key, value, f"a whole number from {low} to {high}")
    return value


def _bad(key: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"the image processor config has {key} = {value!r}; it must be {wanted}")
