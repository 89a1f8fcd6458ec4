"""A small device profile with round numbers, for tests that need one."""

from __future__ import annotations

from edgespec.latency import (
    BundleFacts,
    Card,
    Costs,
    Curve,
    Device,
    DeviceProfile,
    EngineFacts,
    GraphCard,
    Memory,
)


def curve(*rows: tuple[float, ...], sizes: tuple[int, ...] = (1, 2, 4, 8)) -> Curve:
    """One row of medians per context, contexts 0, 100, 200, ...; p95 a tenth above."""
    contexts = tuple(100 * i for i in range(len(rows)))
    tails = tuple(tuple(round(value * 1.1, 4) for value in row) for row in rows)
    return Curve(sizes, contexts, rows, tails)


def costs() -> Costs:
    return Costs(
        vision=curve((8.0, 15.0), sizes=(1, 2)),
        prefill=curve((10.0, 19.0), sizes=(64, 128)),
        verify=curve((2.0, 2.2, 2.6, 4.0), (2.5, 2.8, 3.3, 5.0)),
        draft_vision=curve((1.0,), sizes=(1,)),
        draft_prefill=curve((3.0, 5.5), sizes=(64, 128)),
        draft_first=curve((0.5, 0.6, 0.7, 0.9)),
        draft_step=curve((0.4, 0.5, 0.6, 0.8)),
        chain_first=curve((2.0, 2.1, 2.2, 2.4)),
        chain_next=Curve.constant(1.9),
        chain_steps=4,
        commit_ms=0.02,
        pick_ms=0.3,
        host_round_ms=0.1,
        host_token_ms=0.01,
    )


def profile() -> DeviceProfile:
    return DeviceProfile(
        kind="measured",
        created="2026-11-25T20:00:00Z",
        seconds=42.0,
        device=Device("board", "Cortex-A78AE", 6, "Ampere", 7620, "Linux 5.15", "15W"),
        engine=EngineFacts("ort", "1.32.0", "CPUExecutionProvider", 6),
        bundle=BundleFacts("b", "f" * 64, "d" * 64, "vlm", "pool:4", "ort", "fp32", 4),
        card=Card((GraphCard("target", "fp32", 40_000_000, 12288, 2e7),), 34.0, 480.0, True),
        costs=costs(),
        memory=Memory(120.0, 60.0, 20.0, 12288, 3072),
        noise=1.1,
    )
