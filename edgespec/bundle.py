"""The exported artefact: a directory with a versioned manifest, written whole or not at all.

Knows files, hashes and the manifest's schema; knows nothing of engines or checkpoints' contents.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from edgespec.errors import BundleError, InputError
from edgespec.flavour import Flavour

MANIFEST = "edgespec.json"
ENGINES = "engines"  # what `edgespec build` adds, see edgespec/engines.py: not the manifest's
OLD = ".old"  # ends the name of a bundle that is being replaced
JOURNAL = "export.journal"  # of a partial directory: what is finished (edgespec_export/journal.py)
FORMAT_VERSION = 4
CHUNK = 1 << 22
STAND_ALONE = ("vlm", "text")
"""Variants of drafts that are models of their own; others feed on the target's features."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output; ``axes`` are sizes or axis names."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph: what it is for, how it was lowered, what goes in and out."""

    role: str
    """vision, projector, target, draft_vision, draft_projector, compressor, draft, draft_chain,
    draft_features, target_packed"""
    file: str
    lowering: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the role: hidden, layers, kv_heads, head_dim, max_positions, mask_span, ..."""

    @property
    def flavour(self) -> Flavour:
        return Flavour(self.lowering, self.precision)

    @property
    def stem(self) -> str:
        """The file's name without its ending: what the parity report calls the graph."""
        return self.file.removesuffix(".onnx")


@dataclass(frozen=True)
class ModelIdentity:
    """The checkpoint a model came from, so that a draft cannot meet the wrong target."""

    source: str
    architecture: str
    fingerprint: str
    vision_fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime needs to know before it opens a graph."""

    format_version: int
    created_by: str
    graphs: tuple[GraphSpec, ...]
    models: Mapping[str, ModelIdentity]
    """"target" and, where there is one, "draft"."""
    text: Mapping[str, Any]
    """Prompt side: image token and its id (neither, where the target sees no pictures), special
    tokens, vocabulary and context size."""
    generation: Mapping[str, Any]
    """Generation defaults of the checkpoint (sampling, end-of-sequence ids)."""
    compressor: Mapping[str, Any] | None
    parity: Mapping[str, Any]
    """Per graph's stem: the largest difference from the torch original, or "not checked"."""
    tools: Mapping[str, str]
    files: Mapping[str, FileEntry]

    @property
    def flavours(self) -> tuple[Flavour, ...]:
        """What the bundle holds, in the order of its export."""
        return tuple(dict.fromkeys(graph.flavour for graph in self.graphs))

    def graph(self, role: str) -> GraphSpec | None:
        """The graph of that role, if the bundle has one: the first flavour's (``Bundle.only``)."""
        return next((g for g in self.graphs if g.role == role), None)

    @property
    def variant(self) -> str | None:
        """What kind of draft the bundle holds ("vlm", "text", "vispec", ...), None without one."""
        draft = self.graph("draft")
        return str(draft.meta["variant"]) if draft else None

    @property
    def draft_compressor(self) -> str:
        """The compressor of the draft's visual tokens as ``--compressor`` spells it, or "none"."""
        return str((self.compressor or {}).get("name", "none"))


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
    manifest = _parse(manifest_file)
    try:
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry, check_hashes)
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from None
    unlisted = [g.file for g in manifest.graphs if g.file not in manifest.files]
    if unlisted:
        raise BundleError(f"{folder}: the manifest does not list graph file '{unlisted[0]}'")
    # A link to a directory is no directory here: nothing in a bundle may lead out of it.
    present = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if (p.is_symlink() or not p.is_dir()) and not _is_built(folder, p)
    }
    surplus = sorted(present - set(manifest.files) - {MANIFEST})
    if surplus:
        raise BundleError(
            f"{folder} holds files its manifest does not list: {', '.join(surplus[:5])}; "
            "remove them or export again"
        )
    return Bundle(folder, manifest)


def _is_built(folder: Path, path: Path) -> bool:
    """Whether a file lies among the engines, which have an index of their own."""
    inside = path.relative_to(folder).parts
    return inside[0] == ENGINES and len(inside) > 1


def _check_file(folder: Path, name: str, entry: FileEntry, check_hash: bool) -> None:
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


@contextmanager
def write_bundle(
    path: str | Path, *, overwrite: bool = False, keep: bool = False, partial: Path | None = None
) -> Iterator[BundleWriter]:
    """Yields a writer on a temporary sibling directory; renames it to ``path`` at the end.

    Whatever goes wrong, Ctrl-C and a full disk included, nothing appears under the final name and
    the temporary directory is removed; what a killed export left behind is swept by the next one.
    ``keep``: neither is removed before ``path`` is there. ``partial``: the directory to go on in.
    """
    with _os_errors(path, keep):
        final = check_destination(path, overwrite=overwrite, keep=keep)
        final.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{final.name}.partial-"
        folder = partial or Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
        published = False
        try:
            with _held(folder, wait=partial is None):
                writer = BundleWriter(folder)
                yield writer
                if not (folder / MANIFEST).is_file():
                    raise RuntimeError("a bundle was left without its manifest")
                folder.chmod(0o755)
                (folder / JOURNAL).unlink(missing_ok=True)
                _publish(folder, final)
                published = True
        finally:
            if published or not keep:
                shutil.rmtree(folder, ignore_errors=True)
        if keep:
            _sweep(final)


def check_destination(path: str | Path, *, overwrite: bool = False, keep: bool = False) -> Path:
    """Where a bundle called ``path`` will lie; sweeps what killed exports to it left behind, but
    for what is to be kept.

    Raises InputError where something exists that must not be overwritten.
    """
    final = Path(path).expanduser().resolve()
    with _os_errors(path):
        _sweep(final, keep)
    if final.exists() and not overwrite:
        raise InputError(f"'{path}' already exists; give another --out, or add --overwrite")
    if final.exists() and not (final / MANIFEST).is_file():
        raise InputError(f"'{path}' exists and is no bundle, so it is not overwritten")
    return final


def leftovers(path: str | Path) -> list[Path]:
    """Partial directories that killed exports to ``path`` left behind."""
    found = _partial(Path(path).expanduser().resolve())
    return [p for p in found if not p.name.endswith(OLD) and not _in_use(p)]


@contextmanager
def _os_errors(path: str | Path, keep: bool = False) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "; what is finished is kept, give --resume again to go on with it" if keep else ""
        raise InputError(f"writing '{path}' failed: {error.strerror or error}{kept}") from error


@contextmanager
def _held(folder: Path, *, wait: bool) -> Iterator[None]:
    """Marks a partial directory as in use: the kernel drops the lock with the process. Raises
    InputError where another export holds it, unless that is waited for."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then nothing is ever swept there
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise InputError(f"another export goes on with {folder}; wait for it") from None
        folder.stat()  # raises where the other one has just published it
        yield
    finally:
        os.close(handle)


def _in_use(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _publish(folder: Path, final: Path) -> None:
    """Renames ``folder`` to ``final``; an old bundle steps aside and comes back if that fails."""
    if not final.exists():
        folder.rename(final)
        return
    old = folder.with_name(folder.name + OLD)
    final.rename(old)
    try:
        folder.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _partial(final: Path) -> list[Path]:
    return sorted(final.parent.glob(f".{glob.escape(final.name)}.partial-*"))


def _sweep(final: Path, keep: bool = False) -> None:
    """Removes partial directories that no living export holds, unless they are to be kept. Where
    an export was killed between its two renames, the old bundle is put back."""
    for stale in _partial(final):
        if stale.name.endswith(OLD):
            if Path(str(stale)[: -len(OLD)]).exists() and _in_use(Path(str(stale)[: -len(OLD)])):
                continue
            if not final.exists():
                stale.rename(final)
                continue
        elif keep or _in_use(stale):
            continue
        shutil.rmtree(stale, ignore_errors=True)


class BundleWriter:
    """Collects files in the temporary directory and closes with the manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finish(self, **parts: Any) -> Manifest:
        """Hashes every file written so far and writes the manifest last."""
        files = {
            p.relative_to(self.folder).as_posix(): FileEntry(p.stat().st_size, file_sha256(p))
            for p in sorted(self.folder.rglob("*"))
            if p.is_file() and p.name != JOURNAL
        }
        manifest = Manifest(format_version=FORMAT_VERSION, files=files, **parts)
        self.write(manifest)
        return manifest

    def write(self, manifest: Manifest) -> None:
        """Writes the manifest, in place of one that was written before."""
        text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False)
        (self.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _parse(path: Path) -> Manifest:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is no manifest: {error!r}") from None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: the bundle has format version {version}, this edgespec reads "
            f"{FORMAT_VERSION}; export it again with this edgespec"
        )
    unknown = sorted(set(data) - {f.name for f in fields(Manifest)})
    if unknown:
        raise BundleError(f"{path} has unknown keys: {', '.join(unknown)}")
    try:
        data["graphs"] = tuple(_graph(g) for g in data["graphs"])
        data["models"] = {k: ModelIdentity(**v) for k, v in data["models"].items()}
        data["files"] = {k: FileEntry(**v) for k, v in data["files"].items()}
        for key in ("text", "generation", "parity", "tools"):
            data[key] = dict(data[key])
        return Manifest(**data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} does not have the manifest's shape: {error}") from None


def _graph(data: Mapping[str, Any]) -> GraphSpec:
    def tensors(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(r["name"], r["dtype"], tuple(r["axes"])) for r in rows)

    known = dict(data)
    known["inputs"], known["outputs"] = tensors(data["inputs"]), tensors(data["outputs"])
    return GraphSpec(**known)
