"""What a device and a server must share before one may verify for the other."""

from __future__ import annotations

import hashlib

from edgespec.bundle import Bundle
from edgespec_runtime.wire import verifier_pb2 as pb


def fingerprints(bundle: Bundle) -> pb.Fingerprints:
    """Of a bundle's target, its tokenizer, and what becomes of a picture: raw sha256 digests.

    The weights of the vision tower count as a part of the preprocessing: with other ones the same
    picture means something else. Precision and lowering of the graphs do not count.
    """
    target = bundle.manifest.models["target"]
    files = bundle.manifest.files
    settings = files.get("preprocessor_config.json")  # none where the target sees no pictures
    processor = bytes.fromhex(settings.sha256) if settings else b""
    return pb.Fingerprints(
        target=_digest(target.fingerprint),
        tokenizer=bytes.fromhex(files["tokenizer.json"].sha256),
        preprocess=hashlib.sha256(processor + target.vision_fingerprint.encode()).digest(),
    )


def _digest(fingerprint: str) -> bytes:
    """The exporter's fingerprints are hex digests; one of another origin is hashed."""
    try:
        raw = bytes.fromhex(fingerprint)
    except ValueError:
        raw = b""
    return raw if len(raw) == 32 else hashlib.sha256(fingerprint.encode()).digest()
