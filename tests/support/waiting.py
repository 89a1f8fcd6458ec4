"""A target that is waited for: it answers once it was asked often enough whether it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from edgespec.acceptance import Verdict
from edgespec.tree import TokenTree
from edgespec_runtime.verifiers import Meanwhile, Verifier


class WaitingVerifier:
    """``waits`` says for every verification how often it is found unanswered; None: it is not
    waited for."""

    def __init__(self, inner: Verifier, waits: Callable[[], int | None]) -> None:
        self._inner, self._waits = inner, waits

    @property
    def engine_s(self) -> float:
        return self._inner.engine_s

    @property
    def context(self) -> int:
        return self._inner.context

    def begin(self) -> Verdict:
        return self._inner.begin()

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        _wait(meanwhile, self._waits())
        return self._inner.verify(tree)

    def close(self) -> None:
        self._inner.close()


def wait_for(verifier: Any, waits: Callable[[], int | None]) -> None:
    """Makes a verifier that is at work already one that is waited for."""
    verify = verifier.verify

    def waiting(tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        _wait(meanwhile, waits())
        return cast(Verdict, verify(tree))

    verifier.verify = waiting


def _wait(meanwhile: Meanwhile | None, times: int | None) -> None:
    if meanwhile is None or times is None:
        return
    left = iter(range(times))
    meanwhile(lambda: next(left, None) is None)
