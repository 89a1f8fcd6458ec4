"""Which precisions and contexts a device has room for, and what to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgespec.errors import ConfigError
from edgespec.latency.datasheet import Datasheet
from edgespec.planning.demand import BLOCK, Item, Setting, demand, total
from edgespec.planning.inventory import TABLE_BYTES, Inventory
from edgespec.planning.weights import PRECISIONS

MB = 2**20
CONTEXTS = (512, 1024, 2048, 4096)
USUAL = 2048
"""The context that is planned for where none was asked for, if the model has as much."""
CLOSE = 0.9
"""Part of the memory from which on a fit is called tight: estimates are not that exact."""
BUILD = (3.0, 4.0)
"""Times its weights that building a graph's TensorRT engine is taken to need: 3 to 4 were reported
of a vision-language builder (NVIDIA/TensorRT-Edge-LLM issue 30), nothing was measured here."""
FITS, TIGHT, NOT = "fits", "tight", "no"
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Device:
    """What a plan must know of a device; megabytes of 2**20 bytes."""

    name: str
    usable_mb: float
    base_mb: float
    precisions: tuple[str, ...]
    gpu: bool
    builds: bool
    """Whether engines are built in the memory that they run in: so on a Jetson. A card of its own
    leaves most of building to its host, of which device files say nothing."""

    def verdict(self, needed_mb: float) -> str:
        """FITS, TIGHT or NOT."""
        if needed_mb > self.usable_mb:
            return NOT
        return TIGHT if needed_mb > CLOSE * self.usable_mb else FITS


@dataclass(frozen=True)
class Row:
    """One precision."""

    precision: str
    exported: bool
    """Whether its weights were counted in a bundle's files, not computed."""
    needed_mb: dict[int, float]
    """By context."""
    verdicts: dict[int, str]
    files_mb: float
    """Of graphs and token tables, to be copied to the device."""
    items: tuple[Item, ...]
    """At the context that was asked for."""
    largest_context: int
    """That still fits, tightly or not; 0 where none does."""
    build_mb: tuple[float, float] | None
    """Of building its engines, between the least and the most that is assumed; None without."""
    build: str
    """FITS, TIGHT or NOT; "" where nothing is built."""


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


def device_of(sheet: Datasheet, usable_mb: float | None = None) -> Device:
    """A device by its file; ``usable_mb``: what is free there, if somebody looked."""
    return Device(
        name=sheet.name,
        usable_mb=float(sheet.usable_mb if usable_mb is None else usable_mb),
        base_mb=sheet.base_mb,
        precisions=tuple(name for name in PRECISIONS if name in sheet.precisions),
        gpu=sheet.provider != CPU,
        builds=sheet.accelerator.startswith("tegra"),
    )


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
    setting = Setting("", context or min(USUAL, most), nodes, sessions)
    chosen = [p for p in PRECISIONS if p in (precisions or _usual(inventory, device))]
    contexts = sorted({*(c for c in CONTEXTS if c < most), most, setting.context})
    rows = tuple(_row(inventory, device, replace(setting, precision=p), contexts) for p in chosen)
    recommended = _recommended(rows, device, setting.context)
    said = _advice(inventory, device, setting, rows, recommended)
    return Plan(inventory, device, setting, rows, recommended, said)


def needed_mb(inventory: Inventory, device: Device, setting: Setting) -> float:
    """Interpreter and engine included."""
    return device.base_mb + total(demand(inventory, setting)) / MB


def largest_context(inventory: Inventory, device: Device, setting: Setting) -> int:
    """The most tokens that fit, the model's own limit or whole blocks of rows; 0 for none."""

    def fits(tokens: int) -> bool:
        return device.verdict(needed_mb(inventory, device, replace(setting, context=tokens))) != NOT

    most = inventory.max_positions
    if fits(most):
        return most
    low, high = 0, most // BLOCK + 1  # blocks: low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * BLOCK) else (low, middle)
    return low * BLOCK


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
        files_mb=_files_mb(inventory, setting.precision),
        items=demand(inventory, setting),
        largest_context=largest_context(inventory, device, setting),
        build_mb=build_mb,
        build=build,
    )


def _files_mb(inventory: Inventory, precision: str) -> float:
    """Weights that graphs share count once."""
    tables = sum(rows * width * TABLE_BYTES for rows, width in inventory.tables.values())
    return (tables + sum(graph.stored_bytes(precision) for graph in inventory.graphs)) / MB


def _build_mb(inventory: Inventory, device: Device, precision: str) -> tuple[float, float]:
    """Graphs are built one after another, so the largest counts."""
    largest = max(graph.loaded_bytes(precision) for graph in inventory.graphs)
    low, high = (device.base_mb + times * largest / MB for times in BUILD)
    return low, high


def _recommended(rows: Sequence[Row], device: Device, context: int) -> str:
    """The most exact precision that fits, else one that fits tightly. On a GPU float32 is passed
    over for any other: there it takes twice the time and memory of half precision, or more."""
    wanted = [row for row in rows if not device.gpu or row.precision != "fp32"] or rows
    for verdict in (FITS, TIGHT):
        for row in wanted:
            if row.verdicts[context] == verdict:
                return row.precision
    return ""


def _advice(
    inventory: Inventory, device: Device, setting: Setting, rows: Sequence[Row], recommended: str
) -> str:
    if recommended:
        row = next(row for row in rows if row.precision == recommended)
        return _taking(inventory, device, setting, row)
    return _refused(inventory, device, setting, rows)


def _taking(inventory: Inventory, device: Device, setting: Setting, row: Row) -> str:
    verdict, needed = row.verdicts[setting.context], row.needed_mb[setting.context]
    said = (
        f"take {row.precision} with a context of {setting.context}: {needed:,.0f} of "
        f"{device.usable_mb:,.0f} MB"
    )
    if verdict == TIGHT:
        said += ", which is tight (close the desktop, or ask for less context)"
    if row.largest_context > setting.context:
        said += f"; up to {row.largest_context} tokens of context fit"
    if inventory.exported and not row.exported:
        said += f". The bundle does not hold it yet: export with {_export_flag(device, row)}"
    if row.build == NOT:
        said += (
            ". Building its TensorRT engines is expected to need more than the device has: add "
            "swap for that, or run it with --engine ort-cuda, which builds nothing"
        )
    elif row.build == TIGHT:
        said += ". Building its TensorRT engines may need swap"
    return said


def _export_flag(device: Device, row: Row) -> str:
    """What exports the precision for the engines of the device."""
    if not device.gpu:
        return f"--precision {row.precision}"
    return (
        f"--lowering native:{row.precision} (portable:{row.precision} for TensorRT before 10.15, "
        "as of JetPack 6)"
    )


def _refused(inventory: Inventory, device: Device, setting: Setting, rows: Sequence[Row]) -> str:
    """Nothing fits: less context, no draft, or the target elsewhere."""
    hopes = []
    best = max(rows, key=lambda row: row.largest_context)
    if best.largest_context > inventory.visual_tokens:  # else not even a picture fits
        hopes.append(f"{best.precision} does up to {best.largest_context} tokens")
    last = replace(setting, precision=rows[-1].precision)
    alone = largest_context(inventory.without_draft(), device, last)
    if inventory.graph("draft") and alone > max(best.largest_context, inventory.visual_tokens):
        hopes.append(
            f"{last.precision} without the draft does up to {alone} tokens (export without "
            "--draft, generate with --draft ngram)"
        )
    hopes += _elsewhere(inventory, device, setting, rows)
    said = f"nothing fits at a context of {setting.context}"
    return "; ".join([said, *(hopes or ["take a smaller model or a larger device"])])


def _elsewhere(
    inventory: Inventory, device: Device, setting: Setting, rows: Sequence[Row]
) -> list[str]:
    """A sentence if the draft's side alone fits."""
    if not (inventory.graph("target") and inventory.graph("draft")):
        return []
    part = inventory.device_part()
    for row in rows:
        needed = needed_mb(part, device, replace(setting, precision=row.precision))
        if device.verdict(needed) == FITS and not (device.gpu and row.precision == "fp32"):
            return [
                f"the draft's side alone does in {row.precision} ({needed:,.0f} MB): export with "
                "--part device, and let a server verify (generate --remote)"
            ]
    return []
