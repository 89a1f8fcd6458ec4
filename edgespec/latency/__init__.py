"""What operations cost on a device: profiles, their curves, files and estimates."""

from __future__ import annotations

from edgespec.latency.card import card_of, measure_ceiling
from edgespec.latency.curve import Curve
from edgespec.latency.datasheet import Datasheet, device_files, load_estimate
from edgespec.latency.device import this_device
from edgespec.latency.estimate import estimate_profile
from edgespec.latency.files import dump, load_profile, parse, save_profile
from edgespec.latency.fits import bundle_facts, check_fits
from edgespec.latency.lookup import estimate_note, profile_for
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
    "Datasheet",
    "Device",
    "DeviceProfile",
    "EngineFacts",
    "GraphCard",
    "Memory",
    "RemoteCosts",
    "bundle_facts",
    "card_of",
    "check_fits",
    "device_files",
    "dump",
    "estimate_note",
    "estimate_profile",
    "load_estimate",
    "load_profile",
    "measure_ceiling",
    "parse",
    "profile_for",
    "save_profile",
    "this_device",
]
