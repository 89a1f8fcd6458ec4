"""Real servers in processes of their own: ``python -m edgespec serve ...``."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.support.ports import held

ROOT = Path(__file__).resolve().parent.parent.parent
READY_S = 240.0  # generous: several of these share few cores
STOP_S = 240.0


class RunningServer:
    """One server; ``restart`` brings it back at the same port after a kill or a stop."""

    def __init__(self, command: list[str], errors: IO[bytes]) -> None:
        """``command``: the module to run, and its arguments."""
        self._command = command
        self._errors = errors
        self._holder: socket.socket | None = None
        self.address = ""
        self._start()

    def _start(self, *last: str) -> None:
        words = [sys.executable, "-m", *self._command, *last]
        paths = [str(ROOT / part) for part in ("", "export", "runtime")]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        try:
            self.line: dict[str, Any] = json.loads(self._first_line())
        except BaseException:
            self.kill()
            raise
        self.address = str(self.line["listening"])

    def _first_line(self) -> bytes:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(READY_S):
                raise AssertionError(f"the server is not ready after {READY_S} s:\n{self.log}")
        if not (line := self.process.stdout.readline()):
            raise AssertionError(f"the server did not start:\n{self.log}")
        return line

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """All of stderr so far, earlier starts included."""
        return Path(self._errors.name).read_text(encoding="utf-8")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log's entries; one that is being written is none yet."""
        return [json.loads(line) for line in self.log.split("\n")[:-1]]

    def kill(self) -> None:
        """SIGKILL, and waits for the process to be gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks it to stop; returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code of a server that is about to end."""
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._hold()
        return code

    def _hold(self) -> None:
        """Keeps the port of a server that is gone: who asks for any port must not get this one."""
        if self.address and self._holder is None:
            host, _, port = self.address.rpartition(":")
            self._holder = held(host, int(port))

    def release(self) -> None:
        """Gives the port back: the server does not start again."""
        if self._holder is not None:
            self._holder.close()

    def pause(self) -> None:
        """Stops every thread, as a hung machine would; sockets stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """A new process at the same port; ends the old one first."""
        self.kill()
        self._start("--listen", self.address)


@contextmanager
def running_server(
    bundle: Path | str, *flags: object, module: str = "edgespec"
) -> Iterator[RunningServer]:
    """A server of ``bundle`` on a free port of the loopback, with one engine thread unless
    ``flags`` say otherwise; always killed and reaped in the end. ``module``: what is run."""
    start = [module, "serve", "--bundle", str(bundle), "--threads", "1"]
    command = [*start, "--listen", "127.0.0.1:0", *map(str, flags)]
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as errors:
        server = RunningServer(command, errors)
        try:
            yield server
        finally:
            server.kill()
            server.release()
