"""The same weights in every peer's form, converted once and found again."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.contenders import Contender
from benchmarks.peers.environments import Environments, Skipped, run, say

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Models:
    """Converted models below ``folder``."""

    folder: Path
    environments: Environments
    checkpoint: Path
    draft: Path | None = None
    _failed: dict[Path, Skipped] = field(default_factory=dict)

    def target(self, contender: Contender) -> Path:
        """What the contender loads as its model. Raises Skipped."""
        return self._converted(contender, self.checkpoint)

    def drafted(self, contender: Contender) -> Path | None:
        """What it loads as its draft, None where it needs none: for edgespec, a bundle of both."""
        if contender.mode != "draft":
            return None
        assert self.draft is not None
        if contender.peer.name == "edgespec":
            return self._converted(contender, self.checkpoint, self.draft)
        return self._converted(contender, self.draft)

    def _converted(self, contender: Contender, *checkpoints: Path) -> Path:
        peer = contender.peer
        if not peer.converts:
            return checkpoints[0]
        versions = self.environments.versions[peer.name]
        made_of = [identity(c) for c in checkpoints]
        made_by = sources() if peer.name == "edgespec" else repr(versions)
        digest = hashlib.sha256("\n".join([*made_of, made_by]).encode()).hexdigest()[:12]
        place = self.folder / f"{peer.name}-{contender.precision}-{digest}"
        if place in self._failed:
            raise self._failed[place]
        if place.is_dir():
            return place
        try:
            self._convert(contender, checkpoints, place)
        except Skipped as reason:
            self._failed[place] = reason
            raise
        return place

    def _convert(self, contender: Contender, checkpoints: tuple[Path, ...], place: Path) -> None:
        python = self.environments.python(contender.peer.name)
        say(f"{contender.peer.name}: converting to {contender.precision}")
        unfinished = place.with_name(f"{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        source = ",".join(map(str, checkpoints))
        command = [str(python), str(contender.peer.script), "convert", source, str(unfinished)]
        log = place.with_name(f"{place.name}.log")
        run([*command, contender.precision], log, environment(contender.peer.name))
        unfinished.rename(place)


def environment(peer: str) -> dict[str, str]:
    """Variables of a peer's processes: its own packages only, and no network."""
    known = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if peer == "edgespec":
        known["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "export", ROOT / "runtime")))
    return {**known, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def identity(checkpoint: Path) -> str:
    """Of the files of a checkpoint, by name, size and time."""
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in checkpoint.iterdir()]
    return repr(sorted(facts))


def sources() -> str:
    """Of the exporter, so that bundles of older ones are not measured."""
    digest = hashlib.sha256()
    for folder in ("edgespec", "export"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
