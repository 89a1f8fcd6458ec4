"""Feature-level drafts said once more in numpy: one row at a time, in double precision, from the
published formulas (docs/heads.md). Shares no code with ``edgespec_export.heads``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Doubles = npt.NDArray[np.float64]
Weights = Mapping[str, Doubles]


@dataclass(frozen=True)
class Shape:
    """What the formulas need to know besides the weights."""

    heads: int
    kv_heads: int
    eps: float
    theta: float


def weights_of(module: torch.nn.Module) -> dict[str, Doubles]:
    """A module's parameters by their published names."""
    return {k: v.detach().double().numpy() for k, v in module.state_dict().items()}


def linear(w: Weights, name: str, x: Doubles) -> Doubles:
    bias = w.get(f"{name}.bias")
    return w[f"{name}.weight"] @ x + (0.0 if bias is None else bias)


def rms(w: Weights, name: str, x: Doubles, eps: float) -> Doubles:
    normed: Doubles = w[f"{name}.weight"] * x / np.sqrt((x**2).mean() + eps)
    return normed


def softmax(x: Doubles) -> Doubles:
    powers = np.exp(x - x.max())
    weights: Doubles = powers / powers.sum()
    return weights


def turn(x: Doubles, position: int, theta: float) -> Doubles:
    """Rotary positions as what they are: a head's halves are real and imaginary parts, turned."""
    half = len(x) // 2
    angles = position * theta ** (-np.arange(half) / half)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag])


def attend(
    w: Weights, prefix: str, rows: Sequence[Doubles], at: Sequence[int], s: Shape
) -> Doubles:
    """What causal self-attention gives the last of ``rows``, which stand at positions ``at``."""
    size = len(linear(w, f"{prefix}.q_proj", rows[-1])) // s.heads
    query = linear(w, f"{prefix}.q_proj", rows[-1]).reshape(s.heads, size)
    keys = [linear(w, f"{prefix}.k_proj", x).reshape(s.kv_heads, size) for x in rows]
    values = [linear(w, f"{prefix}.v_proj", x).reshape(s.kv_heads, size) for x in rows]
    mixed = []
    for head in range(s.heads):
        kv = head * s.kv_heads // s.heads
        q = turn(query[head], at[-1], s.theta)
        scores = [q @ turn(k[kv], p, s.theta) for k, p in zip(keys, at, strict=True)]
        shares = softmax(np.array(scores) / np.sqrt(size))
        mixed.append(sum(share * v[kv] for share, v in zip(shares, values, strict=True)))
    return linear(w, f"{prefix}.o_proj", np.concatenate(mixed))


def swiglu(w: Weights, prefix: str, x: Doubles) -> Doubles:
    gate = linear(w, f"{prefix}.gate_proj", x)
    silu = gate / (1 + np.exp(-gate))
    return linear(w, f"{prefix}.down_proj", silu * linear(w, f"{prefix}.up_proj", x))


def eagle_layer(
    w: Weights, rows: Sequence[Doubles], at: Sequence[int], s: Shape, *, input_norm: bool
) -> list[Doubles]:
    """The layer of EAGLE-1/2 and its kin; EagleVLM and SpecVLM norm its input."""
    p = "layers.0"
    fed = [rms(w, f"{p}.input_layernorm", x, s.eps) if input_norm else x for x in rows]
    outs = []
    for i, x in enumerate(rows):
        y = x + attend(w, f"{p}.self_attn", fed[: i + 1], at[: i + 1], s)
        outs.append(y + swiglu(w, f"{p}.mlp", rms(w, f"{p}.post_attention_layernorm", y, s.eps)))
    return outs


def eagle3_layer(
    w: Weights,
    embeds: Sequence[Doubles],
    hidden: Sequence[Doubles],
    at: Sequence[int],
    s: Shape,
    *,
    norm_before_residual: bool,
) -> list[Doubles]:
    """EAGLE-3's: attention over [normed embedding; normed feature], residual on the feature."""
    p, outs = "midlayer", []
    normed = [rms(w, f"{p}.hidden_norm", h, s.eps) for h in hidden]
    fed = [
        np.concatenate([rms(w, f"{p}.input_layernorm", e, s.eps), h])
        for e, h in zip(embeds, normed, strict=True)
    ]
    for i, h in enumerate(normed if norm_before_residual else hidden):
        y = h + attend(w, f"{p}.self_attn", fed[: i + 1], at[: i + 1], s)
        outs.append(y + swiglu(w, f"{p}.mlp", rms(w, f"{p}.post_attention_layernorm", y, s.eps)))
    return outs


def adapt(w: Weights, prefix: str, tokens: Sequence[Doubles]) -> list[Doubles]:
    """Learned queries over one image's tokens (ViSpec's adaptor, SpecVLM's resampler)."""
    queries = w[f"{prefix}.q"]  # [queries, heads, size]
    keys = [linear(w, f"{prefix}.k_proj", x).reshape(queries.shape[1:]) for x in tokens]
    values = [linear(w, f"{prefix}.v_proj", x).reshape(queries.shape[1:]) for x in tokens]
    outs = []
    for query in queries:
        mixed = []
        for head, q in enumerate(query):
            shares = softmax(np.array([q @ k[head] for k in keys]) / np.sqrt(len(q)))
            mixed.append(sum(share * v[head] for share, v in zip(shares, values, strict=True)))
        outs.append(linear(w, f"{prefix}.o_proj", np.concatenate(mixed)))
    return outs


def eagle_rows(
    w: Weights,
    variant: str,
    embeds: Sequence[Doubles],
    features: Sequence[Doubles],
    image: Sequence[int],
) -> tuple[list[Doubles], list[int]]:
    """Layer inputs and positions of a prompt of which token i belongs to picture ``image[i]``
    (0: text): row i joins token i + 1 to the feature of token i."""
    rows: list[Doubles] = []
    at: list[int] = []
    summary = np.zeros_like(embeds[0])
    picture: list[Doubles] = []
    for i, h in enumerate(features[: len(embeds) - 1]):
        token = embeds[i + 1]
        if image[i + 1] and variant == "msd":
            rows, at = [*rows, token], [*at, i]
        elif image[i + 1] and variant == "vispec":
            picture.append(token)
            if i + 2 == len(embeds) or image[i + 2] != image[i + 1]:
                *seen, summary = adapt(w, "imadpt", picture)
                rows, at = [*rows, *seen], [*at, *range(i + 1 - len(seen), i + 1)]
                picture = []
        else:
            if variant == "vispec":
                h = linear(w, "img_fc", np.concatenate([h, summary]))
            rows, at = [*rows, linear(w, "fc", np.concatenate([token, h]))], [*at, i]
    return rows, at
