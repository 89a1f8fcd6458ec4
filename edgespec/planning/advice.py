"""What to take, in a sentence or two for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgespec.planning.demand import Setting
from edgespec.planning.inventory import Inventory
from edgespec.planning.room import FITS, NOT, TIGHT, Device, Row, largest_context, needed_mb


def recommended_of(rows: Sequence[Row], device: Device, context: int) -> str:
    """The most exact precision that fits, else one that fits tightly. On a GPU float32 is passed
    over for any other: there it takes twice the time and memory of half precision, or more."""
    wanted = [row for row in rows if not device.gpu or row.precision != "fp32"] or rows
    for verdict in (FITS, TIGHT):
        for row in wanted:
            if row.verdicts[context] == verdict:
                return row.precision
    return ""


def advice_of(
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
