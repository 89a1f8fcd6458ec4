"""A file of a bundle: its size and hash, and whether what lies there is still that."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgespec.errors import BundleError

CHUNK = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 of one file of the bundle."""

    size: int
    sha256: str


def check_file(folder: Path, name: str, entry: FileEntry, check_hash: bool) -> None:
    """Raises BundleError for a listed file that is missing or altered, or lies elsewhere."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise BundleError(f"{folder}: file name '{name}' leads out of the bundle")
    path = folder / name
    if path.is_symlink():
        raise BundleError(f"{path} is a symbolic link; a bundle holds plain files only")
    if not path.is_file():
        raise BundleError(f"{folder}: file '{name}' is missing; copy the whole bundle again")
    size = path.stat().st_size
    if size != entry.size:
        raise BundleError(
            f"{path} has {size} bytes where the manifest says {entry.size}; "
            "copy the bundle again or export it anew"
        )
    if check_hash and file_sha256(path) != entry.sha256:
        raise BundleError(
            f"{path} was altered: its sha256 is not the manifest's; "
            "copy the bundle again or export it anew"
        )


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
