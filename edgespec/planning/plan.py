"""Which precisions and contexts a device has room for, and what to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgespec.errors import ConfigError
from edgespec.planning.advice import advice_of, recommended_of
from edgespec.planning.demand import Setting, demand
from edgespec.planning.inventory import Inventory
from edgespec.planning.room import FITS, MB, NOT, TIGHT, Device, Row, largest_context, needed_mb
from edgespec.planning.weights import PRECISIONS

CONTEXTS = (512, 1024, 2048, 4096)
USUAL = 2048
"""The context that is planned for where none was asked for, if the model has as much."""
BUILD = (3.0, 4.0)
"""Times its weights that building a graph's TensorRT engine is taken to need: 3 to 4 were reported
of a vision-language builder (NVIDIA/TensorRT-Edge-LLM issue 30), nothing was measured here."""


@dataclass(frozen=True)
class Plan:
    """The answer."""

    inventory: Inventory
    device: Device
    setting: Setting
    """What was asked for; its precision is of no meaning."""
    rows: tuple[Row, ...]
    recommended: str
    """A precision; "" where none fits at the context asked for."""
    advice: str
    """One sentence or two for people."""


def plan(
    inventory: Inventory,
    device: Device,
    *,
    context: int | None = None,
    precisions: Sequence[str] = (),
    nodes: int = Setting.nodes,
    sessions: int = 1,
) -> Plan:
    """Plans ``inventory`` on ``device``. By default for a context of USUAL tokens, in the
    precisions that the device's engines take and, where there are any, the bundle's own.

    Raises ConfigError for a context that the model does not have, or an unknown precision.
    """
    most = inventory.max_positions
    if context is not None and not 1 <= context <= most:
        raise ConfigError(
            f"a context of {context} tokens was asked for; {inventory.title} has from 1 to {most}"
        )
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise ConfigError(
            f"precision '{unknown[0]}' is unknown; there are: {', '.join(PRECISIONS)}"
        )
    tokens = context or min(USUAL, most)
    setting = Setting("", tokens, nodes, sessions, device.lowering)
    chosen = [p for p in PRECISIONS if p in (precisions or _usual(inventory, device))]
    contexts = sorted({*(c for c in CONTEXTS if c < most), most, setting.context})
    rows = tuple(_row(inventory, device, replace(setting, precision=p), contexts) for p in chosen)
    recommended = recommended_of(rows, device, setting.context)
    said = advice_of(inventory, device, setting, rows, recommended)
    return Plan(inventory, device, setting, rows, recommended, said)


def _usual(inventory: Inventory, device: Device) -> tuple[str, ...]:
    """bf16 takes what fp16 takes, so it is shown where it was exported alone."""
    return (*(p for p in device.precisions if p != "bf16"), *inventory.exported)


def _row(inventory: Inventory, device: Device, setting: Setting, contexts: Sequence[int]) -> Row:
    needed = {
        tokens: needed_mb(inventory, device, replace(setting, context=tokens))
        for tokens in contexts
    }
    build_mb = _build_mb(inventory, device, setting.precision) if device.builds else None
    build = ""
    if build_mb:
        low, high = (device.verdict(value) for value in build_mb)
        build = NOT if low == NOT else TIGHT if high == NOT else FITS
    return Row(
        precision=setting.precision,
        exported=setting.precision in inventory.exported,
        needed_mb=needed,
        verdicts={tokens: device.verdict(value) for tokens, value in needed.items()},
        files_mb=_files_mb(inventory, setting),
        items=demand(inventory, setting),
        largest_context=largest_context(inventory, device, setting),
        build_mb=build_mb,
        build=build,
    )


def _files_mb(inventory: Inventory, setting: Setting) -> float:
    """Weights that graphs share count once."""
    tables = sum(tokens * row for tokens, row in inventory.tables.values())
    asked = setting.precision, setting.lowering
    return (tables + sum(graph.stored_bytes(*asked) for graph in inventory.graphs)) / MB


def _build_mb(inventory: Inventory, device: Device, precision: str) -> tuple[float, float]:
    """Graphs are built one after another, so the largest counts."""
    largest = max(graph.loaded_bytes(precision) for graph in inventory.graphs)
    low, high = (device.base_mb + times * largest / MB for times in BUILD)
    return low, high
