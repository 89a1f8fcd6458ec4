"""The target on servers: settings, transport, and the verifier that asks for every round.

settings  where the servers are            transport  one call, its deadline, what failed
checks    of every reply                   failover   which server next, and when to give up
calls     what is asked of a server        session    what is committed
pictures  as they travel                   verifier   the contract of every verifier, over these
link      times as they are measured       outlook    tokens per millisecond, predicted
modes     hybrid or remote-only, round by round

Names are imported when they are first used: settings need nothing beyond the standard library, the
rest needs the packages of ``edgespec[remote]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgespec_runtime.remote.settings import RemoteSettings

if TYPE_CHECKING:
    from edgespec_runtime.remote.verifier import RemoteVerifier

__all__ = ["RemoteSettings", "RemoteVerifier"]


def __getattr__(name: str) -> Any:
    if name == "RemoteVerifier":
        from edgespec_runtime.remote.verifier import RemoteVerifier

        return RemoteVerifier
    raise AttributeError(f"module 'edgespec_runtime.remote' has no attribute '{name}'")
