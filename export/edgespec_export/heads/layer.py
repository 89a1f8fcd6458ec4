"""The one decoder layer of a feature-level draft, in torch, with the attention a rollout needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from edgespec_export.blocks import rotary_tables
from edgespec_export.geometry import TextGeometry

Rows = torch.Tensor


@dataclass
class Memory:
    """Keys and values that later rows attend to.

    ``keys`` and ``values`` [B, KV, N, D] are the committed rows. A rollout appends to ``own`` the
    (key, value) [B, KV, M, D] that each of its M rows left at every step: row m sees its own only
    (the diagonal of EAGLE-3's training-time test).
    """

    keys: torch.Tensor
    values: torch.Tensor
    own: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; ``width`` is its input's."""

    def __init__(self, text: TextGeometry, width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = text.heads, text.kv_heads, text.head_dim
        inner, outer = text.heads * text.head_dim, text.kv_heads * text.head_dim
        self.q_proj = nn.Linear(width, inner, bias=text.qkv_bias)
        self.k_proj = nn.Linear(width, outer, bias=text.qkv_bias)
        self.v_proj = nn.Linear(width, outer, bias=text.qkv_bias)
        self.o_proj = nn.Linear(inner, text.hidden, bias=text.o_bias)
        cos, sin = rotary_tables(text.rope, text.head_dim, text.max_positions)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)

    def project(
        self, x: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, M, width] -> rotated queries [B, heads, M, D], keys and values [B, KV, M, D]."""
        q, k, v = (
            self._split(layer(x), count)
            for layer, count in (
                (self.q_proj, self.heads),
                (self.k_proj, self.kv_heads),
                (self.v_proj, self.kv_heads),
            )
        )
        return self._rotate(q, positions), self._rotate(k, positions), v

    def forward(self, q: torch.Tensor, memory: Memory, mask: torch.Tensor | None) -> torch.Tensor:
        """Attends from ``q`` [B, heads, M, D] to ``memory`` under ``mask`` [B, 1, M, N] bool."""
        group = self.heads // self.kv_heads
        keys, values = (t.repeat_interleave(group, 1) for t in (memory.keys, memory.values))
        if not memory.own:
            mixed = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        else:
            scores = q @ keys.transpose(-1, -2)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            own = [
                (k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
                for k, v in memory.own
            ]
            diagonal = [(q * k).sum(-1, keepdim=True) for k, _ in own]
            weights = torch.softmax(torch.cat([scores, *diagonal], -1) * self.size**-0.5, -1)
            count = scores.shape[-1]
            mixed = weights[..., :count] @ values
            for step, (_, v) in enumerate(own):
                mixed = mixed + weights[..., count + step, None] * v
        merged = mixed.transpose(1, 2).flatten(2)
        projected: torch.Tensor = self.o_proj(merged)
        return projected

    def _split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(*x.shape[:2], heads, self.size).transpose(1, 2)

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = (t[positions].unsqueeze(1) for t in (self.cos, self.sin))  # type: ignore[index]
        left, right = x.chunk(2, -1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, text: TextGeometry) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(text.hidden, text.intermediate, bias=text.mlp_bias)
        self.up_proj = nn.Linear(text.hidden, text.intermediate, bias=text.mlp_bias)
        self.down_proj = nn.Linear(text.intermediate, text.hidden, bias=text.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.silu(self.gate_proj(x)) * self.up_proj(x)
        down: torch.Tensor = self.down_proj(inner)
        return down


class Layer(nn.Module):
    """EAGLE's layer: a Llama layer whose input norm is there only for EagleVLM and SpecVLM."""

    def __init__(self, text: TextGeometry, *, input_norm: bool) -> None:
        super().__init__()
        self.self_attn = Attention(text, text.hidden)
        self.mlp = Mlp(text)
        if input_norm:
            self.input_layernorm = RMSNorm(text.hidden, text.eps)
        self.post_attention_layernorm = RMSNorm(text.hidden, text.eps)
        self.input_norm = input_norm

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        memory: Memory | None = None,
    ) -> tuple[torch.Tensor, Memory]:
        """[B, M, H] -> [B, M, H]. Without ``memory`` rows attend to each other under ``mask``
        [B, 1, M, M]; with it they attend to it and to their own rollout steps."""
        normed = self.input_layernorm(x) if self.input_norm else x
        q, k, v = self.self_attn.project(normed, positions)
        memory = remember(memory, k, v)
        x = x + self.self_attn(q, memory, mask)
        return x + self.mlp(self.post_attention_layernorm(x)), memory


class Eagle3Layer(nn.Module):
    """EAGLE-3's layer over [embedding; feature] (2 H wide inputs, residual on the feature)."""

    def __init__(self, text: TextGeometry, *, norm_before_residual: bool) -> None:
        super().__init__()
        self.self_attn = Attention(text, 2 * text.hidden)
        self.mlp = Mlp(text)
        self.hidden_norm = RMSNorm(text.hidden, text.eps)
        self.input_layernorm = RMSNorm(text.hidden, text.eps)
        self.post_attention_layernorm = RMSNorm(text.hidden, text.eps)
        self.norm_before_residual = norm_before_residual

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        memory: Memory | None = None,
    ) -> tuple[torch.Tensor, Memory]:
        """``x`` [B, M, 2 H] holds the normed embedding and the feature; as ``Layer.forward``."""
        embeds, hidden = x.chunk(2, -1)
        normed = self.hidden_norm(hidden)
        q, k, v = self.self_attn.project(torch.cat([embeds, normed], -1), positions)
        memory = remember(memory, k, v)
        residual = normed if self.norm_before_residual else hidden
        x = residual + self.self_attn(q, memory, mask)
        return x + self.mlp(self.post_attention_layernorm(x)), memory


def remember(memory: Memory | None, keys: torch.Tensor, values: torch.Tensor) -> Memory:
    """The first rows become the memory; later ones are steps of their own rows."""
    if memory is None:
        return Memory(keys, values)
    return Memory(memory.keys, memory.values, [*memory.own, (keys, values)])
