"""What a request runs on: settled and checked before anything does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgespec.latency import DeviceProfile
from edgespec.sampling import Sampler
from edgespec.sizing import Policy, Setting
from edgespec.sizing.budgets import Budget
from edgespec.sizing.experience import Experience
from edgespec.sizing.feasible import Load
from edgespec_runtime.drafts import Drafter, NoDraft
from edgespec_runtime.drafts.choice import DraftChoice
from edgespec_runtime.drafts.opening import DraftModel
from edgespec_runtime.inputs import VisualInputs
from edgespec_runtime.prompt import Prompt
from edgespec_runtime.verifiers.opening import Question

if TYPE_CHECKING:
    from edgespec_runtime.images import ImageSource
    from edgespec_runtime.remote.opening import RemoteTarget


@dataclass(frozen=True, eq=False)
class Terms:
    """Of one request."""

    prompt: Prompt
    pictures: Sequence[ImageSource]
    visual: VisualInputs
    sampler: Sampler
    choice: DraftChoice
    draft: DraftModel | None
    """The bundle's own, if the request uses it."""
    policy: Policy
    budget: Budget
    load: Load
    coupled: bool
    """Whether the draft ranks by the noise that the target draws with."""

    def open_draft(self, *, ahead: bool) -> Drafter:
        """The model's part of the drafter; ``ahead``: whether it drafts on while it waits."""
        if self.draft is None:
            return NoDraft()
        return self.draft.open(
            self.prompt,
            self.visual,
            self.policy,
            self.load.new_tokens,
            self.sampler if self.coupled else None,
            ahead=ahead,
        )

    def question(self, *, exact: bool) -> Question:
        """What the target is asked; ``exact``: see ``LocalVerifier``."""
        return Question(
            prompt=self.prompt,
            pictures=self.pictures,
            visual=self.visual,
            sampler=self.sampler,
            max_new_tokens=self.load.new_tokens,
            max_nodes=self.policy.max_nodes,
            levels=self.policy.levels,
            features=self.draft is not None and self.draft.wants_features,
            exact=exact,
        )

    def setting(
        self,
        *,
        eos: Iterable[int],
        profile: DeviceProfile | None,
        remote: RemoteTarget | None,
        experience: Experience,
    ) -> Setting:
        """What a policy may know of the request."""
        return Setting(
            prompt_tokens=self.load.prompt_tokens,
            draft_prompt_tokens=self.load.draft_prompt_tokens,
            images=self.load.images,
            max_new_tokens=self.load.new_tokens,
            temperature=self.sampler.params.temperature,
            coupled=self.coupled,
            eos=frozenset(eos),
            chain_steps=self.draft.chain_steps if self.draft else 0,
            draft=self.choice.name,
            question=tuple(np.unique(self.prompt.ids).tolist()),
            profile=profile,
            remote=remote.verify_curve(profile) if remote else None,
            away_ms=remote.experience.link.network() if remote else 0.0,
            budget=self.budget,
            experience=experience,
        )


def load_of(prompt: Prompt, draft: DraftModel | None, new_tokens: int) -> Load:
    """What a request asks of the device; ``draft``: the bundle's own, if it uses that."""
    return Load(
        len(prompt.ids),
        len(prompt.image_spans),
        new_tokens,
        draft.prompt_length(prompt) if draft else 0,
    )
