"""Which drafters a request asked for, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from edgespec.errors import ConfigError
from edgespec_runtime.drafts.base import Drafter
from edgespec_runtime.drafts.cascade import CascadeDraft
from edgespec_runtime.drafts.ngram import NgramDraft

NAMES = ("auto", "none", "model", "ngram", "model+ngram")


@dataclass(frozen=True)
class DraftChoice:
    """The parts of a request's drafter; neither is plain decoding."""

    model: bool
    """The bundle's draft."""
    ngram: bool
    """Look-up in the text so far; needs nothing from the bundle."""

    @property
    def ngram_alone(self) -> bool:
        """Whether nothing but look-up drafts."""
        return self.ngram and not self.model

    @property
    def name(self) -> str:
        """As ``Model.stream`` spells it."""
        parts = ["model"] * self.model + ["ngram"] * self.ngram
        return "+".join(parts) or "none"

    def complete(
        self, drafter: Drafter, prompt: Sequence[int], image_token_id: int | None
    ) -> Drafter:
        """``drafter``, the model's part or none, with the n-grams that were asked for."""
        if not self.ngram:
            return drafter
        ngram = NgramDraft(prompt, image_token_id=image_token_id)
        return CascadeDraft(drafter, ngram) if self.model else ngram


def choose_draft(name: str, *, has_model: bool, bundle: object, left_out: str = "") -> DraftChoice:
    """The parts that ``name`` stands for in a bundle with or without a draft. Raises ConfigError
    for an unknown name and for a draft that ``bundle`` (its path, for the message) lacks, or that
    was not loaded for the reason ``left_out``."""
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown draft '{name}'; {hint}there are: {', '.join(NAMES)}")
    if name == "auto":
        return DraftChoice(has_model, False)
    parts = name.split("+")
    if "model" in parts and not has_model:
        if left_out:
            raise ConfigError(f"draft '{name}' was asked for, but {left_out}")
        raise ConfigError(
            f"bundle '{bundle}' holds no draft; export with --draft, or ask for 'ngram'"
        )
    return DraftChoice("model" in parts, "ngram" in parts)
