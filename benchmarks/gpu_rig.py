"""What all sections share: the machine's engine, the exported bundle of random weights, its opened
flavours, a prompt with a picture, and the time that is left.
"""

from __future__ import annotations

import gc
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.gpu_checkpoint import Geometry, write_pair
from benchmarks.gpu_machine import card_mb, forget_peak, resident_mb
from benchmarks.gpu_question import Question, question_of
from edgespec.bundle import read_bundle
from edgespec.errors import EdgespecError
from edgespec.flavour import Flavour
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_runtime.engines import Engine, open_engine
from edgespec_runtime.model import Model
from tests.support.checkpoints import picture

Flavours = tuple[Flavour, ...]
HOST = "ort-host"
"""The device engines over the host's memory and ONNX Runtime's CPU provider, as the tests run them:
the same code as a card's, and no figure of it means anything."""


class OutOfTime(Exception):
    """The time limit leaves no room for what comes next."""


@dataclass
class Clock:
    """The time that a call may take."""

    limit_s: float
    started: float = field(default_factory=perf_counter)

    @property
    def left_s(self) -> float:
        return self.limit_s - (perf_counter() - self.started)

    def need(self, seconds: float) -> None:
        """Raises OutOfTime where less than that is left."""
        if self.left_s < seconds:
            raise OutOfTime(f"{self.left_s:.0f} s were left where about {seconds:.0f} are needed")


def engine_of(name: str, threads: int = 0) -> Engine:
    """As ``open_engine``, and HOST."""
    if name != HOST:
        return open_engine(name, threads=threads)
    from edgespec_runtime.engines.ort import CPU
    from edgespec_runtime.engines.ort_device import OrtDeviceEngine
    from tests.support.host_memory import HostMemory

    return OrtDeviceEngine(HOST, CPU, HostMemory, threads or 1)


def open_model(bundle: Path, flavour: Flavour | None, engine: str, threads: int = 0) -> Model:
    """A bundle's model in that flavour, whatever the engine itself would choose."""
    opened = read_bundle(bundle, check_hashes=False)
    return Model(opened.only(flavour) if flavour else opened, engine_of(engine, threads))


def export_flavours(request: ExportRequest, flavours: Sequence[Flavour]) -> tuple[Flavours, str]:
    """Writes the bundle with ``flavours``, or with as many of the leading ones as can be exported;
    returns these, and why others were refused."""
    refused = []
    while True:
        try:
            export_bundle(replace(request, flavours=tuple(flavours)))
        except (EdgespecError, ValueError) as error:
            refused.append(f"{flavours[-1]}: {error}")
            if len(flavours) == 1:
                raise
            flavours = flavours[:-1]
        else:
            return tuple(flavours), "; ".join(refused)


def median_ms(work: Callable[[], float], repeats: int, warm: int = 3) -> float:
    """Of ``work``, which returns milliseconds; its first ``warm`` calls are not counted: buffers
    are bound and launches recorded in them."""
    times = [work() for _ in range(warm + repeats)]
    return round(statistics.median(times[warm:]), 4)


@dataclass
class Rig:
    """The random model on this machine; what is expensive is made when it is first asked for."""

    geometry: Geometry
    device: str
    """Of torch: "cuda" or "cpu"."""
    engine: str
    flavours: tuple[Flavour, ...]
    folder: Path
    clock: Clock
    new_tokens: int = 96
    repeats: int = 15
    report: dict[str, Any] = field(default_factory=dict)
    """Sections so far, by name."""
    refused: dict[str, str] = field(default_factory=dict)
    """Flavours that could not be opened, and why."""
    _models: dict[Flavour, Model] = field(default_factory=dict)

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "target"

    def export(self, figures: dict[str, Any]) -> None:
        """Writes checkpoints and bundle where they are not there yet."""
        if self.bundle.is_dir():
            held = read_bundle(self.bundle, check_hashes=False).manifest.flavours
            self.flavours = tuple(f for f in self.flavours if f in held)
            figures |= {"found": "was there already", "flavours": [str(f) for f in held]}
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        started = perf_counter()
        target, draft = write_pair(self.folder, self.geometry, self.device)
        figures["checkpoint_s"] = round(perf_counter() - started, 2)
        forget_peak()
        before = resident_mb()
        request = ExportRequest(
            str(target), self.bundle, str(draft), compressor=self.geometry.compressor
        )
        started = perf_counter()
        self.flavours, figures["refused"] = export_flavours(request, self.flavours)
        figures["export_s"] = round(perf_counter() - started, 2)
        figures["peak_rss_mb"] = round(resident_mb("VmHWM"))
        figures["rss_before_mb"] = round(before)
        files = {p.name: p.stat().st_size for p in self.bundle.iterdir()}
        figures["gigabytes"] = {n: round(s / 1e9, 3) for n, s in files.items() if s > 1e7}
        figures["bundle_gb"] = round(sum(files.values()) / 1e9, 3)
        figures["flavours"] = [str(flavour) for flavour in self.flavours]

    @property
    def usable(self) -> list[Flavour]:
        """Flavours of the bundle that this engine opens."""
        found = []
        for flavour in self.flavours:
            try:
                self.model(flavour)
            except EdgespecError as error:
                self.refused[str(flavour)] = str(error)
                continue
            found.append(flavour)
        return found

    def model(self, flavour: Flavour) -> Model:
        """Kept open. The time and the memory it took are in the report."""
        if str(flavour) in self.refused:
            raise EdgespecError(self.refused[str(flavour)])
        if flavour not in self._models:
            if not self.bundle.is_dir():
                self.export({})
            self.clock.need(8)
            self._make_room()
            card, host, started = card_mb(self.device), resident_mb(), perf_counter()
            self._models[flavour] = open_model(self.bundle, flavour, self.engine)
            self.report.setdefault("opening", {})[str(flavour)] = {
                "seconds": round(perf_counter() - started, 2),
                "card_mb": round(card_mb(self.device) - card),
                "host_mb": round(resident_mb() - host),
            }
        return self._models[flavour]

    def _make_room(self) -> None:
        """Lets go of the open models where another one might not fit beside them."""
        if self.device != "cuda" or not self._models:
            return
        import torch

        weights = sum(p.stat().st_size for p in self.bundle.glob("*.bin"))
        if torch.cuda.mem_get_info()[0] < 1.5 * weights + 4e9:
            self._models.clear()
            gc.collect()

    @property
    def best(self) -> Flavour:
        """The flavour with the cheapest calls, as far as they were clocked; else the first."""
        figures = self.report.get("plain", {}).get("figures", {})
        speeds = {f: figures.get(str(f), {}).get("tokens_per_s", 0.0) for f in self.usable}
        if not speeds:
            raise EdgespecError(f"no flavour can be opened here: {self.refused}")
        return max(speeds, key=lambda flavour: speeds[flavour])

    def question(self, model: Model) -> Question:
        """Random words behind a random picture."""
        rng = np.random.default_rng(0)
        words = rng.integers(8, self.geometry.image_token, size=40)
        text = " ".join(f"w{word}" for word in words)
        return question_of(model, text, picture(int(self.geometry.vision["image_size"]), 0))

    def close(self, keep: bool) -> None:
        """Lets go of models, and of the files unless they are to be kept."""
        self._models.clear()
        gc.collect()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
