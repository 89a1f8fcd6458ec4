"""Where each round is verified: on a server, streamed from it, or here where none answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Event
from time import monotonic

from edgespec.acceptance import Verdict
from edgespec.errors import RemoteError
from edgespec.tree import TokenTree
from edgespec_runtime.remote.account import Account
from edgespec_runtime.remote.fallback import Fallback
from edgespec_runtime.remote.link import Mode
from edgespec_runtime.remote.verifier import RemoteVerifier
from edgespec_runtime.verifiers import Meanwhile, Verifier

RETRY_S = 3.0
"""Between tries of servers that did not answer."""


class Outage:
    """Whether the servers of a model are gone; shared by its requests, so that only the first one
    waits for them."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._asked_s: float | None = None  # when they were last tried; None: no outage
        self._answered = Event()  # set on another thread

    def began(self) -> None:
        """Nobody answers."""
        self._asked_s = self._clock()
        self._answered.clear()

    def ended(self) -> None:
        """Somebody did."""
        self._asked_s = None

    @property
    def lasts(self) -> bool:
        """Whether nobody has answered since it began."""
        return self._asked_s is not None and not self._answered.is_set()

    def ask(self, send: Callable[[Callable[[], None]], None]) -> None:
        """Tries again in the background now and then: ``send`` makes a call and has the given
        function called if a reply comes."""
        if self._asked_s is not None and self._clock() - self._asked_s >= RETRY_S:
            self._asked_s = self._clock()
            send(self._answered.set)


class RoutedVerifier:
    """One request's target, wherever it can be had; the text does not depend on it, unless the
    draft's own was asked for where there is no target at all."""

    def __init__(
        self,
        remote: RemoteVerifier,
        fallback: Fallback | None,
        outage: Outage,
        notice: Callable[[str], None],
    ) -> None:
        self._remote = remote
        self._fallback = fallback
        self._outage = outage
        self._notice = notice
        self._mode = Mode.HYBRID
        self._here: Verifier | None = None  # while no server is asked
        self._apart: list[int] = []  # tokens that the servers do not know of
        self._source = "target"
        self._engine_s = 0.0  # of verifiers here that were left again

    # --- what modes are set on (``modes.Switch``)

    @property
    def mode(self) -> Mode:
        return Mode.LOCAL if self.lost else self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        self._remote.streaming = mode is Mode.REMOTE

    @property
    def lost(self) -> bool:
        """Whether rounds are verified here, no server having answered."""
        return self._here is not None

    @property
    def alone(self) -> bool:
        """Whether nothing is verified at all: the draft writes by itself."""
        return self.lost and self._source == "draft"

    def ping(self) -> None:
        self._remote.ping()

    # --- the contract of every verifier

    @property
    def account(self) -> Account:
        return self._remote.account

    @property
    def engine_s(self) -> float:
        return self._remote.engine_s + self._engine_s + (self._here.engine_s if self._here else 0.0)

    @property
    def context(self) -> int:
        return self._here.context if self._here is not None else self._remote.context

    def begin(self) -> Verdict:
        if self._fallback is None:
            return self._remote.begin()
        if self._outage.lasts:
            self._outage.ask(self._remote.knock)
        else:
            try:
                verdict = self._remote.begin()
                self._outage.ended()
                return verdict
            except RemoteError as error:
                self._lose(error)
        verdict = self._take_up(self._fallback)
        return self._taken(verdict)

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        if self._here is not None:
            self._look_out()
        if self._here is None:
            try:
                verdict = self._remote.verify(tree, meanwhile)
                self.account.count(self._mode.value)
                return replace(verdict, source=self._source)
            except RemoteError as error:
                if self._fallback is None:
                    raise
                self._lose(error)
                self._take_up(self._fallback)
        assert self._here is not None
        verdict = self._here.verify(tree)
        self.account.count("draft" if self.alone else Mode.LOCAL.value)
        return self._taken(verdict)

    def close(self) -> None:
        self._remote.close()
        if self._here is not None:
            self._here.close()

    def _lose(self, error: RemoteError) -> None:
        assert self._fallback is not None
        self._outage.began()
        self._notice(f"{error}; {self._fallback.note}")

    def _take_up(self, fallback: Fallback) -> Verdict:
        """Goes on here."""
        if fallback.source != "target":
            self._source = fallback.source  # and stays: what follows builds on it
        self._here, verdict = fallback.take_up(self._remote.prompt_rows, self._remote.tokens)
        return verdict

    def _taken(self, verdict: Verdict) -> Verdict:
        self._apart += verdict.tokens
        return replace(verdict, source=self._source)

    def _look_out(self) -> None:
        """Goes back to the servers once one has answered, with all that came meanwhile."""
        if self._outage.lasts:
            self._outage.ask(self._remote.knock)
            return
        assert self._here is not None
        self._engine_s += self._here.engine_s
        self._here.close()
        self._here = None
        self._remote.adopt(self._apart)
        self._apart = []
        self._outage.ended()
        self._notice("a server answers again")
