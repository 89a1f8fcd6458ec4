"""Where compressed visual tokens sit: the position rules that trainer, exporter and runtime share.

A draft may see fewer visual tokens than the target. Its text can close the gap ("contiguous", the
stand-alone draft VLM's own positions), or keep the positions it has in the target's prompt, with
the visual tokens that are left either spread evenly over the image's run ("spread") or standing at
its end ("tail": ViSpec, arXiv 2509.15235, its code).
"""

from __future__ import annotations

CONTIGUOUS, SPREAD, TAIL = "contiguous", "spread", "tail"


def run_positions(rule: str, start: int, length: int, count: int) -> list[int]:
    """Positions of the ``count`` tokens that stand for an image run [start, start + length).

    Raises ValueError for "contiguous" (nothing keeps its place there) and unknown rules.
    """
    if rule == TAIL:
        return list(range(start + length - count, start + length))
    if rule == SPREAD:
        return [start + (2 * i + 1) * length // (2 * count) for i in range(count)]
    raise ValueError(f"rule {rule!r} gives a run no positions")
