"""A worker's process: started, asked one thing at a time, and ended."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import Skipped
from benchmarks.peers.prompts import Picture


class Worker:
    """One contender, loaded. Raises Skipped whenever the process fails, or takes too long."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], log: Path, timeout_s: float
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._timeout_s = log, timeout_s
        self._errors = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        try:
            self.ready = self._answer()
        except Skipped:
            self.close()
            raise

    def run(
        self, ids: Sequence[int], new: int, eos: Sequence[int], picture: Picture | None = None
    ) -> dict[str, Any]:
        """Tokens, their times in seconds from the start, and peak memory in MB."""
        seen = {"picture": asdict(picture)} if picture else {}
        self._ask({"do": "run", "ids": list(ids), "new": new, "eos": list(eos), **seen})
        return self._answer()

    def close(self) -> None:
        """Ends the process; one that does not answer is killed."""
        try:
            self._ask({"do": "end"})
            self._process.wait(timeout=30)
        except (Skipped, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request, default=str) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Skipped(f"its process has ended (see {self._log})") from None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = _Killer(self._process, self._timeout_s)
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if timer.late:
            raise Skipped(f"no answer within {self._timeout_s:g} s (see {self._log})")
        if not line:
            code = self._process.wait()
            raise Skipped(f"its process ended with code {code} (see {self._log})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Skipped(f"{answer['error']} (see {self._log})")
        return answer


class _Killer:
    """Kills a process that takes too long, so that reading from it ends."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        from threading import Timer

        self.late = False
        self._process = process
        self._timer = Timer(seconds, self._kill)
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()
        self._timer.join()

    def _kill(self) -> None:
        self.late = True
        self._process.kill()
