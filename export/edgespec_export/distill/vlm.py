"""A stand-alone small LLaVA in training: logit distillation on its own view of the picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from edgespec.errors import CheckpointError
from edgespec_export.compression import Compression
from edgespec_export.distill.settings import Losses
from edgespec_export.distill.student import list_mle, soft_cross_entropy
from edgespec_export.distill.teacher import Sample
from edgespec_export.heads.compressors import build_compressor


class VlmStudent(nn.Module):
    """The draft sees the same text and its own, possibly compressed, visual tokens; its tower is
    frozen, so that a tower shared with the target stays the target's bit for bit."""

    def __init__(self, source: Path, compression: Compression | None, losses: Losses) -> None:
        super().__init__()
        import transformers

        hf: Any = transformers  # its annotations are not complete
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecations in the checkpoint's own files
                self.model: Any = hf.LlavaForConditionalGeneration.from_pretrained(
                    source, dtype=torch.float32
                )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"transformers cannot load draft '{source}': {error}") from None
        tower = getattr(self.model, "model", self.model).vision_tower
        tower.requires_grad_(False)
        text = self.model.config.text_config
        self.compressor = (
            build_compressor(compression, text.hidden_size, text.num_attention_heads)
            if compression
            else None
        )
        self.losses = losses

    def forward(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, figures by name) of a batch."""
        logits = torch.cat(self._logits(samples))
        target = torch.cat([sample.logits for sample in samples])
        parts = {"logit": soft_cross_entropy(logits, target)}
        if self.losses.rank:
            parts["rank"] = list_mle(logits, target)
        loss = torch.stack([getattr(self.losses, n) * v for n, v in parts.items()]).sum()
        agree = (logits.argmax(-1) == target.argmax(-1)).float().mean()
        return loss, {"agree": agree, **{n: v.detach() for n, v in parts.items()}}

    @torch.no_grad()
    def matches(self, samples: Sequence[Sample], depth: int) -> list[torch.Tensor]:
        """As ``HeadStudent.matches``: it reads true tokens only, so one pass tells every depth."""
        found = []
        for logits, sample in zip(self._logits(samples), samples, strict=True):
            agree = (logits.argmax(-1) == sample.ids[sample.prompt + 1 :]).cpu()
            padded = torch.cat([agree, torch.zeros(depth, dtype=torch.bool)])
            found.append(padded.unfold(0, depth, 1)[: len(agree)])
        return found

    def _logits(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Per sample [A, V]: what the draft says after each answer token but the last."""
        embeds = [self._embeds(sample) for sample in samples]
        lengths = [len(rows) for rows in embeds]
        padded = pad_sequence(embeds, batch_first=True)
        mask = torch.tensor(
            [[1] * n + [0] * (padded.shape[1] - n) for n in lengths], device=padded.device
        )
        decoder = self.model.get_decoder()
        states = decoder(inputs_embeds=padded, attention_mask=mask, use_cache=False)[0]
        head = self.model.get_output_embeddings()
        logits = head(torch.cat([
            states[i, n - 1 - sample.answers : n - 1]
            for i, (n, sample) in enumerate(zip(lengths, samples, strict=True))
        ]))  # fmt: skip
        return list(torch.split(logits, [sample.answers for sample in samples]))

    def _embeds(self, sample: Sample) -> torch.Tensor:
        table = self.model.get_input_embeddings()
        pieces: list[torch.Tensor] = []
        at = 0
        visual = self._visual(sample)
        for tokens, (start, end) in zip(visual, sample.spans, strict=True):
            pieces += [table(sample.ids[at:start]), tokens]
            at = end
        return torch.cat([*pieces, table(sample.ids[at:])])

    def _visual(self, sample: Sample) -> list[torch.Tensor]:
        if sample.pixels is None or not sample.spans:
            return []
        found = self.model.get_image_features(pixel_values=sample.pixels)
        found = getattr(found, "pooler_output", found)
        none = torch.zeros(0)
        return [self.compressor(t, none) if self.compressor else t for t in found]
