"""Compressors of visual tokens against direct formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgespec.errors import ConfigError
from edgespec_export.compression import (
    ELASTIC,
    Compression,
    check_fits,
    kept_tokens,
    parse_compression,
    square_window,
)
from edgespec_export.heads.compressors import Compressor, Elastic, build_compressor
from tests.support import formulas

HIDDEN, HEADS = 8, 2
NOTHING = torch.zeros(HIDDEN)
ALL = ("prune:3", "stride:3", "pool:4", "pool:3", "conv:3", "resampler:2", "text-only",
       "elastic:weighted", "elastic:concat")  # fmt: skip


def made(text: str, *branches: str, seed: int = 0) -> Compressor:
    """A compressor with random weights."""
    compressor = build_compressor(parse_compression(text, branches), HIDDEN, HEADS)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in compressor.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
    return compressor.eval()


def tokens(count: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [9, 16, 20, 25, 36])
@pytest.mark.parametrize("text", ALL)
@torch.no_grad()
def test_lengths_are_as_announced(text: str, count: int) -> None:
    out = made(text)(tokens(count), NOTHING)
    assert out.shape == (parse_compression(text).tokens(count), HIDDEN)


@pytest.mark.parametrize(("grid", "side"), [(4, 2), (5, 2), (6, 4), (7, 3), (3, 3)])
def test_square_ratio_pools_square_windows(grid: int, side: int) -> None:
    x = tokens(grid**2)
    image = x.numpy().reshape(grid, grid, HIDDEN)
    wanted = [
        image[r : r + side, c : c + side].mean((0, 1))  # a slice ends at the edge by itself
        for r in range(0, grid, side)
        for c in range(0, grid, side)
    ]
    out = made(f"pool:{side**2}")(x, NOTHING)
    np.testing.assert_allclose(out.numpy(), np.stack(wanted), atol=1e-6)


@pytest.mark.parametrize(("count", "ratio"), [(9, 3), (16, 5), (25, 20), (20, 4), (25, 2)])
def test_other_ratios_pool_neighbours_in_raster_order(count: int, ratio: int) -> None:
    assert square_window(ratio, count) == 0
    x = tokens(count)
    wanted = [x[i : i + ratio].mean(0) for i in range(0, count, ratio)]
    out = made(f"pool:{ratio}")(x, NOTHING)
    torch.testing.assert_close(out, torch.stack(wanted))


@pytest.mark.parametrize(("count", "ratio"), [(9, 3), (16, 3), (25, 4)])
@torch.no_grad()
def test_convolution_weighs_its_window_and_pads_the_tail_with_zeros(count: int, ratio: int) -> None:
    compressor, x = made(f"conv:{ratio}"), tokens(count).double().numpy()
    w = formulas.weights_of(compressor)
    wanted = []
    for i in range(0, count, ratio):
        total = w["bias"].copy()
        for j, token in enumerate(x[i : i + ratio]):
            total += w["weight"][:, :, j] @ token
        wanted.append(total)
    out = compressor(tokens(count), NOTHING)
    np.testing.assert_allclose(out.numpy(), np.stack(wanted), atol=1e-5)


@torch.no_grad()
def test_untrained_convolution_averages() -> None:
    x = tokens(9)
    out = build_compressor(parse_compression("conv:3"), HIDDEN, HEADS)(x, NOTHING)
    torch.testing.assert_close(out, x.view(3, 3, HIDDEN).mean(1))


@torch.no_grad()
def test_resampler_asks_its_queries() -> None:
    compressor, x = made("resampler:3"), tokens(9)
    w = formulas.weights_of(compressor)
    wanted = formulas.adapt(w, "attention", list(x.double().numpy()))
    np.testing.assert_allclose(compressor(x, NOTHING).numpy(), np.stack(wanted), atol=1e-5)


def test_pruning_keeps_the_same_tokens_everywhere() -> None:
    """Training, export and another NumPy must agree, so the choice itself is written down."""
    assert kept_tokens("prune", 36, 6) == [0, 1, 2, 8, 30, 32]
    assert kept_tokens("stride", 36, 6) == [3, 9, 15, 21, 27, 33]
    for kind in ("prune", "stride"):
        for count, ratio in ((36, 20), (25, 2), (9, 9)):
            kept = kept_tokens(kind, count, ratio)
            assert kept == sorted(set(kept)) == kept_tokens(kind, count, ratio)
            assert len(kept) == math.ceil(count / ratio) and 0 <= kept[0] and kept[-1] < count
            x = tokens(count)
            assert torch.equal(made(f"{kind}:{ratio}")(x, NOTHING), x[kept])


def gate_scores(compressor: Compressor, question: torch.Tensor) -> torch.Tensor:
    """A two-layer perceptron with an exact GELU, one score per branch."""
    w = formulas.weights_of(compressor)
    x = formulas.linear(w, "gate.0", question.double().numpy())
    x = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    return torch.from_numpy(formulas.linear(w, "gate.2", x)).float()


@torch.no_grad()
def test_weighted_branches_add_up() -> None:
    compressor, x, question = made("elastic:weighted"), tokens(16), tokens(1)[0]
    assert isinstance(compressor, Elastic)
    weights = torch.softmax(gate_scores(compressor, question), -1)
    wanted = sum(w * b(x, question) for w, b in zip(weights, compressor.branches, strict=True))
    torch.testing.assert_close(compressor(x, question), wanted)


@torch.no_grad()
def test_concatenated_branches_follow_each_other() -> None:
    compressor, x = made("elastic:concat"), tokens(16)
    assert isinstance(compressor, Elastic) and tuple(compressor.names) == ELASTIC["concat"]
    assert not any(name.startswith("gate") for name in compressor.state_dict())
    parts = [branch(x, NOTHING) for branch in compressor.branches]
    torch.testing.assert_close(compressor(x, NOTHING), torch.cat(parts))


def test_selection_takes_the_best_branch_and_trains_its_gate() -> None:
    branches = ("prune:4", "pool:4", "conv:4", "resampler:2")
    compressor, x = made("elastic:select", *branches), tokens(16)
    assert isinstance(compressor, Elastic)
    taken = set()
    for seed in range(12):
        question = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))
        scores = gate_scores(compressor, question)
        best = compressor.branches[int(scores.argmax())]
        assert torch.equal(compressor.eval()(x, question), best(x, question))
        # In training the noise has a say; the value is a branch's to the last bit all the same.
        compressor.train().draw(torch.Generator().manual_seed(seed), 0.7)
        assert compressor.noise is not None
        drawn = int((scores + compressor.noise).argmax())
        taken.add(drawn)
        out = compressor(x, question)
        assert torch.equal(out, compressor.branches[drawn](x, question))
        compressor.zero_grad()
        out.sum().backward()
        last = compressor.gate[2]
        assert isinstance(last, nn.Linear) and last.weight.grad is not None
        assert last.weight.grad.abs().sum() > 0
    assert len(taken) > 1


@torch.no_grad()
def test_noise_is_gumbel_and_repeats() -> None:
    compressor = made("elastic:select")
    assert isinstance(compressor, Elastic)
    seen = []
    draw = torch.Generator().manual_seed(1)
    for _ in range(2000):
        compressor.draw(draw, 1.0)
        assert compressor.noise is not None
        seen.append(compressor.noise)
    values = torch.stack(seen)
    assert abs(float(values.mean()) - 0.5772) < 0.05  # Euler's constant
    assert abs(float(values.var()) - math.pi**2 / 6) < 0.1
    compressor.draw(torch.Generator().manual_seed(1), 1.0)
    assert compressor.noise is not None and torch.equal(compressor.noise, seen[0])


def test_branches_of_unequal_length_cannot_be_added() -> None:
    uneven = parse_compression("elastic:weighted", ("pool:4", "conv:3"))
    with pytest.raises(ConfigError, match="differ in length"):
        check_fits(uneven, 36)
    with pytest.raises(ConfigError, match="only 4 visual tokens"):
        check_fits(Compression("conv", 5), 4)
