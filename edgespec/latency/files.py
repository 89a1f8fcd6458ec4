"""Profile files: YAML for people, JSON for programs; written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgespec.errors import ConfigError, InputError
from edgespec.latency.profile import VERSION, DeviceProfile
from edgespec.latency.strict import read

DIGITS = 5
"""Significant digits of a stored number: far below the noise of any measurement."""
WIDTH = 100


def dump(profile: DeviceProfile) -> str:
    """The text of a profile file: YAML under a comment that says what it is."""
    if profile.kind == "measured":
        made = "measured on"
        origin = "Written by `edgespec profile`; give it back with --profile."
        fits = "It fits this bundle, device, power mode and engine only: measure again for others."
    else:
        made = "ESTIMATED (not measured) for"
        origin = "Computed from the figures under `sources`."
        fits = "It fits this bundle only; `edgespec profile` on the device measures."
    header = (
        f"# What every operation of '{profile.bundle.name}' costs, {made} {profile.device.name}\n"
        f"# ({profile.created}). {origin}\n"
        "# Milliseconds; median_ms and p95_ms have one row per context, one value per size.\n"
        f"# {fits}\n"
    )
    return header + _yaml(rounded(profile.as_json()))


def parse(text: str, where: str) -> DeviceProfile:
    """A profile from the text of a file; ``where`` names it in errors. Raises ConfigError."""
    return from_plain(containers(text, where), where)


def save_profile(profile: DeviceProfile, path: str | Path) -> None:
    """Writes ``path``, replacing it whole. Raises InputError where it cannot be written."""
    final = Path(path).expanduser()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
        try:
            with open(handle, "w", encoding="utf-8") as out:
                out.write(dump(profile))
            os.chmod(name, 0o644)
            os.replace(name, final)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"writing profile '{path}' failed: {error.strerror or error}") from error


def load_profile(path: str | Path) -> DeviceProfile:
    """The profile in a file that ``save_profile`` or ``profile --json`` wrote.

    Raises ConfigError saying where in the file what was found, and what to do.
    """
    return parse(read_text(path), f"profile '{path}'")


def read_text(path: str | Path) -> str:
    """The text of a settings-like file. Raises ConfigError where there is none."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"profile '{path}' cannot be read: {reason}; write one with `edgespec profile`"
        ) from None


def containers(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML or JSON text holds. Raises ConfigError for anything else."""
    import yaml

    try:
        # YAML's readers take JSON's 1e-05 for text, so JSON is read as JSON.
        values = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{where} is neither YAML nor JSON: {message}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is no profile; write one with `edgespec profile`")
    return values


def from_plain(values: Mapping[str, Any], where: str) -> DeviceProfile:
    """A profile from what ``DeviceProfile.as_json`` gives. Raises ConfigError."""
    check_version(values, where)
    return read(DeviceProfile, {k: v for k, v in values.items() if k != "version"}, where)


def check_version(values: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError unless the file says that it is of the version read here."""
    if "version" not in values:
        raise ConfigError(
            f"{where} has no 'version', so it is no profile; write one with `edgespec profile`"
        )
    version = values["version"]
    if version != VERSION or isinstance(version, bool):
        raise ConfigError(
            f"{where} has version {version!r}, this edgespec reads {VERSION}; "
            "measure again with this edgespec"
        )


def rounded(value: Any) -> Any:
    """Plain containers with every float at ``DIGITS`` significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    return value


def _yaml(values: Mapping[str, Any]) -> str:
    """Block style, but rows of numbers on lines of their own."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def sequence(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
        flat = all(isinstance(item, (int, float)) for item in items)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)

    Dumper.add_representer(list, sequence)
    return str(yaml.dump(values, Dumper=Dumper, sort_keys=False, width=WIDTH, allow_unicode=True))
