"""What a server loads of a bundle: the target's graphs, its table, and the facts of its prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.bundle import Bundle
from edgespec.errors import BundleError
from edgespec_runtime.engines.base import Engine, Graph, StepGraph
from edgespec_runtime.kv import CacheShape
from edgespec_runtime.loading import processors_of
from edgespec_runtime.vision import ImageProcessor
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.fingerprints import fingerprints

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Target:
    """Graphs and facts; nothing of a session."""

    step: StepGraph
    table: Floats
    """Token embeddings [V, H]."""
    vision: Graph | None
    """None, with the two below it, where the target sees no pictures."""
    projector: Graph | None
    processor: ImageProcessor | None
    fingerprints: pb.Fingerprints
    image_token_id: int
    """-1, which no token is, where it sees none."""
    visual_tokens: int
    """Rows of one picture."""

    @property
    def vocab(self) -> int:
        return int(self.step.spec.meta["vocab"])

    @property
    def hidden(self) -> int:
        """Width of an embedding."""
        return int(self.step.spec.meta["hidden"])

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape.of(self.step.spec)

    @property
    def row_bytes(self) -> int:
        """Of one row of context in the KV cache."""
        return self.cache_shape.row_bytes

    @property
    def feature_width(self) -> int:
        """Of a target feature; 0 where the graph gives none."""
        widths = [int(t.axes[-1]) for t in self.step.spec.outputs if t.name == "hidden"]
        return widths[0] if widths else 0

    def see(self, pixels: Floats) -> Floats:
        """One picture [3, h, w] as visual tokens [P, H]."""
        assert self.vision is not None and self.projector is not None
        (features,) = self.vision.run({"pixel_values": pixels[None]}).values()
        (embeds,) = self.projector.run({"features": features}).values()
        return np.asarray(embeds[0])


def load_target(bundle: Bundle, engine: Engine, *, together: bool = True) -> Target:
    """Loads the target of a bundle and leaves the draft alone; ``together``: with the graph that
    takes several sessions in one call, if the bundle has it. Raises BundleError, EngineError."""
    packed = bundle.manifest.graph("target_packed") if together else None
    graphs: dict[str, Graph] = {}
    text = bundle.manifest.text
    seeing = ("vision", "projector") if "image_token" in text else ()
    for role in (*seeing, "target"):
        spec = bundle.manifest.graph(role)
        if spec is None and bundle.manifest.graph("target") is None:
            raise BundleError(
                f"{bundle.path} is a device's part and holds no target; serve the whole bundle "
                "(`edgespec export` without --part)"
            )
        if spec is None:
            raise BundleError(f"{bundle.path} has no '{role}' graph; export it again")
        if role == "target":
            step = engine.load_step(spec, bundle.path, packed)
        else:
            graphs[role] = engine.load(spec, bundle.path)
    return Target(
        step,
        np.asarray(np.load(bundle.file("target.embed.npy"), mmap_mode="r")),
        graphs.get("vision"),
        graphs.get("projector"),
        processors_of(bundle)[0],
        fingerprints(bundle),
        int(text.get("image_token_id", -1)),
        int(text["visual_tokens"]),
    )
