"""Writing a bundle: under its final name it appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import Any

from edgespec.bundle.files import FileEntry, file_sha256
from edgespec.bundle.manifest import FORMAT_VERSION, MANIFEST, Manifest
from edgespec.bundle.partial import JOURNAL, held, publish, sweep
from edgespec.errors import InputError


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
        folder = partial or final.with_name(f".{final.name}.partial-{token_hex(4)}")
        published = False
        try:  # before there is anything to remove: Ctrl-C may come behind any line
            folder.mkdir(mode=0o700, exist_ok=partial is not None)
            with held(folder, wait=partial is None):
                writer = BundleWriter(folder)
                yield writer
                if not (folder / MANIFEST).is_file():
                    raise RuntimeError("a bundle was left without its manifest")
                folder.chmod(0o755)
                (folder / JOURNAL).unlink(missing_ok=True)
                publish(folder, final)
                published = True
        finally:
            if published or not keep:
                shutil.rmtree(folder, ignore_errors=True)
        if keep:
            sweep(final)


def check_destination(path: str | Path, *, overwrite: bool = False, keep: bool = False) -> Path:
    """Where a bundle called ``path`` will lie; sweeps what killed exports to it left behind, but
    for what is to be kept.

    Raises InputError where something exists that must not be overwritten.
    """
    final = Path(path).expanduser().resolve()
    with _os_errors(path):
        sweep(final, keep)
    if final.exists() and not overwrite:
        raise InputError(f"'{path}' already exists; give another --out, or add --overwrite")
    if final.exists() and not (final / MANIFEST).is_file():
        raise InputError(f"'{path}' exists and is no bundle, so it is not overwritten")
    return final


@contextmanager
def _os_errors(path: str | Path, keep: bool = False) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "; what is finished is kept, give --resume again to go on with it" if keep else ""
        raise InputError(f"writing '{path}' failed: {error.strerror or error}{kept}") from error


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
