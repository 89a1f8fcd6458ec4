"""Pictures of tenants: bounded decoding, and their visual tokens kept for the next time."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from edgespec.errors import ImageError
from edgespec_runtime.images import load_image
from edgespec_runtime.vision import ImageProcessor
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal

Floats = npt.NDArray[np.float32]
FORMATS = ("JPEG", "PNG")
_Key = tuple[str, bytes]


class Pictures:
    """Visual tokens [P, H] by tenant and digest; what was not used for longest goes first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._kept: OrderedDict[_Key, Floats] = OrderedDict()
        self.bytes = 0
        """Held now."""

    def get(self, tenant: str, digest: bytes) -> Floats | None:
        """The tokens, if the tenant sent this picture and it is still here."""
        found = self._kept.get((tenant, digest))
        if found is not None:
            self._kept.move_to_end((tenant, digest))
        return found

    def put(self, tenant: str, digest: bytes, tokens: Floats) -> None:
        """Keeps them while there is room."""
        if tokens.nbytes > self._budget or (tenant, digest) in self._kept:
            return
        self._kept[tenant, digest] = tokens
        self.bytes += tokens.nbytes
        while self.bytes > self._budget:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Lets go of everything."""
        self._kept.clear()
        self.bytes = 0


def decode(data: bytes, processor: ImageProcessor, *, most_bytes: int, most_pixels: int) -> Floats:
    """A JPEG or PNG file as the tower reads it, [3, h, w]; limits are checked before pixels are.

    Raises Refusal INVALID for what is no such picture.
    """
    try:
        picture = load_image(data, max_pixels=most_pixels, max_bytes=most_bytes, formats=FORMATS)
        return processor(picture)
    except ImageError as error:
        raise Refusal(Reason.INVALID, str(error)) from None


def embedded(sent: pb.Embeddings, rows: int, width: int) -> Floats:
    """Visual tokens [rows, width] that the client made itself. Raises Refusal INVALID."""
    if (sent.rows, sent.width, len(sent.data)) != (rows, width, 4 * rows * width):
        raise Refusal(
            Reason.INVALID,
            f"embeddings of {sent.rows} x {sent.width} in {len(sent.data)} bytes were sent; "
            f"a picture is {rows} x {width} float32",
        )
    tokens = np.frombuffer(sent.data, dtype="<f4").reshape(rows, width)
    if not np.isfinite(tokens).all():
        raise Refusal(Reason.INVALID, "embeddings hold numbers that are not finite")
    return tokens
