"""Checkpoints, bundles and loaded models, each made once per test session and only if asked for."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from PIL.Image import Image

import edgespec_runtime
from edgespec.flavour import Flavour
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_runtime import Model
from tests.support.checkpoints import (
    GEOMETRIES,
    Geometry,
    picture,
    words,
    write_checkpoint,
    write_draft,
)
from tests.support.random_heads import write_random_head

ORT_VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
HAS_NATIVE = ORT_VERSION >= (1, 24)
NATIVE_REASON = "lowering 'native' needs onnxruntime >= 1.24"
LOWERINGS = [
    "ort",
    pytest.param("native", marks=pytest.mark.skipif(not HAS_NATIVE, reason=NATIVE_REASON)),
    "portable",
]
"""Of every decoder graph, each a test case."""
DRAFT_NOISE = 0.08
"""Disturbs the target so far that about every second guess of the draft holds."""


class Zoo:
    """``draft``: "none", "shared" (the target's vision tower) or "own" (another one)."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        hf: Any = transformers  # its annotations are not complete
        torch.set_num_threads(1)
        hf.utils.logging.disable_progress_bar()
        self._folder = folder
        self._checkpoints: dict[tuple[str, str], Path] = {}
        self._bundles: dict[tuple[str, str, str, int], Path] = {}
        self._models: dict[tuple[str, str, str], Model] = {}
        self._heads: dict[tuple[str, str, str], Path] = {}
        self.torch_model = cache(self._torch_model)
        self.processor = cache(self._processor)

    def geometry(self, name: str) -> Geometry:
        return GEOMETRIES[name]

    def picture(self, name: str, seed: int) -> Image:
        """A picture of the size that this checkpoint's vision tower sees: it is not resized."""
        return picture(GEOMETRIES[name].image_size, seed)

    def checkpoint(self, name: str, draft: str = "none") -> Path:
        """A Hugging Face checkpoint: the target ("none"), or a draft of it."""
        if (name, draft) not in self._checkpoints:
            self._checkpoints[name, draft] = self._write(name, draft)
        return self._checkpoints[name, draft]

    def bundle(
        self, name: str, draft: str = "shared", lowering: str = "ort", sessions: int = 0
    ) -> Path:
        """An exported bundle; drafts see visual tokens pooled four to one. ``sessions``: of the
        graph for several at once."""
        key = (name, draft, lowering, sessions)
        if key not in self._bundles:
            out = self._folder / f"{name}-{draft}-{lowering}-{sessions}.bundle"
            request = ExportRequest(
                target=str(self.checkpoint(name)),
                out=out,
                draft=None if draft == "none" else str(self.checkpoint(name, draft)),
                compressor=None if draft == "none" else "pool:4",
                flavours=(Flavour.parse(lowering),),
                sessions=sessions,
            )
            export_bundle(request)
            self._bundles[key] = out
        return self._bundles[key]

    def model(self, name: str, draft: str = "shared", lowering: str = "ort") -> Model:
        """The bundle, loaded once and shared by all tests."""
        key = (name, draft, lowering)
        if key not in self._models:
            self._models[key] = self.load(*key)
        return self._models[key]

    def head_bundle(
        self, name: str, variant: str, compressor: str = "", lowering: str = "ort"
    ) -> Path:
        """A bundle with a random feature-level draft; compressors of SpecVLM come with weights,
        others are asked of the exporter."""
        key = (name, f"{variant}@{compressor}", lowering)
        if key not in self._heads:
            folder, target = self.head_checkpoint(name, variant, compressor), self.checkpoint(name)
            out = self._folder / f"{folder.name}-{lowering}.bundle"
            asked = compressor if variant != "specvlm" else ""
            request = ExportRequest(
                str(target), out, str(folder), asked or None, flavours=(Flavour.parse(lowering),),
                draft_variant=variant,
            )  # fmt: skip
            export_bundle(request)
            self._heads[key] = out
        return self._heads[key]

    def head_checkpoint(self, name: str, variant: str, compressor: str = "") -> Path:
        """The random head of such a bundle."""
        folder = self._folder / f"{name}-{variant}-{compressor}".replace(":", "")
        if not folder.exists():
            own = compressor if variant == "specvlm" else ""
            write_random_head(folder, self.checkpoint(name), variant, own, seed=sum(name.encode()))
        return folder

    def load(self, name: str, draft: str = "shared", lowering: str = "ort") -> Model:
        """A loaded bundle of the caller's own, for tests that change it."""
        return edgespec_runtime.load(self.bundle(name, draft, lowering), threads=1)

    def _write(self, name: str, draft: str) -> Path:
        geometry = GEOMETRIES[name]
        folder = self._folder / f"{name}-{draft}"
        seed = sum(name.encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' deprecations are not the subject
            if draft == "none":
                return write_checkpoint(folder, geometry, seed)
            own, target = draft == "own", self.checkpoint(name)
            return write_draft(folder, geometry, target, seed + 1, own_tower=own, noise=DRAFT_NOISE)

    def _torch_model(self, name: str, draft: str = "none") -> Any:
        import torch
        import transformers

        kind: Any = transformers.LlavaForConditionalGeneration
        return kind.from_pretrained(self.checkpoint(name, draft), dtype=torch.float32).eval()

    def _processor(self, name: str) -> Any:
        import transformers

        kind: Any = transformers.AutoProcessor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind.from_pretrained(self.checkpoint(name))


def prompt_of(zoo: Zoo, name: str, length: int, seed: int, images: int = 0) -> str:
    """Text whose whole prompt (template, images and all) is exactly ``length`` tokens long."""
    model = zoo.model(name)
    pictures = [zoo.picture(name, seed + i) for i in range(images)]
    frame = model.stream(pictures, "a", draft="none", max_new_tokens=1).prompt_tokens - 1
    if length <= frame:
        raise ValueError(f"the template and images alone take {frame} tokens, asked for {length}")
    return words(length - frame, seed)
