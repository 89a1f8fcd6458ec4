"""Feature-level drafts in torch: the originals of the exported graphs, and what ``distill`` trains.

Convention of the whole EAGLE family: draft row i holds the embedding of token i + 1 and the
target's feature of token i, sits at position i, and predicts token i + 2. Parameter names are those
of the published checkpoints (facts in docs/heads.md).
"""

from __future__ import annotations

import torch
from torch import nn

from edgespec_export.heads.compressors import CrossAttention, build_compressor
from edgespec_export.heads.geometry import HeadGeometry
from edgespec_export.heads.layer import Eagle3Layer, Layer, Memory, RMSNorm


class Head(nn.Module):
    """What trainer, parity and evaluation ask of a feature-level draft.

    ``embed_tokens`` and, unless the head has its own, the output head are the target's, frozen.
    """

    geometry: HeadGeometry

    def __init__(self, geometry: HeadGeometry, embedding: torch.Tensor, head: torch.Tensor) -> None:
        """``embedding`` [V, H] and ``head`` [V, H] are the target's tables."""
        super().__init__()
        self.geometry = geometry
        rows, width = embedding.shape
        # Given its weight it draws nothing, so that what is built next depends on the seed alone.
        self.embed_tokens = nn.Embedding(rows, width, _weight=embedding, _freeze=True)
        self.register_buffer("target_head", head, persistent=False)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Target features [..., F] -> the hidden state that rows are made of [..., H]."""
        return features

    def rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Layer inputs of text rows; ``offset`` [H] is ViSpec's global vector."""
        raise NotImplementedError

    def image_rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, question: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One image run ([P, H] each) -> its layer inputs [P', ...] and the new global vector."""
        return self.rows(embeds[None], hidden[None])[0], None

    def layer(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        memory: Memory | None = None,
    ) -> tuple[torch.Tensor, Memory]:
        """One pass of the layer (see ``layer.Layer.forward``)."""
        raise NotImplementedError

    def feedback(self, out: torch.Tensor) -> torch.Tensor:
        """Layer outputs -> the hidden state that stands in for the target's feature."""
        return out

    def logits(self, out: torch.Tensor) -> torch.Tensor:
        """Layer outputs [..., H] -> logits over the draft's vocabulary."""
        return out @ self.target_head.T  # type: ignore[operator]


class EagleHead(Head):
    """EAGLE-1/2, EagleVLM, MSD, SpecVLM (sections 2, 5 and 7 of the facts)."""

    def __init__(self, geometry: HeadGeometry, embedding: torch.Tensor, head: torch.Tensor) -> None:
        super().__init__(geometry, embedding, head)
        text = geometry.text
        self.fc = nn.Linear(2 * text.hidden, text.hidden, bias=geometry.fc_bias)
        self.layers = nn.ModuleList([Layer(text, input_norm=geometry.input_norm)])
        if geometry.compression is not None:
            self.compressor = build_compressor(geometry.compression, text.hidden, text.heads)

    def rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        fused: torch.Tensor = self.fc(torch.cat([embeds, hidden], -1))
        return fused

    def image_rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, question: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.geometry.direct:
            return super().image_rows(embeds, hidden, question)
        if self.geometry.compression is None:
            return embeds, None
        return self.compressor(embeds, question), None

    def layer(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        memory: Memory | None = None,
    ) -> tuple[torch.Tensor, Memory]:
        result: tuple[torch.Tensor, Memory] = self.layers[0](x, positions, mask, memory)
        return result


class ViSpecHead(EagleHead):
    """ViSpec: an adaptor makes one token and one global vector of an image (section 4)."""

    def __init__(self, geometry: HeadGeometry, embedding: torch.Tensor, head: torch.Tensor) -> None:
        super().__init__(geometry, embedding, head)
        text = geometry.text
        self.imadpt = CrossAttention(geometry.queries, text.hidden, text.heads, bias=text.qkv_bias)
        self.img_fc = nn.Linear(2 * text.hidden, text.hidden, bias=geometry.fc_bias)
        with torch.no_grad():  # the identity on the hidden state, until trained
            self.img_fc.weight.copy_(torch.eye(text.hidden, 2 * text.hidden))
            if geometry.fc_bias:
                self.img_fc.bias.zero_()

    def rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        given = torch.zeros_like(hidden) if offset is None else offset.expand_as(hidden)
        return super().rows(embeds, self.img_fc(torch.cat([hidden, given], -1)))

    def image_rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, question: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = self.imadpt(embeds)
        return out[:-1], out[-1]


class Eagle3Head(Head):
    """EAGLE-3 with the flags of its SpecForge and speculators relatives (section 3)."""

    def __init__(self, geometry: HeadGeometry, embedding: torch.Tensor, head: torch.Tensor) -> None:
        super().__init__(geometry, embedding, head)
        text, size = geometry.text, geometry.feature_size
        self.fc = nn.Linear(size, text.hidden, bias=geometry.fc_bias)
        self.midlayer = Eagle3Layer(text, norm_before_residual=geometry.norm_before_residual)
        self.norm = RMSNorm(text.hidden, text.eps)
        self.lm_head = nn.Linear(text.hidden, geometry.draft_vocab or text.vocab, bias=False)
        if geometry.draft_vocab:  # target id = row + d2t[row]; the identity, until set
            self.register_buffer("d2t", torch.zeros(geometry.draft_vocab, dtype=torch.int64))
        if geometry.norm_before_fc:
            self.input_norm = RMSNorm(size, text.eps)
        if geometry.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(size // 3, text.eps) for _ in range(3))

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        if self.geometry.norm_before_fc:
            features = self.input_norm(features)
        if self.geometry.fc_norm:
            parts = features.chunk(3, -1)
            features = torch.cat([n(p) for n, p in zip(self.fc_norm, parts, strict=True)], -1)
        hidden: torch.Tensor = self.fc(features)
        return hidden

    def rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.cat([self.midlayer.input_layernorm(embeds), hidden], -1)

    def layer(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        memory: Memory | None = None,
    ) -> tuple[torch.Tensor, Memory]:
        result: tuple[torch.Tensor, Memory] = self.midlayer(x, positions, mask, memory)
        return result

    def feedback(self, out: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(out) if self.geometry.norm_output else out
        return normed

    def logits(self, out: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.lm_head(self.norm(out))
        return values


def build_head(geometry: HeadGeometry, embedding: torch.Tensor, head: torch.Tensor) -> Head:
    """An untrained head over the target's tables [V, H]."""
    kinds = {"vispec": ViSpecHead, "eagle3": Eagle3Head}
    return kinds.get(geometry.variant, EagleHead)(geometry, embedding, head)
