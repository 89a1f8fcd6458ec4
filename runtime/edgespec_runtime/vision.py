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
from edgespec_runtime.processor_config import (
    height_width,
    known_settings,
    real,
    resize_target,
    triple,
    whole,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# A 1 x 1,000,000 strip would be blown up to 224 x 224,000,000 before the centre is cut out of it.
MAX_RESIZED_PIXELS = 100_000_000


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
        settings = known_settings(nested if isinstance(nested, Mapping) else config)
        resize_to = shortest = longest = None
        if settings["do_resize"]:
            resize_to, shortest, longest = resize_target(settings)
        normalise = bool(settings["do_normalize"])
        processor = cls(
            resize_to=resize_to,
            shortest_edge=shortest,
            longest_edge=longest,
            resample=whole("resample", settings["resample"], 0, 5),
            crop=height_width("crop_size", settings["crop_size"])
            if settings["do_center_crop"]
            else None,
            rescale_factor=real("rescale_factor", settings["rescale_factor"])
            if settings["do_rescale"]
            else None,
            mean=triple("image_mean", settings["image_mean"])
            if normalise or settings["do_pad"]
            else None,
            std=triple("image_std", settings["image_std"]) if normalise else None,
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
