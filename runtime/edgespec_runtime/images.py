"""Opening pictures: limits first, then pixels, and a clear word for everything that is none."""

from __future__ import annotations

import io
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgespec.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

# A string, because Pillow is imported only when a picture is opened.
ImageSource: TypeAlias = "str | Path | bytes | Image | npt.NDArray[Any]"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 40_000_000
MAX_BYTES = 64 * 2**20
# A 1 x 1,000,000 strip would be blown up to 224 x 224,000,000 before the centre is cut out of it.


# `warnings.catch_warnings` swaps a process-wide list: two threads leaving it in the wrong order
# would mute warnings for good. The lock makes decoding one at a time, which costs a server little.
_QUIET = threading.Lock()


def listed(images: ImageSource | Sequence[ImageSource] | None) -> list[ImageSource]:
    """None, one or several pictures as a list."""
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]  # type: ignore[list-item]


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    formats: Sequence[str] = FORMATS,
) -> Image:
    """Return ``source`` as an upright RGB picture, fully decoded and owned by the caller.

    ``source`` is a local path, the bytes of a file, a Pillow image or a uint8 array ``[H, W]``,
    ``[H, W, 1]``, ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA). As transformers does,
    the EXIF orientation is applied and an alpha channel is dropped. One thing differs on purpose:
    16-bit grey is scaled to 8 bits, where Hugging Face's path clips it to a nearly white picture.
    ``formats`` are those that files may have.

    Raises ImageError, in one sentence, for anything that is no single usable picture.
    """
    from PIL.Image import Image

    if isinstance(source, Image):
        return _decode(source, "the given Pillow image", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "the given bytes", max_pixels, max_bytes, formats)
    if isinstance(source, (str, Path)):
        data = _read_file(source, max_bytes)
        return _from_bytes(data, f"'{source}'", max_pixels, max_bytes, formats)
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


def _from_bytes(
    data: bytes, name: str, max_pixels: int, max_bytes: int, formats: Sequence[str]
) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError(f"{name}: the image is empty (0 bytes); give a complete image file")
    if len(data) > max_bytes:
        raise ImageError(
            f"{name}: the image file is larger than the limit of {max_bytes} bytes; make it smaller"
        )
    with _pillow_errors(name):
        try:
            picture = Image.open(io.BytesIO(data), formats=tuple(formats))
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{name}: not an image that can be read; found no {', '.join(formats)} header: "
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
