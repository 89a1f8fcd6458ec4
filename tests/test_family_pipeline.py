"""The whole training, in miniature: every stage runs, and a finished one is not repeated."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgespec.errors import InputError
from edgespec_export.family import batches, emoji, models, pipeline, workshop  # noqa: E402
from edgespec_export.family.heads import METHODS, HeadRecipe, Stage  # noqa: E402
from edgespec_export.family.loop import Schedule  # noqa: E402
from edgespec_export.family.objects import objects  # noqa: E402


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models ramble: most of the time would be theirs, token by token."""
    monkeypatch.setattr(models, "TARGET", models.TextShape(128, 4, 2, 2, 64))
    monkeypatch.setattr(models, "DRAFT", models.TextShape(64, 1, 1, 1, 64))


@pytest.fixture
def malloc_as_it_was() -> Iterator[None]:
    """Training has malloc keep what is freed: no matter for the tests that follow here."""
    yield
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL("libc.so.6")
        mmap_max, trim_threshold = -4, -1
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(trim_threshold, 128 * 1024)
        libc.malloc_trim(0)


@pytest.mark.slow
@pytest.mark.usefixtures("small_models", "malloc_as_it_was")
def test_every_stage_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    rng = np.random.default_rng(0)
    for style in emoji.STYLES:
        drawings = rng.integers(0, 256, (len(objects()), 8, 8, 4), np.uint8)
        np.save(downloads / f"{style.name}-{len(objects())}.npy", drawings)
    once = Schedule(steps=1, rate=1e-4, warmup=1)
    # An untrained target rambles: its answers are cut short, or every one would be 256 tokens.
    lesson = Stage(3, {"steps": 1, "batch": 2, "pool": 3, "answer_tokens": 6}, {"rollout": 1})
    recipe = workshop.Recipe(
        variants=1,
        pictures=2,
        size=batches.Size(rows=2, tokens=260, dense=0),
        tower=once,
        shallow=once,
        deep=once,
        draft=once,
        draft_size=batches.Size(rows=2, tokens=300, dense=0),
        told=2,
        heads=HeadRecipe(32, held_out=2, counted=20, first=lesson, second=lesson),
        scenes=1,
        measured=1,
    )
    out = tmp_path / "out"

    def trained() -> tuple[set[str], list[bytes]]:
        report = pipeline.run(
            out, resume=True, downloads=downloads, device="cpu", workers=1, recipe=recipe
        )
        return set(json.loads(report.read_text())), [
            (out / "checkpoints" / name / "model.safetensors").read_bytes()
            for name in ("target", "draft", *METHODS)
        ]

    told, first = trained()
    assert told == {"in_domain", "out_of_domain", "minutes"}
    # What is composed and measured of finished checkpoints is no training: once is enough.
    monkeypatch.setattr(pipeline, "compose", lambda shop, folder: None)
    monkeypatch.setattr(pipeline, "measure", lambda shop, checkpoints, folder: {})
    assert trained() == ({"minutes"}, first)
    assert len((out / "samples" / "in_domain.jsonl").read_text().splitlines()) == 5


def test_missing_npm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="install Node.js"):
        emoji.load(tmp_path, ("noto",))
