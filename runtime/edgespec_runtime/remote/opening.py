"""A model's way to its servers, and a verifier over it for every request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgespec.bundle import Bundle
from edgespec.errors import ConfigError
from edgespec.latency import Curve, DeviceProfile
from edgespec.sizing import Setting, Sizer
from edgespec_runtime.drafts import Drafter
from edgespec_runtime.remote.checks import Needs
from edgespec_runtime.remote.experience import RemoteExperience
from edgespec_runtime.remote.fallback import DEPTH, DraftText, Fallback, TargetHere, Writer
from edgespec_runtime.remote.link import Link, Mode
from edgespec_runtime.remote.modes import Modes
from edgespec_runtime.remote.observer import Observer
from edgespec_runtime.remote.pictures import Shown, as_embeddings, as_file
from edgespec_runtime.remote.routed import Outage, RoutedVerifier
from edgespec_runtime.remote.servers import Servers
from edgespec_runtime.remote.session import Asked, wire_ids
from edgespec_runtime.remote.settings import RemoteSettings
from edgespec_runtime.remote.verifier import RemoteVerifier
from edgespec_runtime.verifiers import LocalVerifier
from edgespec_runtime.verifiers.opening import Question
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.fingerprints import fingerprints

_FEATURES = {"float16": pb.FLOAT16, "int8": pb.INT8}


class RemoteTarget:
    """The target of a bundle on the servers of ``settings``; shared by requests."""

    def __init__(self, bundle: Bundle, settings: RemoteSettings, vocab: int) -> None:
        self.settings = settings
        self.servers = Servers(settings)
        self.experience = RemoteExperience(Link())
        """What requests teach about the way there."""
        self._outage = Outage()
        self._vocab = vocab
        self._fingerprints = fingerprints(bundle)
        self._stop_ids: Sequence[int] = bundle.manifest.generation["eos_token_ids"]

    def verify_curve(self, profile: DeviceProfile | None) -> Curve | None:
        """What a verification costs on the server: as it says itself, as it was profiled from
        here before it was asked, or None where neither was."""
        told = self.experience.link.curve
        measured = profile.remote.verify if profile and profile.remote else None
        return told or measured

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

    def route(
        self,
        question: Question,
        sizer: Sizer,
        setting: Setting,
        here: Callable[[], LocalVerifier],
        draft: Drafter,
    ) -> tuple[RoutedVerifier, Modes]:
        """A verifier for one request that goes where it is told, and ``sizer`` with the choice of
        where. ``here`` opens the target on this device, should it be wanted there; ``draft`` is the
        bundle's own. Raises ConfigError for a draft that is to go on alone and cannot."""
        remote = self.open(question, self.experience.link)
        fallback = self._fallback(question, here, draft)
        verifier = RoutedVerifier(remote, fallback, self._outage, self.settings.notice)
        pinned = None if self.settings.mode == "auto" else Mode(self.settings.mode)
        return verifier, Modes(sizer, setting, self.experience, verifier, pinned=pinned)

    def _fallback(
        self, question: Question, here: Callable[[], LocalVerifier], draft: Drafter
    ) -> Fallback | None:
        if self.settings.local == "none":
            return None
        if self.settings.local == "target":
            return TargetHere(here)
        if not isinstance(draft, Writer):
            raise ConfigError(
                "where no server answers the draft was to go on alone; that takes a stand-alone "
                "draft in the bundle, and drafting with it (--draft auto, model or model+ngram)"
            )
        return DraftText(draft, min(question.levels, DEPTH))

    def close(self) -> None:
        """Waits a moment for sessions to be closed, then ends the connections."""
        self.servers.close()

    def _shown(self, question: Question) -> tuple[Shown, ...]:
        if not self.settings.embeddings:
            return tuple(as_file(picture) for picture in question.pictures)
        visual = question.visual.target
        return () if visual is None else tuple(as_embeddings(rows) for rows in visual)
