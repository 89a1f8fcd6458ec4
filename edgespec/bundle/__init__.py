"""The exported artefact: a directory with a versioned manifest, written whole or not at all.

Knows files, hashes and the manifest's schema; knows nothing of engines or checkpoints' contents.
"""

from edgespec.bundle.files import CHUNK, FileEntry, file_sha256
from edgespec.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    STAND_ALONE,
    GraphSpec,
    Manifest,
    ModelIdentity,
    TensorSpec,
)
from edgespec.bundle.opened import ENGINES, Bundle, read_bundle
from edgespec.bundle.partial import JOURNAL, leftovers
from edgespec.bundle.writing import BundleWriter, check_destination, write_bundle

__all__ = [
    "CHUNK",
    "ENGINES",
    "FORMAT_VERSION",
    "JOURNAL",
    "MANIFEST",
    "STAND_ALONE",
    "Bundle",
    "BundleWriter",
    "FileEntry",
    "GraphSpec",
    "Manifest",
    "ModelIdentity",
    "TensorSpec",
    "check_destination",
    "file_sha256",
    "leftovers",
    "read_bundle",
    "write_bundle",
]
