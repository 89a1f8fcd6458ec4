"""Whether a profile may be used here: same bundle, same device, same engine."""

from __future__ import annotations

from collections.abc import Iterator

from edgespec.bundle import Bundle
from edgespec.errors import ConfigError
from edgespec.latency.profile import BundleFacts, Device, DeviceProfile, EngineFacts

DEVICE = {
    "processor": "processor",
    "cores": "number of cores",
    "accelerator": "accelerator",
    "power_mode": "power mode",
}
BUNDLE = {
    "target": "target",
    "draft": "draft",
    "variant": "draft variant",
    "compressor": "compressor",
    "lowering": "lowering",
    "precision": "precision",
    "chain_steps": "steps of a chain call",
}
ENGINE = {"name": "engine", "provider": "execution provider", "threads": "number of threads"}


def bundle_facts(bundle: Bundle) -> BundleFacts:
    """What a profile records of the bundle it was measured with."""
    manifest = bundle.manifest
    draft, chain = manifest.models.get("draft"), manifest.graph("draft_chain")
    return BundleFacts(
        name=bundle.path.resolve().name,
        target=manifest.models["target"].fingerprint,
        draft=draft.fingerprint if draft else None,
        variant=manifest.variant,
        compressor=manifest.draft_compressor,
        lowering=_shared([graph.lowering for graph in manifest.graphs]),
        precision=_shared([graph.precision for graph in manifest.graphs]),
        chain_steps=int(chain.meta["steps"]) if chain else 0,
    )


def check_fits(
    profile: DeviceProfile,
    *,
    bundle: BundleFacts,
    device: Device | None = None,
    engine: EngineFacts | None = None,
    path: str = "",
) -> None:
    """Raises ConfigError naming everything in which ``profile`` differs from what is here.

    What either side does not know ("" or 0) is not compared. An estimate was computed for a
    device that need not be this one, so only its bundle counts. ``path`` names the profile's file.
    """
    found = list(_differences(profile, bundle, device, engine))
    if found:
        where = f"profile '{path}'" if path else "the profile"
        what = "computed" if profile.kind == "estimate" else "measured"
        raise ConfigError(
            f"{where} ({profile.device.name}, {profile.created}) was {what} for something else: "
            f"{'; '.join(found)}. Measure again: edgespec profile --bundle {bundle.name} "
            f"--out {path or 'profile.yaml'}"
        )


def _differences(
    profile: DeviceProfile,
    bundle: BundleFacts,
    device: Device | None,
    engine: EngineFacts | None,
) -> Iterator[str]:
    for field, label in BUNDLE.items():
        there, here = getattr(profile.bundle, field), getattr(bundle, field)
        if there != here:
            yield _difference(label, _short(there), _short(here))
    if profile.kind == "estimate":
        return
    if device is not None:
        yield from _known_differences(DEVICE, profile.device, device)
    if engine is not None:
        yield from _known_differences(ENGINE, profile.engine, engine)
        there, here = profile.engine.version, engine.version
        if there and here and _minor(there) != _minor(here):
            yield _difference("engine version", there, here)


def _known_differences(labels: dict[str, str], there: object, here: object) -> Iterator[str]:
    for field, label in labels.items():
        ours, theirs = getattr(here, field), getattr(there, field)
        if ours and theirs and ours != theirs:
            yield _difference(label, theirs, ours)


def _difference(label: str, there: object, here: object) -> str:
    return f"{label} was {there} and is {here} here"


def _short(value: object) -> str:
    """A fingerprint by its first digits."""
    text = "none" if value is None else str(value)
    return f"{text[:12]}..." if len(text) >= 40 else text


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _shared(values: list[str]) -> str:
    """The one value of all graphs, or all that occur."""
    return "+".join(sorted(set(values)))
