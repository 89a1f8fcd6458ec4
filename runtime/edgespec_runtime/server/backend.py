"""What the gRPC front talks to: verifiers in this process, or behind Ray.

A backend takes requests whose shape the front has checked (sizes, ids, trees, sampling) and keeps
the rules of sessions itself. Every method raises ``Refusal`` for what it does not do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from edgespec_runtime.wire import verifier_pb2 as pb


@dataclass(frozen=True)
class Gauges:
    """The backend at one moment, for metrics."""

    sessions: int
    kv_bytes: int
    image_bytes: int
    queued: int
    evictions: int
    """Since the start, as all below."""
    replays: int
    rounds: int
    tokens: int
    batches: int
    """Engine calls that verified; ``rounds / batches`` is the mean batch."""


class VerifierBackend(Protocol):
    """Sessions of a target. ``tenant`` scopes session ids, pictures and reuse."""

    async def info(self) -> pb.InfoReply:
        """What it serves."""

    async def open(self, tenant: str, request: pb.OpenRequest) -> pb.OpenReply:
        """Starts or resumes a session."""

    async def verify(self, tenant: str, request: pb.VerifyRequest) -> pb.VerifyReply:
        """One round."""

    def proceed(
        self, tenant: str, request: pb.ContinueRequest
    ) -> AsyncGenerator[pb.VerifyReply, None]:
        """Plain rounds until a stop token, ``max_tokens``, or the caller leaves."""

    async def close(self, tenant: str, request: pb.CloseRequest) -> pb.CloseReply:
        """Forgets a session; one that is not there is no error."""

    async def gauges(self) -> Gauges:
        """For metrics."""

    async def stop(self) -> None:
        """Finishes what runs and lets go of the target."""
