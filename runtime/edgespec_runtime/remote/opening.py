"""A model's way to its servers, and a verifier over it for every request."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.bundle import Bundle
from edgespec_runtime.remote.checks import Needs
from edgespec_runtime.remote.observer import Observer
from edgespec_runtime.remote.pictures import Shown, as_embeddings, as_file
from edgespec_runtime.remote.servers import Servers
from edgespec_runtime.remote.session import Asked, wire_ids
from edgespec_runtime.remote.settings import RemoteSettings
from edgespec_runtime.remote.verifier import RemoteVerifier
from edgespec_runtime.verifiers.opening import Question
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.fingerprints import fingerprints

_FEATURES = {"float16": pb.FLOAT16, "int8": pb.INT8}


class RemoteTarget:
    """The target of a bundle on the servers of ``settings``; shared by requests."""

    def __init__(self, bundle: Bundle, settings: RemoteSettings, vocab: int) -> None:
        self.settings = settings
        self.servers = Servers(settings)
        self._vocab = vocab
        self._fingerprints = fingerprints(bundle)
        self._stop_ids: Sequence[int] = bundle.manifest.generation["eos_token_ids"]

    def open(self, question: Question, observer: Observer | None = None) -> RemoteVerifier:
        """A verifier for one request; nothing is sent before ``begin``. Raises ImageError for what
        is no usable picture."""
        prompt, params = question.prompt, question.sampler.params
        features = _FEATURES[self.settings.features] if question.features else pb.NO_FEATURES
        asked = Asked(
            fingerprints=self._fingerprints,
            prompt_ids=wire_ids(prompt),
            context=len(prompt.ids),
            shown=self._shown(question),
            sampling=params,
            max_new_tokens=question.max_new_tokens,
            max_nodes=question.max_nodes,
            features=features,
            # Greedy, they cost the server nothing; else it would have to draw at every node.
            named=question.sampler.plain_argmax,
        )
        needs = Needs(
            fingerprints=self._fingerprints,
            vocab=self._vocab,
            context=len(prompt.ids) + question.max_new_tokens,
            nodes=question.max_nodes,
            depth=question.levels if question.max_nodes else 0,
            images=len(asked.shown),
            features=question.features,
            embeddings=self.settings.embeddings and bool(asked.shown),
        )
        return RemoteVerifier(self.servers, asked, needs, self._stop_ids, observer)

    def close(self) -> None:
        """Waits a moment for sessions to be closed, then ends the connections."""
        self.servers.close()

    def _shown(self, question: Question) -> tuple[Shown, ...]:
        if not self.settings.embeddings:
            return tuple(as_file(picture) for picture in question.pictures)
        visual = question.visual.target
        return () if visual is None else tuple(as_embeddings(rows) for rows in visual)
