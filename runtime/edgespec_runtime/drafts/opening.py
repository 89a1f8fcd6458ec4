"""Opens a bundle's own draft for one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import STAND_ALONE
from edgespec.sampling import Sampler
from edgespec.sizing import Policy
from edgespec_runtime.drafts import feature, vlm
from edgespec_runtime.drafts.ahead import AheadDraft
from edgespec_runtime.drafts.base import Drafter
from edgespec_runtime.drafts.coupling import Coupling
from edgespec_runtime.drafts.growing import Chain
from edgespec_runtime.engines.base import Graph, StepGraph, StepSession
from edgespec_runtime.inputs import VisualInputs, splice, spliced_length
from edgespec_runtime.prompt import Prompt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DraftModel:
    """The draft's part of a loaded bundle, shared by all requests."""

    step: StepGraph
    chain: StepGraph | None
    table: Floats
    graphs: Mapping[str, Graph]
    visual: Mapping[str, Any]
    """The manifest's entry of its visual tokens."""
    ids: npt.NDArray[np.int64] | None = None
    """Target ids of the tokens it may propose; None: all."""

    @property
    def variant(self) -> str:
        return str(self.step.spec.meta["variant"])

    @property
    def wants_features(self) -> bool:
        """Whether it feeds on the target's hidden states."""
        return self.variant not in STAND_ALONE

    @property
    def chain_steps(self) -> int:
        """Levels of one call of the chain graph, 0 without one."""
        return int(self.chain.spec.meta["steps"]) if self.chain else 0

    def prompt_length(self, prompt: Prompt) -> int:
        """Rows of the prompt in the draft's cache."""
        per_image = int(self.visual["draft_visual_tokens"])
        return spliced_length(prompt.ids, prompt.image_spans, per_image)

    def open(
        self,
        prompt: Prompt,
        visual: VisualInputs,
        policy: Policy,
        budget: int,
        sampler: Sampler | None = None,
        *,
        ahead: bool = False,
    ) -> Drafter:
        """A drafter for one request that may emit ``budget`` tokens; with ``sampler``, the
        request's, it is coupled to what the target draws. With ``ahead`` a stand-alone draft goes
        on drafting while it waits for a target that runs elsewhere."""
        length, steps = self.prompt_length(prompt), self.chain_steps
        segments = -(-policy.levels // steps) if steps else 0
        drafted = max(policy.max_drafted, segments * steps)
        # What was grown ahead and what it is gone on with may be a round's each.
        capacity = length + budget + (2 * drafted if ahead else drafted) + 1
        coupling = None
        if sampler is not None:
            coupling = Coupling(sampler.noise, sampler.params.temperature, self.ids)
        drafter = self.drafter(*self.sessions(capacity), prompt, visual, coupling)
        return AheadDraft(drafter) if ahead and isinstance(drafter, vlm.VlmDraft) else drafter

    def sessions(self, capacity: int) -> tuple[StepSession, Chain | None]:
        """A fresh cache of ``capacity`` rows, as its step graph and its chain graph hold it."""
        outputs = feature.OUTPUTS if self.wants_features else vlm.OUTPUTS
        session = self.step.open(capacity, outputs)
        if self.chain is None:
            return session, None
        return session, Chain(self.chain.open(0, outputs, session.cache), self.chain_steps)

    def drafter(
        self,
        session: StepSession,
        chain: Chain | None,
        prompt: Prompt,
        visual: VisualInputs,
        coupling: Coupling | None = None,
    ) -> Drafter:
        """A drafter over ``sessions``, whose cache holds nothing that is not to be built on."""
        limit = int(self.step.spec.meta["max_positions"])
        if self.wants_features:
            features = self._prompt(prompt, visual)
            return feature.FeatureDraft(session, features, limit, chain, coupling)
        table = self.table
        return vlm.VlmDraft(
            session,
            table,
            lambda: splice(prompt.ids, prompt.image_spans, table, visual.draft),
            limit,
            chain,
            coupling,
        )

    def _prompt(self, prompt: Prompt, visual: VisualInputs) -> feature.FeaturePrompt:
        return feature.FeaturePrompt(
            prompt.ids,
            prompt.image_spans,
            self.table,
            str(self.visual["positions"]),
            lambda hidden, question: self.image_rows(visual, hidden, question),
            self._encode,
        )

    def _encode(self, features: Floats) -> Floats:
        encoder = self.graphs.get("draft_features")
        return encoder.run({"features": features})["hidden"] if encoder else features

    def image_rows(
        self, visual: VisualInputs, hidden: Floats, question: Floats
    ) -> feature.ImageRows:
        """A feature-level draft's image runs from the target's states [N, P, H] at the image rows
        and their mean [1, H] over the question."""
        embeds = visual.target
        assert embeds is not None
        direct = bool(self.step.spec.meta["direct_images"])
        if not direct:
            embeds = self.graphs["draft_projector"].run({"image_embeds": embeds})["draft_rows"]
        compressor = self.graphs.get("compressor")
        offsets = None
        if compressor is not None:
            gate = {"question": question} if "question" in compressor.inputs else {}
            found = compressor.run({"image_embeds": embeds, **gate})
            embeds, offsets = found["compressed"], found.get("offset")
            if not direct:  # a compressor without weights shortens both alike
                hidden = compressor.run({"image_embeds": hidden})["compressed"]
        return feature.ImageRows(embeds, np.zeros_like(embeds) if direct else hidden, offsets)
