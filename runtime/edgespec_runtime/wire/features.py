"""Target features on their way down: two bytes a number, or one and a scale per row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgespec_runtime.wire.verifier_pb2 import FLOAT16, INT8, Features

Floats = npt.NDArray[np.float32]
LARGEST = np.float32(np.finfo(np.float16).max)
STEPS = 127
LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(STEPS), np.float32(0))
"""Of those that STEPS times are still finite: the quotient is rounded up."""


def encode(features: Floats, kind: Features) -> bytes:
    """Rows of features [R, F] float32, little endian; no bytes for NO_FEATURES.

    FLOAT16 saturates at its largest number. INT8 holds per row a float32 scale (its largest
    magnitude / 127), then F signed bytes. Raises ValueError for numbers that are not finite.
    """
    if kind not in (FLOAT16, INT8):
        return b""
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    if kind == FLOAT16:
        return np.clip(features, -LARGEST, LARGEST).astype("<f2").tobytes()
    peaks = np.abs(features).max(axis=1, initial=0.0).astype("<f4")
    scales = np.minimum(peaks / np.float32(STEPS), LARGEST_SCALE)
    # A row of zeros has no scale; one that is too small to divide by counts as zeros.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        steps = np.rint(features / scales[:, None])
    levels = np.clip(np.nan_to_num(steps), -STEPS, STEPS).astype(np.int8)
    packed = np.empty((len(features), 4 + features.shape[1]), dtype=np.uint8)
    packed[:, :4] = scales[:, None].view(np.uint8)
    packed[:, 4:] = levels.view(np.uint8)
    return packed.tobytes()


def decode(data: bytes, rows: int, width: int, kind: Features) -> Floats:
    """What ``encode`` was given, [rows, width] float32, up to rounding.

    Raises ValueError where ``data`` is not exactly that many rows, or holds numbers that are not
    finite.
    """
    per_row = bytes_per_row(width, kind)
    if len(data) != rows * per_row:
        raise ValueError(
            f"{len(data)} bytes of features came, {rows} rows of {per_row} were to come"
        )
    if kind == FLOAT16:
        features = np.frombuffer(data, "<f2").astype(np.float32).reshape(rows, width)
    else:
        packed = np.frombuffer(data, np.uint8).reshape(rows, per_row)
        scales = packed[:, :4].copy().view("<f4")
        with np.errstate(over="ignore", invalid="ignore"):
            features = packed[:, 4:].view(np.int8).astype(np.float32) * scales
    if not np.isfinite(features).all():
        raise ValueError("features that came are not finite")
    return features


def bytes_per_row(width: int, kind: Features) -> int:
    """Size of one row on the wire. Raises ValueError for NO_FEATURES and kinds not known here."""
    if kind == FLOAT16:
        return 2 * width
    if kind == INT8:
        return 4 + width
    raise ValueError(f"features of kind {kind} have no form")
