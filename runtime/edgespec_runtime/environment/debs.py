"""Debian packages, from dpkg's own list."""

from __future__ import annotations

import re

from edgespec_runtime.environment.place import Place


def installed_debs(place: Place) -> dict[str, str]:
    """Versions by name of all that are installed; {} where dpkg keeps no list."""
    found = {}
    for stanza in place.text("var/lib/dpkg/status").split("\n\n"):
        if "\nStatus: install ok installed" in stanza:
            name = re.search(r"^Package: (\S+)", stanza, re.MULTILINE)
            version = re.search(r"^Version: (\S+)", stanza, re.MULTILINE)
            if name and version:
                found[name.group(1)] = version.group(1)
    return found
