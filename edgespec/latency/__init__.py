"""What operations cost on a device: profiles, their curves, files and estimates."""

from __future__ import annotations

from edgespec.latency.curve import Curve
from edgespec.latency.files import dump, load_profile, parse, save_profile
from edgespec.latency.profile import (
    VERSION,
    BundleFacts,
    Card,
    Costs,
    Device,
    DeviceProfile,
    EngineFacts,
    GraphCard,
    Memory,
    RemoteCosts,
)

__all__ = [
    "VERSION",
    "BundleFacts",
    "Card",
    "Costs",
    "Curve",
    "Device",
    "DeviceProfile",
    "EngineFacts",
    "GraphCard",
    "Memory",
    "RemoteCosts",
    "dump",
    "load_profile",
    "parse",
    "save_profile",
]
