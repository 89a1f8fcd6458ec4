"""Fetch the openly licensed drawings and load them as sprites."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgespec.errors import InputError
from edgespec_export.family.objects import objects

SIDE = 128
"""Side of a stored drawing in pixels."""


@dataclass(frozen=True)
class Style:
    """One emoji set: an npm package and the file of a code point inside it."""

    name: str
    package: str
    files: tuple[str, ...]
    licence: str


STYLES: tuple[Style, ...] = (
    Style("noto", "asturur-noto-emoji@3.0.3", ("png/128/emoji_u{}.png",), "Apache-2.0"),
    Style(
        "twemoji",
        "emoji-datasource-twitter@16.0.0",
        ("img/twitter/64/{}.png", "img/twitter/64/{}-fe0f.png"),
        "CC-BY-4.0",
    ),
    Style(
        "fluent",
        "@lobehub/fluent-emoji-3d@1.1.0",
        ("assets/{}.webp", "assets/{}-fe0f.webp"),
        "MIT",
    ),
)
TRAIN_STYLES = ("noto", "twemoji")
HELD_OUT_STYLE = "fluent"

Drawings = dict[str, NDArray[np.uint8]]
"""Style name -> [objects, SIDE, SIDE, 4] RGBA."""


def _pack(style: Style, folder: Path) -> Path:
    """Download the style's npm package into `folder` unless it is there, and return the archive."""
    name, version = style.package.rsplit("@", 1)
    archive = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if archive.exists():
        return archive
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            "npm was not found. The drawings are fetched with `npm pack`: install Node.js (which "
            f"brings npm), or put {archive.name} of package {style.package} into {folder}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [npm, "pack", style.package, "--silent"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode != 0 or not archive.exists():
        raise InputError(f"npm could not fetch {style.package}: {done.stderr.strip()[-500:]}")
    return archive


def _extract(style: Style, archive: Path) -> NDArray[np.uint8]:
    """Read every object's drawing out of the package, as [objects, SIDE, SIDE, 4] RGBA."""
    wanted = {
        f"package/{pattern.format(thing.code)}": kind
        for kind, thing in enumerate(objects())
        for pattern in style.files
    }
    drawings = np.zeros((len(objects()), SIDE, SIDE, 4), np.uint8)
    missing = set(range(len(objects())))
    with tarfile.open(archive) as tar:
        for member in tar:
            kind = wanted.get(member.name)
            handle = tar.extractfile(member) if kind is not None else None
            if kind is None or handle is None:
                continue
            image = (
                Image.open(handle).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            )
            drawings[kind] = np.asarray(image)
            missing.discard(kind)
    if missing:
        names = ", ".join(objects()[kind].name for kind in sorted(missing))
        raise InputError(f"{archive.name} has no drawing of: {names}.")
    return drawings


def load(folder: Path, styles: tuple[str, ...]) -> Drawings:
    """Drawings of the named styles, fetched into `folder` where they are not there yet."""
    loaded: Drawings = {}
    for style in STYLES:
        if style.name not in styles:
            continue
        cache = folder / f"{style.name}-{len(objects())}.npy"
        if not cache.exists():
            found = _extract(style, _pack(style, folder))
            temporary = cache.with_name(cache.stem + "-partial.npy")
            np.save(temporary, found)
            temporary.replace(cache)
        loaded[style.name] = np.load(cache)
    return loaded
