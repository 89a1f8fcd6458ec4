"""Models by their sizes alone: what a bundle of them would hold, where no checkpoint is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from edgespec.bundle import Bundle, FileEntry, GraphSpec, Manifest, ModelIdentity, TensorSpec
from edgespec.errors import ConfigError
from edgespec.latency.card import BYTES
from edgespec.latency.files import check_version, containers, read_text
from edgespec.latency.strict import read

KIND = "geometry"
HERE = Path(__file__).resolve().parent
PLACES = (HERE.parent / "models", HERE.parent.parent / "configs" / "models")
"""Where model files lie: inside an installed package, and in a checkout."""
SUFFIXES = (".yaml", ".yml", ".json")
TREE_ROWS = 64


@dataclass(frozen=True)
class Decoder:
    """A Llama-like decoder: gated MLP, rotary positions, a head of its own."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int

    @property
    def parameters(self) -> int:
        """Those that every row is multiplied with; norms are left out."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.hidden * self.vocab


@dataclass(frozen=True)
class Tower:
    """A vision transformer; its patch embedding is left out."""

    layers: int
    hidden: int
    intermediate: int

    @property
    def parameters(self) -> int:
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)


@dataclass(frozen=True)
class Geometry:
    """A target and its stand-alone draft. Raises ValueError for what is none."""

    kind: str
    name: str
    title: str
    precision: str
    """Of all graphs: "fp32" or "fp16"."""
    visual_tokens: int
    """Of one picture, for the target;"""
    draft_visual_tokens: int
    """and for the draft, behind its compressor."""
    text_tokens: int
    """Of a usual prompt, pictures left out."""
    chain_steps: int
    """Levels of one call of the draft's chain graph; 0 without one."""
    target: Decoder
    vision: Tower
    draft: Decoder
    draft_vision: Tower
    """The draft's own tower."""
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind != KIND:
            raise ValueError(f"kind is '{self.kind}', not '{KIND}'")
        if self.precision not in BYTES:
            raise ValueError(f"precision is '{self.precision}'; there are: {', '.join(BYTES)}")
        if not self.visual_tokens or not self.draft_visual_tokens:
            raise ValueError("visual_tokens and draft_visual_tokens are 1 or more")

    def as_bundle(self) -> Bundle:
        """A bundle of these models as far as costs are concerned; there are no files behind it."""
        graphs = tuple(self._graphs())
        files = {
            f"{spec.role}.bin": FileEntry(self._stored(spec.role, spec), "") for spec in graphs
        }
        name = f"{self.name} ({self.precision}, by its sizes)"
        models = {
            side: ModelIdentity(self.name, "", f"{self.name}/{side}", "")
            for side in ("target", "draft")
        }
        text = {"visual_tokens": self.visual_tokens, "vocab_size": self.target.vocab}
        manifest = Manifest(0, "", graphs, models, text, {}, None, {}, {}, files)
        return Bundle(Path(name), manifest)

    def _graphs(self) -> Iterator[GraphSpec]:
        for role, tower in (("vision", self.vision), ("draft_vision", self.draft_vision)):
            yield self._spec(role, TensorSpec("features", "float32", ("N", "P", tower.hidden)))
        for role in ("projector", "draft_projector"):
            yield self._spec(role)
        for role, decoder in (("target", self.target), ("draft", self.draft)):
            yield self._decoder(role, decoder)
        if self.chain_steps:
            yield self._decoder("draft_chain", self.draft, steps=self.chain_steps)

    def _spec(self, role: str, *outputs: TensorSpec, **meta: object) -> GraphSpec:
        return GraphSpec(role, f"{role}.onnx", "ort", self.precision, (), outputs, meta)

    def _decoder(self, role: str, decoder: Decoder, **more: object) -> GraphSpec:
        logits = TensorSpec("logits", "float32", ("B", "S", decoder.vocab))
        return self._spec(
            role,
            logits,
            layers=decoder.layers,
            hidden=decoder.hidden,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            vocab=decoder.vocab,
            max_positions=decoder.max_positions,
            tree_rows=TREE_ROWS,
            variant="vlm",
            **more,
        )

    def _stored(self, role: str, spec: GraphSpec) -> int:
        """Bytes of a graph's external data."""
        size = BYTES[self.precision]
        if role in ("vision", "draft_vision"):
            return int(size * (self.vision if role == "vision" else self.draft_vision).parameters)
        if role in ("projector", "draft_projector"):  # two layers, as LLaVA-1.5's
            tower, decoder = (
                (self.vision, self.target)
                if role == "projector"
                else (self.draft_vision, self.draft)
            )
            return int(size * (tower.hidden + decoder.hidden) * decoder.hidden)
        if role == "draft_chain":
            return 0  # the draft's weights once more
        decoder = self.target if role == "target" else self.draft
        rotary = 4 * (decoder.max_positions + TREE_ROWS) * decoder.head_dim
        return int(size * decoder.parameters) + rotary


def load_geometry(given: str) -> Geometry:
    """From a file, or the name of one that comes with edgespec. Raises ConfigError."""
    path = Path(given).expanduser()
    if not path.is_file() and path.suffix not in SUFFIXES and len(path.parts) == 1:
        path = _find(given)
    where = f"model file '{path}'"
    values = containers(read_text(path), where)
    check_version(values, where)
    return read(Geometry, {k: v for k, v in values.items() if k != "version"}, where)


def _find(name: str) -> Path:
    files = {path.stem: path for place in PLACES for path in sorted(place.glob("*.yaml"))}
    if name in files:
        return files[name]
    near = get_close_matches(name, files, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"'{name}' is neither a model file nor a known model; models: "
        f"{', '.join(sorted(files)) or 'none installed'}.{hint}"
    )
