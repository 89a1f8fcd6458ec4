"""One plan built in a process of its own, so that TensorRT's end is not ours.

Building takes memory by the gigabyte: where it runs out, Linux kills the process, and a compiler
may crash. The caller lives on and can say which graph it was; its memory is given back.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from edgespec.bundle import Bundle, read_bundle
from edgespec.engines import Profile
from edgespec.errors import EdgespecError, EngineError
from edgespec.flavour import Flavour
from edgespec.nvidia import find_tensorrt
from edgespec.signals import heeded_behind
from edgespec_export.tensorrt.graph import read_source
from edgespec_export.tensorrt.listening import Tell
from edgespec_export.tensorrt.network import Settings, build_plan


@dataclass(frozen=True)
class Job:
    """What the process is told."""

    bundle: Path
    flavour: Flavour
    role: str
    static: dict[str, int]
    profiles: Sequence[Profile]
    library: str
    settings: Settings
    out: Path


def run_job(job: Job, tell: Tell = lambda phase, share: None) -> bool:
    """Builds and writes ``job.out``; whether attention had to be taken apart.

    Raises what the build raises, and EngineError where the process dies.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit a driver it cannot use
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, job), daemon=True)
    try:
        _start(process)
        theirs.close()
        while True:
            kind, value = ours.recv()
            if kind == "progress":
                tell(*value)
            elif kind == "refused":
                raise value
            elif kind == "broken":
                raise EngineError(f"building graph '{job.role}' failed: {value}")
            else:
                return bool(value)
    except EOFError:
        process.join()
        raise EngineError(_obituary(job, process.exitcode or 0)) from None
    finally:
        if process.pid is not None:  # it was started
            process.terminate()  # nothing, where it is done
            process.join()
        process.close()
        ours.close()


def _start(process: BaseProcess) -> None:
    """Starts it deaf to Ctrl-C, which a terminal sends to both: the caller hears it and ends both.

    Blocked from outside, since a Python takes a while to come to what it would block itself. Nor
    does the caller heed it between the process's birth and what it is told: left without that, it
    would complain.
    """
    resource_tracker.ensure_running()  # its own start, at the first process, would unblock
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with heeded_behind(signal.SIGINT):
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, job: Job) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # TensorRT's compiler writes there, whatever its logger is
    try:
        connection.send(("done", _build(connection, job)))
    except EdgespecError as error:
        connection.send(("refused", error))
    except Exception as error:
        connection.send(("broken", repr(error)))
    finally:
        connection.close()


def _build(connection: Connection, job: Job) -> bool:
    bundle: Bundle = read_bundle(job.bundle, check_hashes=False).only(job.flavour)
    graph = bundle.manifest.graph(job.role)
    assert graph
    last: list[Any] = [None]

    def tell(phase: str, share: float) -> None:
        step = (phase, round(share, 1))
        if step != last[0]:
            last[0] = step
            connection.send(("progress", (phase, share)))

    tensorrt = find_tensorrt(job.library)
    source = read_source(bundle, graph, job.static)
    content, decomposed = build_plan(tensorrt, source, job.profiles, job.settings, tell)
    with job.out.open("wb") as out:
        out.write(content)
    return decomposed


def _obituary(job: Job, code: int) -> str:
    if code == -signal.SIGKILL:
        return (
            f"building graph '{job.role}' was ended by the system, as it is when memory runs out; "
            "end other programs, add swap, or give a smaller --context or --prefill-rows, or "
            "export a smaller precision"
        )
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return (
        f"{job.library} crashed ({how}) while it built graph '{job.role}'; the others can be built "
        "without it (--role), or export another flavour"
    )
