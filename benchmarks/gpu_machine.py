"""What a card is and what it can do: names, versions, measured bandwidth, memory in use."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = (
    "torch", "transformers", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "cuda-python",
    "cuda-bindings", "tensorrt",
)  # fmt: skip
SMI = ("name", "driver_version", "memory.total", "power.limit", "clocks.sm", "clocks.mem",
       "clocks.max.sm", "clocks.max.mem")  # fmt: skip
MB = 2**20


def environment() -> dict[str, Any]:
    """The card (None without one), the machine, and versions."""
    return {
        "card": card(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def card() -> dict[str, str] | None:
    """What nvidia-smi says of the first card."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = answer.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(SMI, values, strict=False))


def bandwidth(device: str) -> dict[str, float]:
    """GB/s, medians: ``copy`` counts what is read and what is written; ``read`` is a matrix times
    a vector in half precision, which is what decoding is, or a sum: the largest."""
    import torch

    kind = torch.float16 if device == "cuda" else torch.float32
    count = (1 << 30) if device == "cuda" else (1 << 22)
    numbers = torch.zeros(count, dtype=kind, device=device)
    size = numbers.element_size() * count
    found = {"copy": 2 * size / _median_s(numbers.clone, device) / 1e9}
    for columns in (4096, 11008):
        matrix = numbers[: count // columns * columns].view(-1, columns)
        vector = torch.zeros(columns, dtype=kind, device=device)
        seconds = _median_s(partial(torch.mv, matrix, vector), device)
        found[f"gemv_{columns}"] = matrix.numel() * numbers.element_size() / seconds / 1e9
    found["sum"] = size / _median_s(numbers.sum, device) / 1e9
    found["read"] = max(rate for name, rate in found.items() if name != "copy")
    del numbers, matrix
    if device == "cuda":
        torch.cuda.empty_cache()
    return {name: round(value, 1) for name, value in found.items()}


def _median_s(work: Any, device: str) -> float:
    times = []
    for _ in range(12):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times[2:]))


def wait(device: str) -> None:
    """Until the card has done all it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def resident_mb(name: str = "VmRSS") -> float:
    """Of this process; "VmHWM" is the most so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0


def forget_peak() -> None:
    """Has "VmHWM" begin again from what is in use now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def card_mb(device: str) -> float:
    """Used on the whole card, by everybody; 0 without one."""
    if device != "cuda":
        return 0.0
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / MB


@dataclass
class Peak:
    """The most that was in use at once, in megabytes, beyond what was before."""

    card_mb: float = 0.0
    host_mb: float = 0.0


@contextmanager
def watched(device: str) -> Iterator[Peak]:
    """Memory while something runs, looked at every 20 ms; not around what is clocked."""
    peak, over = Peak(), threading.Event()
    card_before, host_before = card_mb(device), resident_mb()

    def look() -> None:
        while True:
            peak.card_mb = max(peak.card_mb, card_mb(device) - card_before)
            peak.host_mb = max(peak.host_mb, resident_mb() - host_before)
            if over.wait(0.02):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak.card_mb = round(max(peak.card_mb, card_mb(device) - card_before), 1)
        peak.host_mb = round(max(peak.host_mb, resident_mb() - host_before), 1)


def _version(package: str) -> str:
    """Of what is imported where the module tells, as the metadata may be another copy's."""
    try:
        told = getattr(import_module(package), "__version__", None)
        return str(told or version(package))
    except (ImportError, PackageNotFoundError):
        with suppress(PackageNotFoundError):
            return version(package)
        return ""


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()
