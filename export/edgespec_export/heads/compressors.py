"""Visual compressors in torch: what a draft sees instead of all of an image's tokens.

Every one maps one image's tokens [P, H] to fewer [P', H]; the target's own tokens are never
touched. Sources: SpecVLM (arXiv 2509.11815, its section on the elastic compressor) and ViSpec
(arXiv 2509.15235). What the papers leave open is settled in docs/heads.md.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from edgespec.errors import ConfigError
from edgespec_export.compression import ELASTIC, Compression, kept_tokens, square_window


class CrossAttention(nn.Module):
    """Learned queries over one image's tokens: [P, H] -> [queries, H].

    ViSpec's adaptor and SpecVLM's resampler: one non-causal attention without positions, norms or
    a residual. Parameter names are ViSpec's.
    """

    def __init__(self, queries: int, hidden: int, heads: int, *, bias: bool = False) -> None:
        super().__init__()
        size = hidden // heads
        self.q = nn.Parameter(torch.randn(queries, heads, size) * size**-0.5)
        self.k_proj = nn.Linear(hidden, hidden, bias=bias)
        self.v_proj = nn.Linear(hidden, hidden, bias=bias)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, heads, size = self.q.shape
        keys, values = (
            layer(x).view(-1, heads, size).transpose(0, 1) for layer in (self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(self.q.transpose(0, 1), keys, values)
        out: torch.Tensor = self.o_proj(mixed.transpose(0, 1).reshape(queries, heads * size))
        return out


class Compressor(nn.Module):
    """[P, H] tokens (and the question's mean feature [H], which only a gate reads) -> [P', H]."""

    def forward(self, x: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Keep(Compressor):
    """Random or evenly spaced pruning."""

    def __init__(self, kind: str, ratio: int) -> None:
        super().__init__()
        self.kind, self.ratio = kind, ratio

    def forward(self, x: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        return x[kept_tokens(self.kind, len(x), self.ratio)]


class Pool(Compressor):
    """Averages: square windows of the patch grid where the ratio is a square, else runs of
    neighbours in raster order; windows at the edge average what they hold."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        side, grid = square_window(self.ratio, len(x)), math.isqrt(len(x))
        if side:
            image = x.T.reshape(1, -1, grid, grid)
            return functional.avg_pool2d(image, side, ceil_mode=True)[0].flatten(1).T
        return functional.avg_pool1d(x.T[None], self.ratio, ceil_mode=True)[0].T


class Convolve(Compressor):
    """A convolution along the raster order, kernel = stride = ratio, the tail padded with zeros.

    Starts as the average of its window.
    """

    def __init__(self, hidden: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.weight = nn.Parameter(torch.eye(hidden)[..., None].repeat(1, 1, ratio) / ratio)
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x.T, (0, -len(x) % self.ratio))
        return functional.conv1d(padded[None], self.weight, self.bias, stride=self.ratio)[0].T


class Resample(Compressor):
    """A simplified Q-Former: one cross-attention of learned queries."""

    def __init__(self, hidden: int, heads: int, queries: int) -> None:
        super().__init__()
        self.attention = CrossAttention(queries, hidden, heads)

    def forward(self, x: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x)
        return out


class TextOnly(Compressor):
    """Removes every image token."""

    def forward(self, x: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        return x[:0]


class Elastic(Compressor):
    """SpecVLM's elastic compressor over named branches.

    ``weighted``: softmax gate over branches of one ratio, summed. ``concat``: all branches, one
    after the other. ``select``: the gate's best branch; in training a Gumbel-Softmax draw with a
    straight-through gradient, whose noise ``draw`` sets so that runs repeat.
    """

    def __init__(
        self, mode: str, branches: tuple[Compression, ...], hidden: int, heads: int
    ) -> None:
        super().__init__()
        self.mode = mode
        self.names = [f"{branch}" for branch in branches]
        self.branches = nn.ModuleList(build_compressor(b, hidden, heads) for b in branches)
        self.noise: torch.Tensor | None = None
        self.temperature = 1.0
        if mode != "concat":
            self.gate = nn.Sequential(
                nn.Linear(hidden, hidden // 4), nn.GELU(), nn.Linear(hidden // 4, len(branches))
            )

    def draw(self, generator: torch.Generator, temperature: float) -> None:
        """Sets the Gumbel noise of the coming forward; without it the gate takes its best."""
        uniform = torch.rand(len(self.names), generator=generator).clamp(1e-9, 1 - 1e-9)
        self.noise, self.temperature = -torch.log(-torch.log(uniform)), temperature

    def forward(self, x: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        if self.mode == "concat":
            return torch.cat([branch(x, question) for branch in self.branches])
        scores = self.gate(question)
        if self.mode == "weighted":
            weights = torch.softmax(scores, -1)
            outs = torch.stack([branch(x, question) for branch in self.branches])
            return (weights[:, None, None] * outs).sum(0)
        if not self.training or self.noise is None:
            chosen: torch.Tensor = self.branches[int(scores.argmax())](x, question)
            return chosen
        soft = torch.softmax((scores + self.noise.to(scores)) / self.temperature, -1)
        best = int(soft.argmax())
        through: torch.Tensor = self.branches[best](x, question)
        return through * (1.0 + (soft[best] - soft[best].detach()))  # exactly 1, with a gradient


def build_compressor(compression: Compression, hidden: int, heads: int) -> Compressor:
    """The module of a parsed ``--compressor``. Raises ConfigError for an unknown kind."""
    kind, amount = compression.kind, compression.amount
    if kind in ("prune", "stride"):
        return Keep(kind, amount)
    if kind == "pool":
        return Pool(amount)
    if kind == "conv":
        return Convolve(hidden, amount)
    if kind == "resampler":
        return Resample(hidden, heads, amount)
    if kind == "text-only":
        return TextOnly()
    if kind in ELASTIC:
        return Elastic(kind, compression.branches, hidden, heads)
    raise ConfigError(f"no compressor is called '{kind}'")
