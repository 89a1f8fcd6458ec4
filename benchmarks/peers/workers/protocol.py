"""What every worker shares: requests as JSON lines on stdin, answers on stdout, one at a time.

A worker is a script that runs in its peer's environment, so this module needs the standard library
alone. ``{"do": "run", "ids": [...], "new": N, "eos": [...]}``, with a ``"picture"`` for a LLaVA, is
answered by the tokens and by when they came; ``{"do": "end"}`` ends the worker. What the peer
prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TextIO


@dataclass(frozen=True)
class Job:
    """What a worker is started for."""

    checkpoint: Path
    """Hugging Face-format directory, as the user gave it."""
    model: Path
    """The peer's own form of it, below the work directory; ``convert`` writes it."""
    precision: str
    mode: str
    """plain, lookup (n-grams of the text so far) or draft (a small model)."""
    threads: int
    draft: Path | None = None
    """The draft's checkpoint, in mode draft."""
    draft_model: Path | None = None
    """The peer's own form of that."""


@dataclass(frozen=True)
class Picture:
    """What a question is about; files are numpy's. Read them before the clock starts."""

    array: str
    """uint8 [H, W, 3]: decoded, upright, RGB."""
    pixels: str
    """float32 [1, 3, h, w]: as the checkpoint's own processor makes them."""
    text: str
    """The prompt as the chat template wrote it, with one mark in the picture's place."""
    mark: str
    mark_id: int
    """In a request's ids, one for each visual token."""


@dataclass
class Clock:
    """When tokens came. Engines that call back give them as they are made, others when asked."""

    started: float = 0.0
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """Seconds from the start, a token each; tokens that came together share theirs."""

    def start(self) -> None:
        self.started, self.tokens, self.times = perf_counter(), [], []

    def put(self, tokens: Iterable[int]) -> None:
        now = perf_counter() - self.started
        for token in tokens:
            self.tokens.append(int(token))
            self.times.append(now)


class Engine(Protocol):
    """A loaded model."""

    @property
    def run(self) -> Callable[..., None]:
        """(ids, new, eos, clock), and where it sees also ``picture``: continues ``ids`` greedily by
        ``new`` tokens, or up to one of ``eos``; starts the clock when it starts to compute, and
        tells it every token."""
        ...


@dataclass(frozen=True)
class Peer:
    """One peer: how it imports its libraries, converts a checkpoint and loads it."""

    packages: tuple[str, ...]
    """Whose versions are recorded."""
    import_libraries: Callable[[], Any]
    """What its user would import."""
    load: Callable[[Any, Job], Engine]
    convert: Callable[[Path, Path, str], None] | None = None
    """(checkpoint, folder to write, precision); None: it reads checkpoints themselves."""


def main(peer: Peer) -> None:
    """``convert CHECKPOINT OUT PRECISION``, or ``serve`` with the job as JSON."""
    answers = _own_stdout()
    if sys.argv[1] == "convert":
        assert peer.convert is not None
        peer.convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
        return
    try:
        _serve(peer, _job(json.loads(sys.argv[2])), answers)
    except Exception as error:
        traceback.print_exc()
        _answer(answers, {"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        sys.exit(1)


def sees(checkpoint: Path) -> bool:
    """Whether a checkpoint is a LLaVA."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return bool(config["model_type"] == "llava")


def call(command: Sequence[str]) -> None:
    """Runs a command, whose own words say what went wrong. Ends this program where it failed."""
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def _serve(peer: Peer, job: Job, answers: TextIO) -> None:
    started = perf_counter()
    libraries = peer.import_libraries()
    imported = perf_counter()
    engine = peer.load(libraries, job)
    ready = {
        "import_s": imported - started,
        "load_s": perf_counter() - imported,
        "rss_mb": _memory_mb("VmRSS"),
        "versions": {name: _version(name) for name in peer.packages},
    }
    _answer(answers, ready)
    clock = Clock()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "end":
            return
        seen = {"picture": Picture(**request["picture"])} if "picture" in request else {}
        clock.start()
        engine.run(request["ids"], request["new"], request["eos"], clock, **seen)
        tokens, times = _until_end(clock, request["eos"], request["new"])
        peak = _memory_mb("VmHWM")
        _answer(answers, {"tokens": tokens, "times": times, "peak_mb": peak})


def _until_end(clock: Clock, eos: list[int], new: int) -> tuple[list[int], list[float]]:
    """Some peers go on behind the end of the text, or give more than was asked for."""
    ends = (i + 1 for i, token in enumerate(clock.tokens) if token in eos)
    kept = min(next(ends, new), new)
    return clock.tokens[:kept], clock.times[:kept]


def _job(given: dict[str, Any]) -> Job:
    paths = ("checkpoint", "model", "draft", "draft_model")
    return Job(**{k: Path(v) if k in paths and v else v for k, v in given.items()})


def _own_stdout() -> TextIO:
    """The stream for answers; whatever else is printed goes to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _memory_mb(key: str) -> float:
    """From /proc, which counts this program alone; ``getrusage`` also counts its parent's peak."""
    status = Path("/proc/self/status")
    if not status.is_file():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
