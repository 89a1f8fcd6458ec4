"""Pictures as they travel: the original JPEG or PNG file where there is one, else a PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgespec_runtime.images import ImageSource, load_image
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import picture_digest

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG


@dataclass(frozen=True)
class Shown:
    """One picture of a prompt."""

    message: pb.Picture
    """As it is sent the first time."""
    pixels: int = 0
    """0 for embeddings."""

    @cached_property
    def digest(self) -> bytes:
        """The sha256 by which the server knows it from then on."""
        return picture_digest(self.message)


def as_file(source: ImageSource) -> Shown:
    """``source`` as a file whose pixels, read by the server, are those that are read here.

    Raises ImageError for what is no usable picture, in the words of ``load_image``.
    """
    # Decoded here in any case: a bad picture is the user's to hear of before anything is sent.
    picture = load_image(source)
    data = _original(source)
    if not data.startswith(SIGNATURES):
        out = io.BytesIO()
        picture.save(out, format="PNG", compress_level=1)
        data = out.getvalue()
    return Shown(pb.Picture(file=data), picture.width * picture.height)


def as_embeddings(visual: npt.NDArray[np.float32]) -> Shown:
    """Visual tokens [P, H] in place of their picture."""
    rows, width = visual.shape
    data = np.ascontiguousarray(visual, dtype="<f4").tobytes()
    return Shown(pb.Picture(embeddings=pb.Embeddings(rows=rows, width=width, data=data)))


def too_large(shown: tuple[Shown, ...], limits: pb.Limits) -> str:
    """Why the server would refuse a picture, as one sentence; empty where it would not."""
    for picture in shown:
        if picture.pixels > limits.image_pixels:
            return (
                f"it takes pictures of {limits.image_pixels} pixels, one has {picture.pixels}; "
                "scale it down"
            )
        if (size := len(picture.message.file)) > limits.image_bytes:
            return (
                f"it takes picture files of {limits.image_bytes} bytes, one has {size}; scale it "
                "down, or save it as JPEG"
            )
    return ""


def _original(source: ImageSource) -> bytes:
    """The file's bytes, empty where the source is none."""
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    return bytes(source) if isinstance(source, (bytes, bytearray, memoryview)) else b""
