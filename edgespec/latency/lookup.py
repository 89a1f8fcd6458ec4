"""From what a user gives as --profile to a profile: a file, or the name of a device."""

from __future__ import annotations

from pathlib import Path

from edgespec.bundle import Bundle
from edgespec.errors import ConfigError
from edgespec.latency.datasheet import KIND, Datasheet, datasheet_from_plain, find_device
from edgespec.latency.estimate import estimate_profile
from edgespec.latency.files import containers, from_plain, read_text
from edgespec.latency.profile import DeviceProfile


def profile_for(
    given: str | Path, bundle: Bundle | None, *, target_here: bool = True
) -> DeviceProfile:
    """The profile that ``given`` stands for.

    ``given`` is a profile file, a device file (from which the costs of ``bundle`` are estimated),
    or the bare name of a device that comes with edgespec; a power mode may follow a device after a
    colon ("jetson-orin-nano:15W"). Without a bundle only what was measured can be had. Whether a
    measured profile fits is ``check_fits``'s to say. ``target_here``: whether a device has to have
    room for the target. Raises ConfigError for what is none of these.
    """
    path, mode = _split(str(given))
    where = f"profile '{path}'"
    values = containers(read_text(path), where)
    if values.get("kind") == KIND:
        if bundle is None:
            raise ConfigError(
                f"'{given}' is a device that nothing was measured on: its costs are estimated for "
                "a bundle; give that with --bundle"
            )
        sheet = datasheet_from_plain(values, where)
        return estimate_profile(sheet, bundle, mode, target_here=target_here)
    if mode:
        raise ConfigError(
            f"{where} is no device file, so it has no power mode '{mode}' to choose; "
            "measure in that mode with `edgespec profile`"
        )
    return from_plain(values, where)


def sheet_for(given: str) -> Datasheet:
    """The device file that ``given`` names: its path, or a device's bare name. A power mode behind
    a colon is checked and left out. Raises ConfigError for what is neither."""
    path, mode = _split(given)
    where = f"device file '{path}'"
    values = containers(read_text(path), where)
    if values.get("kind") != KIND:
        raise ConfigError(
            f"{where} is no device file; give one like those in configs/devices, or a device's name"
        )
    sheet = datasheet_from_plain(values, where)
    sheet.mode(mode)
    return sheet


def estimate_note(profile: DeviceProfile) -> str:
    """One sentence for people where a profile was not measured; "" where it was."""
    if profile.kind != "estimate":
        return ""
    return (
        f"costs of {profile.device.name} in power mode {profile.device.power_mode} are estimates "
        "from its datasheet, nothing was measured; `edgespec profile` on the device measures them"
    )


def _split(given: str) -> tuple[Path, str]:
    """(file, power mode or ""): the whole text where that is a file, else up to the last colon."""
    whole = Path(given).expanduser()
    if whole.is_file():
        return whole, ""
    name, colon, mode = given.rpartition(":")
    plain = name if colon else given
    path = Path(plain).expanduser()
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path, mode if colon else ""
    return find_device(plain), mode if colon else ""
