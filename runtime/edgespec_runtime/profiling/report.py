"""A profile as one page of HTML that stands alone: styles and pictures inside, no script, nothing
fetched; for the screen, light or dark, and for paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgespec.errors import InputError
from edgespec.latency import DeviceProfile
from edgespec_runtime.profiling.page.costs import (
    draft_section,
    host_section,
    prompt_section,
    remote_section,
    verify_section,
)
from edgespec_runtime.profiling.page.gains import gains_section
from edgespec_runtime.profiling.page.machine import (
    about_section,
    card_section,
    headline,
    memory_section,
    noise_section,
)
from edgespec_runtime.profiling.page.markup import Markup, tag
from edgespec_runtime.profiling.page.readings import telemetry_section
from edgespec_runtime.profiling.page.style import style_sheet
from edgespec_runtime.profiling.telemetry.reading import Reading


def render(
    profile: DeviceProfile,
    telemetry: Mapping[str, Any] | None = None,
    readings: Sequence[Reading] = (),
) -> str:
    """The page. ``telemetry`` is a sampler's summary, the profile's own if not given; ``readings``
    are the same sampler's, drawn over time."""
    told = profile.telemetry if telemetry is None else telemetry
    main = tag(
        "main",
        headline(profile),
        verify_section(profile),
        gains_section(profile),
        draft_section(profile),
        prompt_section(profile),
        remote_section(profile),
        host_section(profile),
        card_section(profile),
        memory_section(profile),
        noise_section(profile),
        telemetry_section(told, readings),
        about_section(profile),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{profile.device.name} · {profile.bundle.name}"),
        tag("style", Markup(style_sheet())),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', main), lang='en')}\n"


def write_report(
    profile: DeviceProfile,
    path: str | Path,
    telemetry: Mapping[str, Any] | None = None,
    readings: Sequence[Reading] = (),
) -> None:
    """Writes ``render``'s page. Raises InputError where ``path`` cannot be written."""
    page = render(profile, telemetry, readings)
    try:
        Path(path).expanduser().write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"writing the report '{path}' failed: {error.strerror}; give a file in a folder that "
            "exists and can be written to"
        ) from None
