"""A target that is waited for: it answers once it was asked often enough whether it has."""

from __future__ import annotations

from collections.abc import Callable

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
        left = self._waits()
        if meanwhile is not None and left is not None:

            def answered() -> bool:
                nonlocal left
                assert left is not None
                left -= 1
                return left < 0

            meanwhile(answered)
        return self._inner.verify(tree)
