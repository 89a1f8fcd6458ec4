"""An opened bundle, whole and unaltered: every listed file is there, and no other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgespec.bundle.files import check_file
from edgespec.bundle.manifest import MANIFEST, Manifest, read_manifest
from edgespec.errors import BundleError
from edgespec.flavour import Flavour

ENGINES = "engines"  # what `edgespec build` adds, see edgespec/engines.py: not the manifest's


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle."""

    path: Path
    manifest: Manifest

    def only(self, flavour: Flavour) -> Bundle:
        """The same bundle, whose manifest shows the graphs of that flavour alone. Raises
        BundleError where it holds none."""
        graphs = tuple(g for g in self.manifest.graphs if g.flavour == flavour)
        if not graphs:
            raise BundleError(
                f"{self.path} holds no graphs of flavour '{flavour}', only "
                f"{', '.join(map(str, self.manifest.flavours))}; export it again with --lowering "
                f"{flavour}"
            )
        return replace(self, manifest=replace(self.manifest, graphs=graphs))

    def file(self, name: str) -> Path:
        """Path of a listed file. Raises BundleError for one that the manifest does not list."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the bundle has no file '{name}'; export it again")
        return self.path / name


def read_bundle(path: str | Path, *, check_hashes: bool = True) -> Bundle:
    """Opens a bundle and checks it: version, exact file set, sizes and (by default) hashes.

    Raises BundleError naming the file that is missing, altered, or does not belong.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise BundleError(
            f"bundle '{path}' {'is a file' if folder.exists() else 'does not exist'}; "
            "give a directory that `edgespec export` wrote"
        )
    manifest_file = folder / MANIFEST
    if not manifest_file.is_file():
        raise BundleError(f"'{path}' is no bundle: it holds no {MANIFEST}")
    manifest = read_manifest(manifest_file)
    try:
        for name, entry in manifest.files.items():
            check_file(folder, name, entry, check_hashes)
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from None
    unlisted = [g.file for g in manifest.graphs if g.file not in manifest.files]
    if unlisted:
        raise BundleError(f"{folder}: the manifest does not list graph file '{unlisted[0]}'")
    if surplus := _surplus(folder, manifest):
        raise BundleError(
            f"{folder} holds files its manifest does not list: {', '.join(surplus[:5])}; "
            "remove them or export again"
        )
    return Bundle(folder, manifest)


def _surplus(folder: Path, manifest: Manifest) -> list[str]:
    """Files that do not belong, by name."""
    # A link to a directory is no directory here: nothing in a bundle may lead out of it.
    present = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if (p.is_symlink() or not p.is_dir()) and not _is_built(folder, p)
    }
    return sorted(present - set(manifest.files) - {MANIFEST})


def _is_built(folder: Path, path: Path) -> bool:
    """Whether a file lies among the engines, which have an index of their own."""
    inside = path.relative_to(folder).parts
    return inside[0] == ENGINES and len(inside) > 1
