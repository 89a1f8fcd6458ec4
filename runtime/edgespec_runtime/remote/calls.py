"""What one request asks of the server at hand, each with its deadline, its accounts kept."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter
from typing import TypeVar

from edgespec_runtime.remote.account import Account
from edgespec_runtime.remote.channels import Endpoint
from edgespec_runtime.remote.checks import PROTOCOL
from edgespec_runtime.remote.failover import Failover
from edgespec_runtime.remote.observer import Observer
from edgespec_runtime.remote.servers import Servers
from edgespec_runtime.remote.stream import ReplyStream
from edgespec_runtime.remote.transport import Answer, Call, Transport
from edgespec_runtime.verifiers.base import Meanwhile
from edgespec_runtime.wire import verifier_pb2 as pb

Reply = TypeVar("Reply")
INFO = pb.InfoRequest(protocol=PROTOCOL).SerializeToString()


class Calls:
    """Calls of one session; every method that waits for a reply raises Failure."""

    def __init__(
        self, servers: Servers, session_id: bytes, account: Account, observer: Observer
    ) -> None:
        self.failover = Failover(servers.ordered(), servers.settings.notice)
        self._servers = servers
        self._settings = servers.settings
        self._session_id = session_id
        self._account = account
        self._observer = observer
        self._transport = Transport(account)
        self._pings: SimpleQueue[float] = SimpleQueue()

    @property
    def endpoint(self) -> Endpoint:
        """The server at hand."""
        return self.failover.endpoint

    def info(self) -> pb.InfoReply:
        """What the server says of itself, asked once."""
        endpoint = self.endpoint
        if endpoint.info is None:
            answer = self._ask("GetInfo", INFO, pb.InfoReply.FromString, self._deadline)
            endpoint.info = answer.reply
            self.failover.allow(self._settings.wait_s)  # somebody is there
            self._observer.pinged(answer.took_s * 1e3, connecting=True)
            curve = answer.reply.verify
            self._observer.informed(curve.sizes, curve.median_ms)
        return endpoint.info

    def open(self, data: bytes) -> Answer[pb.OpenReply]:
        return self._ask("Open", data, pb.OpenReply.FromString, self._open_deadline)

    def verify(self, data: bytes, meanwhile: Meanwhile | None = None) -> Answer[pb.VerifyReply]:
        rounds = self.endpoint.rounds
        parse = pb.VerifyReply.FromString
        answer = self._ask("Verify", data, parse, rounds.deadline_s, meanwhile)
        rounds.took(answer.took_s)
        return answer

    def verified(self, answer: Answer[pb.VerifyReply], rows: int) -> None:
        """Takes note of a verification of ``rows`` rows, the root's included, that was good."""
        self._account.rounds += 1
        if not answer.reply.replayed:
            times = total, _, compute = times_of(answer)
            self._account.away_ms.append(total - compute)
            self._observer.verified(rows, *times, answer.up, answer.down)

    def proceed(self, data: bytes) -> ReplyStream:
        """Has the server go on by itself; does not wait."""
        self._account.bytes_up += len(data)
        metadata = self.endpoint.metadata(self._session_id)
        return ReplyStream(self.endpoint.streaming("Continue")(data, metadata=metadata))

    def next_of(self, stream: ReplyStream, *, first: bool) -> bytes | None:
        """The stream's next reply, None at its end; the ``first`` has to travel there and back."""
        pace, started = self.endpoint.replies, perf_counter()
        came = stream.next(self._deadline(0) if first else pace.deadline_s())
        waited = perf_counter() - started
        self._account.wait_s += waited
        if came is not None and not first:
            pace.took(waited)
        self._account.bytes_down += len(came or b"")
        return came

    def close(self, endpoint: Endpoint, data: bytes) -> None:
        """Has ``endpoint`` forget the session; does not wait."""
        self._servers.send(endpoint, "Close", self._session_id, data)

    def ping(self) -> None:
        """Has the round trip measured in the background; the observer is told by ``settle``."""
        sent, arrived = perf_counter(), self._pings.put
        self._greet(self.endpoint, lambda: arrived(perf_counter() - sent))

    def knock(self, answered: Callable[[], None]) -> None:
        """Asks every server in the background whether it is there; ``answered`` is called, on
        another thread, by each that is."""
        for endpoint in self._servers.ordered():
            self._greet(endpoint, answered)

    def settle(self) -> None:
        """An answer was taken: later requests begin where it came from."""
        self.failover.done()
        self._account.endpoint = self.endpoint.address
        self._servers.prefer(self.endpoint)
        while not self._pings.empty():
            self._observer.pinged(self._pings.get() * 1e3)

    def _greet(self, endpoint: Endpoint, answered: Callable[[], None]) -> None:
        self._servers.send(endpoint, "GetInfo", self._session_id, INFO, answered)

    def _ask(
        self,
        method: str,
        data: bytes,
        parse: Callable[[bytes], Reply],
        deadline_s: Callable[[int], float],
        meanwhile: Meanwhile | None = None,
    ) -> Answer[Reply]:
        call = Call(method, self._session_id, data, parse, deadline_s)
        return self._transport.ask(self.endpoint, call, meanwhile)

    def _deadline(self, attempt: int) -> float:
        return self._settings.deadline_ms / 1e3

    def _open_deadline(self, attempt: int) -> float:
        return self._settings.open_deadline_ms / 1e3


def times_of(answer: Answer[pb.OpenReply] | Answer[pb.VerifyReply]) -> tuple[float, float, float]:
    """Total, queue and compute, in milliseconds."""
    reply = answer.reply
    return answer.took_s * 1e3, reply.queue_us / 1e3, reply.compute_us / 1e3
