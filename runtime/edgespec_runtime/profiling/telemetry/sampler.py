"""A thread that takes readings while something else runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edgespec.errors import InputError
from edgespec_runtime.profiling.telemetry.powermode import power_mode
from edgespec_runtime.profiling.telemetry.reading import Reading
from edgespec_runtime.profiling.telemetry.summary import summarise
from edgespec_runtime.profiling.telemetry.sysfs import SysfsReader
from edgespec_runtime.profiling.telemetry.tegrastats import parse_tegrastats

PATIENCE_S = 2.0
"""For the thread and for tegrastats to end."""


class Sampler:
    """Readings every ``interval_s`` seconds for as long as the ``with`` block lasts.

        with Sampler() as sampler:
            measure()
        profile_telemetry = sampler.summary()

    Where ``tegrastats`` is on the path its lines are the readings, completed by the kernel's files
    in what they lack; elsewhere, and should it fail, the files are read alone. Nothing here is ever
    raised into the block: what went wrong is in ``troubles``.
    """

    def __init__(self, interval_s: float = 0.2, root: Path = Path("/")) -> None:
        self._interval_s = interval_s
        self._root = root
        self._files: SysfsReader | None = None
        self._mode = ""
        self._ceilings: tuple[dict[str, float], dict[str, float]] = ({}, {})
        self._readings: list[Reading] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._skipped = 0
        self._troubles: list[str] = []

    @property
    def readings(self) -> tuple[Reading, ...]:
        """In order of time."""
        return tuple(self._readings)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What went wrong, in words."""
        if not self._skipped:
            return tuple(self._troubles)
        lines = "line of tegrastats was" if self._skipped == 1 else "lines of tegrastats were"
        return (*self._troubles, f"{self._skipped} {lines} not understood")

    def summary(self) -> dict[str, Any] | None:
        """Figures of all readings (see ``summarise``), with "troubles" if there were any; None
        where the platform tells nothing."""
        ranges = self._files.energy_ranges if self._files else {}
        figures = summarise(self._readings, ranges, self._ceilings)
        if figures is not None and self.troubles:
            figures["troubles"] = list(self.troubles)
        return figures

    def __enter__(self) -> Sampler:
        try:
            self._begin()
        except Exception as error:  # a measurement must not fail for want of a thermometer
            self._note("starting telemetry", error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end()
        except Exception as own:  # the block's own error must not be hidden
            self._note("stopping telemetry", own)

    def _begin(self) -> None:
        self._files = SysfsReader(self._root)
        self._mode = power_mode(self._root)
        self._ceilings = (self._files.ceilings_mhz(), {})
        self._take(self._files.read())
        program = shutil.which("tegrastats")
        if program is not None:
            try:
                self._process = _started(program, self._interval_s)
            except OSError as error:
                self._note("starting tegrastats", error)
        self._thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._ended.set()
        if self._process is not None:
            _kill(self._process)
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
        if self._process is not None:
            self._process.wait(PATIENCE_S)
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._files is not None:
            self._take(self._files.read())
            self._ceilings = (self._ceilings[0], self._files.ceilings_mhz())

    def _watch(self) -> None:
        try:
            if self._process is not None:
                self._follow(self._process)
            while self._files is not None and not self._ended.wait(self._interval_s):
                self._take(self._files.read())
        except Exception as error:  # this thread has nobody above it
            self._note("sampling telemetry", error)

    def _follow(self, process: subprocess.Popen[str]) -> None:
        """Lines until tegrastats ends; that it ended by itself is told."""
        if process.stdout is None or self._files is None:
            return
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # cut off in its middle
            try:
                reading = parse_tegrastats(line)
            except InputError:
                self._skipped += 1
                continue
            self._take(_completed(reading, self._files.read(rails=not reading.watts)))
        if not self._ended.is_set():
            self._troubles.append("tegrastats ended early; the kernel's files were read instead")

    def _take(self, reading: Reading) -> None:
        self._readings.append(replace(reading, power_mode=self._mode))

    def _note(self, doing: str, error: Exception) -> None:
        self._troubles.append(f"{doing} failed: {type(error).__name__}: {error}")


def _started(program: str, interval_s: float) -> subprocess.Popen[str]:
    """In a group of its own, so that whatever it starts ends with it."""
    return subprocess.Popen(
        [program, "--interval", str(max(1, round(interval_s * 1000)))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself


def _completed(line: Reading, files: Reading) -> Reading:
    """A line of tegrastats with what it lacks; what both have is the line's."""
    return replace(
        line,
        watts=line.watts or files.watts,
        total_w=line.total_w if line.watts else files.total_w,
        celsius=line.celsius or files.celsius,
        clocks_mhz={**files.clocks_mhz, **line.clocks_mhz},
        gpu_percent=files.gpu_percent if line.gpu_percent is None else line.gpu_percent,
        joules=files.joules,
        throttle_counts=files.throttle_counts,
        alerts=files.alerts,
    )
