"""Both sides without their checks, for the history checker to find out.

    python -m tests.support.unchecked serve ...    # a server that takes whatever comes

The server verifies every request on the state that it happens to have; the client commits every
reply that it can read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


def strip_server() -> None:
    """For the rest of this process, before the server's modules are imported."""
    from edgespec_runtime.wire import state

    class Unchecked(state.SessionState):
        def admit(self, claim: state.Claim) -> bytes | None:
            self.round = claim.round - 1
            return None

    def anything(known: object, epoch: int, digest: bytes) -> bytes | None:
        return None

    state.SessionState = Unchecked  # type: ignore[misc]
    state.opening = anything


@contextmanager
def stripped_client() -> Iterator[None]:
    """Clients of this process, meanwhile."""
    from edgespec_runtime.remote import checks

    def fine(*_: object) -> None:
        return None

    with patch.object(checks, "_same", fine), patch.object(checks, "_check_prefix", fine):
        yield


if __name__ == "__main__":
    strip_server()
    from edgespec.cli import main

    sys.exit(main())
