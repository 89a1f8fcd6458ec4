"""A device's profile: what every operation of a bundle costs there, measured or estimated.

Costs are milliseconds at the contracts of the runtime (a whole ``Verifier.verify``, a whole draft
call), not of bare engine calls, so that they add up to a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgespec.latency.curve import Curve
from edgespec.latency.strict import plain

VERSION = 1
"""Of the profile file."""
KINDS = ("measured", "estimate")


@dataclass(frozen=True)
class Device:
    """The machine."""

    name: str
    processor: str = ""
    cores: int = 0
    accelerator: str = ""
    memory_mb: int = 0
    system: str = ""
    power_mode: str = ""


@dataclass(frozen=True)
class EngineFacts:
    """What ran the graphs."""

    name: str
    version: str
    provider: str
    threads: int


@dataclass(frozen=True)
class BundleFacts:
    """What was measured; a profile fits no other bundle."""

    name: str
    target: str
    """Fingerprint of the target."""
    draft: str | None
    variant: str | None
    compressor: str
    lowering: str
    precision: str
    chain_steps: int = 0
    """Levels of one call of the chain graph, 0 without one."""


@dataclass(frozen=True)
class GraphCard:
    """The static facts of one graph."""

    role: str
    precision: str
    weight_bytes: int
    """Read by one pass: the external data without rotary tables. A chain graph passes over its
    draft's weights ``steps`` times a call; they count for both graphs, and are stored once."""
    kv_bytes_per_token: int
    flops_per_row: float
    """Multiply-adds counted twice, attention over the cache left out."""
    head_flops: float = 0.0
    """Those among them of the output head, which only rows pass whose logits are asked for."""
    steps: int = 1
    """Passes over the weights in one call."""


@dataclass(frozen=True)
class Card:
    """What can be said without running: weights, cache, and the machine's ceiling."""

    graphs: tuple[GraphCard, ...]
    bandwidth_gb_s: float
    """Memory bandwidth: measured, or a datasheet's."""
    gflops: float
    """Arithmetic rate: measured, or a datasheet's."""
    measured: bool

    def graph(self, role: str) -> GraphCard | None:
        """The figures of one graph, if the bundle has it."""
        return next((graph for graph in self.graphs if graph.role == role), None)

    def floor_ms(self, role: str, rows: int, context: int = 0, picked: int | None = None) -> float:
        """The least that one call of ``role`` with ``rows`` rows can take: its weights and
        ``context`` cached rows read once at ``bandwidth_gb_s``, or its arithmetic done at
        ``gflops``, whichever is longer (the roofline: Williams et al., 2009).

        Rows of a vision graph, a projector or a compressor are patches. ``picked``: rows whose
        logits are asked for; all by default. Attention's own arithmetic is left out; weights that
        stay in a cache from one pass to the next may beat the floor. Raises KeyError for a role
        that the bundle does not have.
        """
        graph = self.graph(role)
        if graph is None:
            raise KeyError(role)
        passed = rows + graph.steps - 1
        headed = passed if picked is None else picked
        flops = graph.flops_per_row * passed - graph.head_flops * (passed - headed)
        loaded = graph.steps * (graph.weight_bytes + context * graph.kv_bytes_per_token)
        return max(loaded / self.bandwidth_gb_s, flops / self.gflops) / 1e6


@dataclass(frozen=True)
class Costs:
    """Of every operation; None where the bundle has no such graph."""

    vision: Curve
    """Pictures -> the target's visual tokens: tower and projector; size = pictures."""
    prefill: Curve
    """The target's prompt; size = tokens."""
    verify: Curve
    """One verification, mask to commit, greedy; size = rows (nodes + 1), over the context."""
    draft_vision: Curve | None
    """The draft's side of pictures: own tower, projector, compressor; size = pictures."""
    draft_prefill: Curve | None
    """The draft's prompt without its pictures' graphs; size = tokens."""
    draft_first: Curve | None
    """First step of a round: the committed rows taken in; size = rows."""
    draft_step: Curve | None
    """A further step; size = width of the beam."""
    chain_first: Curve | None
    """First call of the chain graph in a round; size = committed rows taken in."""
    chain_next: Curve | None
    """A further call of the chain graph; size 1."""
    chain_steps: int
    """Levels of one chain call, 0 without a chain graph."""
    commit_ms: float
    """The draft's side of a drafted round beyond its calls: sizing, building the tree, commit."""
    pick_ms: float
    """Drawing one token at temperature > 0, per visited node, beyond greedy."""
    host_round_ms: float
    """Everything else of a round: bookkeeping, text, records."""
    host_token_ms: float
    """The same per emitted token."""

    def __post_init__(self) -> None:
        if (self.draft_first is None) != (self.draft_step is None):
            raise ValueError("draft_first and draft_step belong together; one of them is null")
        chain = self.chain_first is not None
        if chain != (self.chain_next is not None) or chain != (self.chain_steps > 0):
            raise ValueError(
                f"chain_first, chain_next and chain_steps ({self.chain_steps}) belong together: "
                "two curves and at least one step, or null, null and 0"
            )


@dataclass(frozen=True)
class RemoteCosts:
    """A remote target as seen from here."""

    url: str
    round_trip_ms: float
    round_trip_p95_ms: float
    verify: Curve
    """Server time; size = rows."""


@dataclass(frozen=True)
class Memory:
    """Resident memory, megabytes of 2**20 bytes, and cache growth."""

    base_mb: float
    """Interpreter and engine without a model."""
    target_mb: float
    draft_mb: float
    """What the draft's graphs add."""
    target_kv_bytes: int
    """Per token of the target's cache."""
    draft_kv_bytes: int


@dataclass(frozen=True)
class DeviceProfile:
    """A profile file, version ``edgespec.latency.VERSION``."""

    kind: str
    """"measured" or "estimate"."""
    created: str
    """ISO 8601, UTC."""
    seconds: float
    """How long measuring took; 0 for an estimate."""
    device: Device
    engine: EngineFacts
    bundle: BundleFacts
    card: Card
    costs: Costs
    memory: Memory
    noise: float
    """Median over all measured points of p95 / median: 1 is a quiet machine."""
    remote: RemoteCosts | None = None
    telemetry: dict[str, Any] | None = None
    """Power (W), temperature (C), clocks while measuring, where the platform tells; else None."""
    sources: tuple[str, ...] = ()
    """Where an estimate's figures are from."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is '{self.kind}'; there are: {', '.join(KINDS)}")
        if self.noise < 1:
            raise ValueError(f"noise is {self.noise}; p95 over median is 1 or more")

    def as_json(self) -> dict[str, Any]:
        """The content of a profile file in plain containers, its version first."""
        return {"version": VERSION, **plain(self)}
