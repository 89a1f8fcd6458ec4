"""A program on a device: draft here, have a server verify, and live with a server that is away.

    python examples/hybrid.py device.bundle 127.0.0.1:50051 cat.jpg "What is this?"

For a server on another machine `tls_ca` and `token` go into the settings (docs/hybrid.md).
"""

from __future__ import annotations

import sys
from contextlib import closing

from edgespec.errors import RemoteError
from edgespec_runtime import load
from edgespec_runtime.remote import RemoteSettings


def note(text: str) -> None:
    """Pauses, and changes of server."""
    print(f"[{text}]", file=sys.stderr)


def main(bundle: str, servers: str, image: str, question: str, patience_s: float = 10.0) -> int:
    settings = RemoteSettings(
        tuple(servers.split(",")),  # the preferred one first
        connect_s=patience_s,  # how long to go on trying before the first token
        patience_s=patience_s,  # and in the middle of a text
        notice=note,
    )
    # Weights are loaded and connections made once; answers may follow each other.
    with closing(load(bundle, remote=settings)) as model:
        answer = model.stream(image, question)
        try:
            for record in answer:
                print(record.text, end="", flush=True)
            print()
        except RemoteError as error:
            print()
            note(f"the text ends early: {error}")  # what was said until here stands
            return 1
        finally:
            answer.close()  # has the server forget the session, also where the loop was left
        remote = answer.remote or {}
        note(f"{answer.stats.tokens_per_s:.0f} tokens/s, verified by {remote['endpoint']}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]))
