"""What a model needs of its bundle's graphs, and getting it onto an engine."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import STAND_ALONE, Bundle, Manifest
from edgespec.errors import BundleError
from edgespec_runtime.drafts.opening import DraftModel
from edgespec_runtime.engines import Engine, Graph, StepGraph
from edgespec_runtime.vision import ImageProcessor

Floats = npt.NDArray[np.float32]
STEP_ROLES = ("target", "draft", "draft_chain")
TARGET_ROLES = ("vision", "projector", "target")
SERVER_ROLES = ("target_packed",)  # of no use to a single session


@dataclass(frozen=True)
class Loaded:
    """Graphs on an engine, by role."""

    graphs: dict[str, Graph]
    """Those without memory."""
    steps: dict[str, StepGraph]
    """The decoders."""
    tables: dict[str, Floats]
    """Token tables [V, H] of target and draft."""


def roles_for(
    manifest: Manifest, *, target: bool, draft: bool, embeddings: bool = False
) -> frozenset[str]:
    """The graphs to load. ``target``: whether it runs here; ``draft``: whether to draft with the
    bundle's own; ``embeddings``: whether visual tokens are made here for a target elsewhere."""
    roles = {graph.role for graph in manifest.graphs}
    own = roles - {*TARGET_ROLES, *SERVER_ROLES}
    wanted: set[str] = set(TARGET_ROLES) if target else set()
    blind = "image_token" not in manifest.text
    if embeddings:
        wanted |= {"vision", "projector"}
    if draft and own:
        wanted |= own
        if manifest.variant not in STAND_ALONE:  # it starts from the target's own visual tokens
            wanted |= {"vision", "projector"}
        elif "draft_vision" not in own:
            wanted.add("vision")
    return frozenset(wanted - {"vision", "projector"} if blind else wanted)


def load_graphs(bundle: Bundle, engine: Engine, roles: Collection[str]) -> Loaded:
    """Raises BundleError for a role that the bundle lacks, EngineError for a graph that is
    refused."""
    graphs: dict[str, Graph] = {}
    steps: dict[str, StepGraph] = {}
    for spec in bundle.manifest.graphs:
        if spec.role not in roles:
            continue
        if spec.role in STEP_ROLES:
            steps[spec.role] = engine.load_step(spec, bundle.path)
        else:
            graphs[spec.role] = engine.load(spec, bundle.path)
    for role in sorted(set(roles) - {*graphs, *steps}, reverse=True):
        if bundle.manifest.graph("target") is None:
            raise BundleError(
                f"{bundle.path} is a device's part without a '{role}' graph, which is needed here; "
                "have the target verified elsewhere (--remote, without --local target and "
                "--embeddings), or export the whole bundle"
            )
        raise BundleError(f"{bundle.path} has no '{role}' graph; export it again")
    # Plain views of the mapped files: numpy's memmap class makes every lookup slower.
    tables: dict[str, Floats] = {
        role: np.asarray(np.load(bundle.file(f"{role}.embed.npy"), mmap_mode="r"))
        for role in steps
        if role != "draft_chain"
    }
    return Loaded(graphs, steps, tables)


def vocabulary(bundle: Bundle) -> int:
    """Tokens that the target knows; a device's part of a bundle tells as well."""
    return int(bundle.manifest.text["vocab_size"])


def draft_of(bundle: Bundle, loaded: Loaded) -> DraftModel | None:
    """The bundle's own draft, None where it was not loaded."""
    if "draft" not in loaded.steps:
        return None
    names = "draft.ids.npy"
    return DraftModel(
        loaded.steps["draft"],
        loaded.steps.get("draft_chain"),
        loaded.tables["draft"],
        loaded.graphs,
        bundle.manifest.compressor or {},
        np.load(bundle.file(names)) if names in bundle.manifest.files else None,
    )


def processors_of(bundle: Bundle) -> tuple[ImageProcessor | None, ImageProcessor | None]:
    """How pictures become pixels, for the target and for the draft; None where they see none."""
    if "image_token" not in bundle.manifest.text:
        return None, None
    processor = ImageProcessor.from_config(_json(bundle, "preprocessor_config.json"))
    own = "draft_preprocessor_config.json"
    if own not in bundle.manifest.files:
        return processor, processor
    return processor, ImageProcessor.from_config(_json(bundle, own))


def _json(bundle: Bundle, name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(bundle.file(name).read_text(encoding="utf-8"))
    return config
