"""From a picture to the tensor a vision tower reads: limits first, then transformers' numbers."""

from __future__ import annotations

import io
import math
import stat
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

# A string, because Pillow is imported only when a picture is opened.
ImageSource: TypeAlias = "str | Path | bytes | Image | npt.NDArray[Any]"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 40_000_000
MAX_BYTES = 64 * 2**20
# A 1 x 1,000,000 strip would be blown up to 224 x 224,000,000 before the centre is cut out of it.
MAX_RESIZED_PIXELS = 100_000_000

# `warnings.catch_warnings` swaps a process-wide list: two threads leaving it in the wrong order
# would mute warnings for good. The lock makes decoding one at a time, which costs a server little.
_QUIET = threading.Lock()


def load_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> Image:
    """Return ``source`` as an upright RGB picture, fully decoded and owned by the caller.

    ``source`` is a local path, the bytes of a file, a Pillow image or a uint8 array ``[H, W]``,
    ``[H, W, 1]``, ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA). As transformers does,
    the EXIF orientation is applied and an alpha channel is dropped. One thing differs on purpose:
    16-bit grey is scaled to 8 bits, where Hugging Face's path clips it to a nearly white picture.

    Raises ImageError, in one sentence, for anything that is no single usable picture.
    """
    from PIL.Image import Image

    if isinstance(source, Image):
        return _decode(source, "the given Pillow image", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "the given bytes", max_pixels, max_bytes)
    if isinstance(source, (str, Path)):
        data = _read_file(source, max_bytes)
        return _from_bytes(data, f"'{source}'", max_pixels, max_bytes)
    raise ImageError(
        f"an image is a path, bytes, a Pillow image or a uint8 array; got {type(source).__name__}"
    )


def _read_file(source: str | Path, max_bytes: int) -> bytes:
    name = str(source)
    if name.startswith(("http://", "https://", "data:")):
        raise ImageError(
            f"'{name[:80]}' is a URL; edgespec opens local files only: download it, give its path"
        )
    path = Path(name)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"'{name}' is a directory; give the path of one image file")
        if not stat.S_ISREG(mode):  # a pipe or a device could block or never end
            raise ImageError(f"'{name}' is not a regular file; give the path of one image file")
        with path.open("rb") as handle:
            return handle.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError(f"no image file at '{name}'; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ImageError(f"cannot read the image file {name!r}: {error}") from error


def _from_bytes(data: bytes, name: str, max_pixels: int, max_bytes: int) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError(f"{name}: the image is empty (0 bytes); give a complete image file")
    if len(data) > max_bytes:
        raise ImageError(
            f"{name}: the image file is larger than the limit of {max_bytes} bytes; make it smaller"
        )
    with _pillow_errors(name):
        try:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{name}: not an image that can be read; found no {', '.join(FORMATS)} header: "
                f"convert it to one of these"
            ) from error
    return _decode(picture, name, max_pixels)


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> Image:
    from PIL import Image

    good_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not good_shape or 0 in array.shape:
        raise ImageError(
            f"an image array must be uint8 of shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; "
            f"got {array.dtype} of shape {list(array.shape)}: convert it first"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    _check_pixels(array.shape[1], array.shape[0], "the given array", max_pixels)
    return _decode(Image.fromarray(np.ascontiguousarray(array)), "the given array", max_pixels)


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the image has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} = {width * height} pixels, more than the limit of "
            f"{max_pixels}; scale the image down first"
        )


def _decode(picture: Image, name: str, max_pixels: int) -> Image:
    """Check what the header says, then decode every pixel and return an upright RGB copy."""
    from PIL import ImageOps

    _check_pixels(picture.width, picture.height, name, max_pixels)
    with _pillow_errors(name):
        # A camera's JPEG with a thumbnail or depth map behind it is an MPO: frame 1 is the picture.
        frames = 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
        if frames > 1:
            raise ImageError(
                f"{name}: an animated or multi-frame image, frame count {frames}; extract one frame"
            )
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture), name)


def _to_rgb(picture: Image, name: str) -> Image:
    """RGB copy of a decoded picture; 16-bit grey keeps its upper 8 bits and is not clipped."""
    from PIL import Image

    if picture.mode == "F":
        raise ImageError(f"{name}: a floating-point image; convert it to 8 bits per channel")
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64)
        low, high = int(grey.min()), int(grey.max())
        if low < 0 or high > 65535:
            raise ImageError(
                f"{name}: grey values from {low} to {high}; convert it to 8 bits per channel"
            )
        if high > 255:
            grey >>= 8
        picture = Image.fromarray(grey.astype(np.uint8))
    return picture.convert("RGB")


@contextmanager
def _pillow_errors(name: str) -> Iterator[None]:
    """Silence Pillow's warnings, and turn whatever it raises on bad data into an ImageError."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except (
            Exception
        ) as error:  # corrupt data surfaces as OSError, SyntaxError, struct.error, ...
            raise ImageError(
                f"{name}: the image is corrupt, truncated or too large to decode "
                f"({type(error).__name__}: {error}); give an intact file"
            ) from error


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
