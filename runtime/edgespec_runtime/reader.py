"""How a bundle reads what is asked: prompts to token ids, pictures to visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgespec.bundle import Bundle
from edgespec_runtime.engines import Graph
from edgespec_runtime.inputs import VisualInputs
from edgespec_runtime.loading import processors_of
from edgespec_runtime.prompt import Asked, ImageMark, Prompt, build_prompt
from edgespec_runtime.template import ChatTemplate
from edgespec_runtime.tokenizer import Tokenizer
from edgespec_runtime.vision import ImageProcessor, preprocess

if TYPE_CHECKING:
    from edgespec_runtime.images import ImageSource


@dataclass(frozen=True)
class Reader:
    """A bundle's tokenizer, chat template and image processors."""

    text: Mapping[str, Any]
    """The manifest's."""
    tokenizer: Tokenizer
    template: ChatTemplate
    processor: ImageProcessor | None
    """None where the target sees no pictures."""
    draft_processor: ImageProcessor | None

    @classmethod
    def of(cls, bundle: Bundle) -> Reader:
        """Raises BundleError for a file that is missing."""
        text = bundle.manifest.text
        tokenizer = Tokenizer(bundle.file("tokenizer.json"), special_tokens=text["special_tokens"])
        source = bundle.file("chat_template.jinja").read_text(encoding="utf-8")
        return cls(text, tokenizer, ChatTemplate.from_source(source), *processors_of(bundle))

    def prompt(self, asked: Asked, pictures: int) -> Prompt:
        """``asked`` with so many ``pictures``, as the target reads it. Raises PromptError."""
        text = self.text
        return build_prompt(
            asked,
            pictures,
            self.template,
            self.tokenizer,
            image=ImageMark(text["image_token"], text["image_token_id"], text["visual_tokens"])
            if "image_token" in text
            else None,
            adds_special_tokens=text.get("adds_special_tokens"),
            max_context=text["max_positions"] - 1,
            vocabulary=text["vocab_size"],
        )

    def visual(
        self, pictures: Sequence[ImageSource], graphs: dict[str, Graph], *, drafted: bool
    ) -> VisualInputs:
        """What ``graphs`` make of ``pictures``; ``drafted``: whether the draft looks at them, too.
        Raises ImageError."""
        if not pictures or not {"vision", "draft_vision"} & set(graphs):
            return VisualInputs(graphs, None, None)  # nobody here looks at them
        assert self.processor is not None and self.draft_processor is not None
        pixels = preprocess(pictures, self.processor)
        own_tower = drafted and "draft_vision" in graphs
        draft_pixels = preprocess(pictures, self.draft_processor) if own_tower else None
        return VisualInputs(graphs, pixels, draft_pixels)
