"""Lines of ``tegrastats``, JetPack 4 to 7.

Fields come and go with module, release and privileges (rails need root on some), so whatever is
not known is passed over. The order never matters; only a line that is no record at all is refused.

    RAM 2448/62840MB (lfb 2x4MB)         used/total
    CPU [5%@729,off,...]                 load@MHz per core; since JetPack 7 also [5%,off]@2601
    GR3D_FREQ 12%@[305,305]              GPU load and MHz; 12%, 12%@305, @[0,0,0] and off occur
    tj@51.3C  CPU@40C  tj@51.3C/60.2C    sensor@now, since JetPack 7 with the maximum
    VDD_IN 5144mW/5100mW                 rail now/mean, since JetPack 7 /maximum; bare numbers
                                         (VDD_IN 5144/5100) in JetPack 4
"""

from __future__ import annotations

import re
import time

from edgespec.errors import InputError
from edgespec_runtime.profiling.telemetry.reading import Reading, is_temperature, total_watts

NUMBER = r"-?\d+(?:\.\d+)?"
RECORD = re.compile(r"(?:\d\d-\d\d-\d{4} \d\d:\d\d:\d\d )?RAM (\d+)/\d+MB(?!\S)")
CORES = re.compile(r"(?<!\S)CPU \[([^\]]*)\](?:@(-?\d+))?(?!\S)")
CORE = re.compile(r"(-?\d+)%(?:@(-?\d+))?|off")
ENGINE = r"(?<!\S){} (?:(-?\d+)%)?(?:@\[?(-?\d+(?:,-?\d+)*)\]?)?(?!\S)"
GPU = re.compile(ENGINE.format("GR3D_FREQ"))
MEMORY = re.compile(ENGINE.format("EMC_FREQ"))
SENSOR = re.compile(rf"(?<!\S)([A-Za-z][\w-]*)@({NUMBER})C(?:/{NUMBER}C)?(?!\S)")
RAIL = re.compile(r"(?<!\S)([A-Za-z]\w*) (-?\d+)(mW)?((?:/-?\d+(?:mW)?){0,2})(?!\S)")
UNCONNECTED = "NC"


def parse_tegrastats(line: str, time_s: float | None = None) -> Reading:
    """One line; ``time_s`` is when it came (now if not given).

    Raises InputError where the line is no record, is torn, or holds more than one.
    """
    text = " ".join(line.split())
    record = RECORD.match(text)
    if record is None or len(re.findall(r"(?<!\S)RAM \d", text)) != 1:
        raise InputError(
            "a line of tegrastats starts with 'RAM used/totalMB', once, after an optional date; "
            f"found {text[:60]!r}: is this another program's output, or two records torn together?"
        )
    clocks = _clocks(text)
    percent, gpu_mhz = _engine(GPU, text)
    _, memory_mhz = _engine(MEMORY, text)
    for name, mhz in (("gpu", gpu_mhz), ("emc", memory_mhz)):
        if mhz is not None:
            clocks[name] = mhz
    watts = _watts(text)
    return Reading(
        time_s=time.monotonic() if time_s is None else time_s,
        watts=watts,
        total_w=total_watts(watts),
        celsius={
            name: float(value)
            for name, value in SENSOR.findall(text)
            if is_temperature(name, float(value))
        },
        clocks_mhz=clocks,
        gpu_percent=percent,
        ram_mb=float(record.group(1)),
    )


def _clocks(text: str) -> dict[str, float]:
    """MHz of every core that is on."""
    block = CORES.search(text)
    if block is None:
        if "CPU [" in text:
            raise InputError(f"a line of tegrastats ends inside its CPU field: {text[-60:]!r}")
        return {}
    clocks: dict[str, float] = {}
    for index, entry in enumerate(block.group(1).split(",")):
        core = CORE.fullmatch(entry)
        if core is None:
            raise InputError(f"a core in a line of tegrastats is {entry!r}, not 'load%@MHz' or off")
        mhz = core.group(2) or block.group(2)
        if core.group(1) is not None and mhz is not None and int(mhz) >= 0:
            clocks[f"cpu{index}"] = float(mhz)
    return clocks


def _engine(pattern: re.Pattern[str], text: str) -> tuple[float | None, float | None]:
    """Load in percent and MHz, the fastest unit's; None for what is off, absent or negative."""
    found = pattern.search(text)
    if found is None:
        return None, None
    percent = float(found.group(1)) if found.group(1) else None
    mhz = max(map(float, found.group(2).split(","))) if found.group(2) else None
    return _known(percent), _known(mhz)


def _known(value: float | None) -> float | None:
    return None if value is None or value < 0 else value


def _watts(text: str) -> dict[str, float]:
    """Watts now, by rail. A name with a bare number and neither unit nor mean is a clock."""
    return {
        name: int(milliwatts) / 1000
        for name, milliwatts, unit, mean in RAIL.findall(text)
        if (unit or mean) and name != UNCONNECTED
    }
