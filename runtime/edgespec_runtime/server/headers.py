"""What a picture's file says of itself, read without decoding a pixel.

Only JPEG (ITU T.81) and PNG (ISO/IEC 15948, and APNG's ``acTL``) exist here: whatever else is sent
never reaches a decoder.
"""

from __future__ import annotations

import struct

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
MAX_SEGMENTS = 1024
FORMATS = ("JPEG", "PNG")


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG or a still PNG in pixels. Raises ValueError for anything else;
    whether the pixels are all there shows when they are decoded."""
    if data.startswith(PNG):
        return _png_size(data)
    if data.startswith(JPEG):
        return _jpeg_size(data)
    raise ValueError(f"it is neither of {' nor '.join(FORMATS)}")


def _png_size(data: bytes) -> tuple[int, int]:
    at = len(PNG)
    size: tuple[int, int] | None = None
    for _ in range(MAX_SEGMENTS):
        if at + 12 > len(data):
            raise ValueError("the PNG ends too early")
        length, kind = struct.unpack_from(">I4s", data, at)
        if size is None:
            if kind != b"IHDR" or length != 13 or at + 25 > len(data):
                raise ValueError("the PNG has no header")
            size = struct.unpack_from(">II", data, at + 8)
        elif kind == b"acTL" and data[at + 8 : at + 12] != b"\0\0\0\1":  # frames
            raise ValueError("the PNG is animated")
        elif kind == b"IDAT":
            return size
        at += 12 + length
    raise ValueError("the PNG has no pixels")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(MAX_SEGMENTS):
        while data[at : at + 2] == b"\xff\xff":  # fill bytes before a marker
            at += 1
        if at + 4 > len(data) or data[at] != 0xFF:
            raise ValueError("the JPEG ends too early or is broken")
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        # Start of frame: C0..CF without the tables C4 (Huffman), C8 (reserved), CC (arithmetic).
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if at + 9 > len(data):
                raise ValueError("the JPEG ends too early")
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker in (0xD9, 0xDA) or length < 2:
            break
        at += 2 + length
    raise ValueError("the JPEG has no frame")
