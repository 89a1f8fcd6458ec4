"""The target on a server, behind the contract of every verifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

from google.protobuf.message import DecodeError

from edgespec.acceptance import Verdict
from edgespec.tree import EMPTY, TokenTree
from edgespec_runtime.remote.account import Account
from edgespec_runtime.remote.calls import Calls, times_of
from edgespec_runtime.remote.channels import Endpoint
from edgespec_runtime.remote.checks import BadReply, Expected, Needs, unfit
from edgespec_runtime.remote.observer import Nobody, Observer
from edgespec_runtime.remote.pictures import too_large
from edgespec_runtime.remote.servers import Servers
from edgespec_runtime.remote.session import Asked, Session
from edgespec_runtime.remote.stream import ReplyStream
from edgespec_runtime.remote.transport import Failure, Kind
from edgespec_runtime.verifiers.base import Meanwhile
from edgespec_runtime.wire import verifier_pb2 as pb


class RemoteVerifier:
    """One request's target elsewhere. Every token is committed here first, after checks of its own;
    what a server holds is a cache, and losing it costs time alone."""

    def __init__(
        self,
        servers: Servers,
        asked: Asked,
        needs: Needs,
        stop_ids: Sequence[int] = (),
        observer: Observer | None = None,
    ) -> None:
        """``stop_ids``: tokens behind which a stream of the server's own rounds ends; ``observer``
        is told what calls took."""
        self.streaming = False
        """Whether plain rounds (``verify(EMPTY)``) come from a stream that the server writes by
        itself, one round trip for all of them."""
        self.account = Account()
        self._observer = observer or Nobody()
        self._settings = servers.settings
        self._asked, self._needs, self._stop_ids = asked, needs, tuple(stop_ids)
        self._session = Session(asked)
        self._expected = Expected(needs.vocab, asked.features, 0)  # until a session is open
        self._calls = Calls(servers, self._session.id, self.account, self._observer)
        self._opened_at: set[Endpoint] = set()
        self._in_step = False  # whether the server's session is known to be ours
        self._stream: ReplyStream | None = None
        self._here_s = 0.0  # of the step at hand: the target's computing

    @property
    def engine_s(self) -> float:
        """Seconds spent waiting for the servers, wherever they went."""
        return self.account.wait_s

    @property
    def context(self) -> int:
        return self._session.context

    def begin(self) -> Verdict:
        """See ``Verifier.begin``. Raises RemoteError where no server answers, or none can
        serve this request."""
        known = self._calls.endpoint.info is not None
        settings = self._settings
        return self._persist(self._open, settings.wait_s if known else settings.first_wait_s)

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        """See ``Verifier.verify``. Raises RemoteError where no server answers in time; what was
        committed until then stands."""
        waiting = [meanwhile] if meanwhile is not None else []
        return self._persist(lambda: self._round(tree, waiting), self._settings.wait_s)

    def close(self) -> None:
        """Tells the servers that the answer is over. Never raises and does not wait."""
        self._leave_stream()
        for endpoint in self._opened_at:
            self._calls.close(endpoint, self._session.close())
        self._opened_at.clear()
        self._in_step = False

    @property
    def prompt_rows(self) -> int:
        """Rows of the expanded prompt."""
        return self._asked.context

    @property
    def tokens(self) -> Sequence[int]:
        """The answer's committed tokens."""
        return tuple(self._session.tokens)

    def adopt(self, tokens: Sequence[int]) -> None:
        """Goes on behind ``tokens`` that somebody else named: the next round opens anew."""
        self._fall_out()
        self._session.adopt(tokens)

    def ping(self) -> None:
        """Has the round trip measured in the background; the observer is told of it in a later
        round."""
        self._calls.ping()

    def knock(self, answered: Callable[[], None]) -> None:
        """Asks every server in the background whether it is there; ``answered`` is called, on
        another thread, by each that is."""
        self._calls.knock(answered)

    def _persist(self, step: Callable[[], Verdict], patience_s: float) -> Verdict:
        """Takes ``step``, on other servers and in new epochs if it must be."""
        started, self._here_s = perf_counter(), 0.0
        self._calls.failover.start(patience_s)
        while True:
            try:
                verdict = step()
                break
            except Failure as failure:
                self._fall_out()
                self._fail(failure)
            except BaseException:
                self._fall_out()
                raise
        self._calls.settle()
        away_s = perf_counter() - started - self._here_s
        return replace(verdict, away_ms=max(away_s, 0.0) * 1e3)

    def _fail(self, failure: Failure) -> None:
        asked = self._calls.endpoint
        if failure.kind in (Kind.UNFIT, Kind.WRONG):
            asked.info = None  # asked again before it is believed: it may be another server by now
        self._calls.failover.failed(failure)
        if self._calls.endpoint is not asked:
            self._observer.forget()

    def _open(self) -> Verdict:
        endpoint, session = self._calls.endpoint, self._session
        info = self._fit()
        again = session.epoch > 0
        if not again:
            self.ping()  # ahead of the pictures: what it takes is the way there and nothing else
        data = session.open(endpoint.pictures)
        if len(data) > info.limits.message_bytes:
            raise Failure(
                Kind.UNFIT,
                f"it takes messages of {info.limits.message_bytes} bytes, opening this session "
                f"needs {len(data)}; give fewer or smaller pictures",
            )
        self._opened_at.add(endpoint)
        digests = {shown.digest for shown in self._asked.shown}
        try:
            answer = self._calls.open(data)
        except Failure as failure:
            if failure.kind is Kind.PICTURES:
                endpoint.lacks(digests)
            elif failure.kind is Kind.REOPEN:
                # The server knows a later epoch than ours ever was: a number was spoilt on its way.
                session.rename()
            raise
        reply, cached = answer.reply, answer.reply.reused_rows >= session.context - 1
        self._expected = Expected(self._needs.vocab, self._asked.features, info.feature_width)
        with _discarding():
            verdict = session.opened(reply, self._expected)
        endpoint.keeps(digests)
        self.account.reopens += again
        self._in_step = True
        self._here_s += reply.compute_us / 1e6
        if not reply.replayed:
            self._observer.opened(*times_of(answer), answer.up, answer.down, cached=cached)
        return verdict

    def _round(self, tree: TokenTree, waiting: list[Meanwhile]) -> Verdict:
        streaming = self.streaming and not len(tree) and self._session.tokens_left > 0
        if self._stream is not None and not streaming:
            self._fall_out()
        if not self._in_step:
            self._open()
        if streaming:
            return self._streamed()
        data, meanwhile = self._session.verify(tree), waiting.pop() if waiting else None
        answer = self._calls.verify(data, meanwhile)
        verdict = self._commit(tree, answer.reply)
        self._calls.verified(answer, len(tree) + 1)
        return verdict

    def _streamed(self) -> Verdict:
        """The next round that the server made by itself."""
        first = self._stream is None
        if self._stream is None:
            self._stream = self._calls.proceed(self._session.proceed(self._stop_ids))
        came = self._calls.next_of(self._stream, first=first)
        if came is None:
            self._leave_stream()
            if first:
                raise Failure(Kind.ELSEWHERE, "the stream ended before it began")
            return self._streamed()
        with _discarding():
            reply = pb.VerifyReply.FromString(came)
        verdict = self._commit(EMPTY, reply)
        self.account.streamed += 1
        self._observer.streamed(reply.queue_us / 1e3, reply.compute_us / 1e3, len(came))
        return verdict

    def _commit(self, tree: TokenTree, reply: pb.VerifyReply) -> Verdict:
        with _discarding():
            verdict = self._session.verified(tree, reply, self._expected)
        self._here_s += reply.compute_us / 1e6
        return verdict

    def _fit(self) -> pb.InfoReply:
        """What the server at hand says of itself. Raises Failure for one that is of no use."""
        info = self._calls.info()
        if reason := unfit(info, self._needs) or too_large(self._asked.shown, info.limits):
            raise Failure(Kind.UNFIT, reason)
        return info

    def _fall_out(self) -> None:
        """What the server has of the session is not relied on any longer."""
        self._in_step = False
        self._leave_stream()

    def _leave_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


@contextmanager
def _discarding() -> Iterator[None]:
    """A reply that fails the checks is dropped, and the session opened anew."""
    try:
        yield
    except (BadReply, DecodeError) as error:
        raise Failure(Kind.REOPEN, f"a reply was discarded ({error})") from None
