"""Feature-level drafts in torch against their formulas, and against themselves row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgespec.visual import CONTIGUOUS, SPREAD, TAIL, run_positions
from edgespec_export.compression import parse_compression
from edgespec_export.distill.student import lay_out
from edgespec_export.distill.teacher import Sample
from edgespec_export.heads.geometry import HeadGeometry, captured_layers
from edgespec_export.heads.modules import Head, build_head
from tests.support import formulas
from tests.support.headzoo import HEADS, HIDDEN, KV_HEADS, VOCAB, plain, tiny_head, tiny_sample

LAYOUTS = ([7], [3, -9, 4], [3, -9, 1, -4, 2], [1, -9, 5], [4, -9], [-9, 4])
SHAPE = formulas.Shape(HEADS, KV_HEADS, 1e-5, 10000.0)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"variant": "eagle"},
    {"variant": "eagle", "fc_bias": False, "qkv_bias": True},
    {"variant": "eaglevlm"},
    {"variant": "msd"},
    {"variant": "vispec"},
    {"variant": "vispec", "qkv_bias": True, "fc_bias": False, "queries": 4},
    {"variant": "eagle3"},
    {"variant": "eagle3", "norm_before_residual": True, "norm_before_fc": True},
    {"variant": "eagle3", "fc_norm": True, "norm_output": True},
)


def name_of(fields: dict[str, Any]) -> str:
    return "-".join(str(v) if k == "variant" else k for k, v in fields.items())


def expected(head: Head, sample: Sample) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Layer outputs by the formulas, and their positions."""
    g, w = head.geometry, formulas.weights_of(head)
    embeds = list(sample.embeds[:-1].double().numpy())
    features = list(sample.features.double().numpy())
    if g.variant != "eagle3":
        image = [0] * len(embeds)
        for number, (start, end) in enumerate(sample.spans, 1):
            image[start:end] = [number] * (end - start)
        rows, at = formulas.eagle_rows(w, g.variant, embeds, features, image)
        normed = g.variant == "eaglevlm"
        return np.stack(formulas.eagle_layer(w, rows, at, SHAPE, input_norm=normed)), at
    hidden = []
    for x in features[: len(embeds) - 1]:
        if g.norm_before_fc:
            x = formulas.rms(w, "input_norm", x, SHAPE.eps)
        if g.fc_norm:
            parts = np.split(x, 3)
            x = np.concatenate([formulas.rms(w, f"fc_norm.{i}", p, SHAPE.eps)
                                for i, p in enumerate(parts)])  # fmt: skip
        hidden.append(formulas.linear(w, "fc", x))
    at = list(range(len(hidden)))
    residual = g.norm_before_residual
    outs = formulas.eagle3_layer(w, embeds[1:], hidden, at, SHAPE, norm_before_residual=residual)
    return np.stack(outs), at


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("fields", VARIANTS, ids=name_of)
@torch.no_grad()
def test_heads_compute_their_formulas(fields: dict[str, Any], layout: list[int]) -> None:
    head = tiny_head(**fields)
    sample = tiny_sample(head, layout)
    laid = lay_out(head, [sample])
    wanted, at = expected(head, sample)
    assert laid.positions[0].tolist() == at
    got = plain(head, laid.rows[0], laid.positions[0])
    np.testing.assert_allclose(got.numpy(), wanted, atol=2e-5)


@torch.no_grad()
def test_eagle3_norms_before_its_head_and_feeds_back_as_its_flag_says() -> None:
    out = torch.randn(3, HIDDEN)
    for flag in (False, True):
        head = tiny_head("eagle3", norm_output=flag)
        w = formulas.weights_of(head)
        normed = [formulas.rms(w, "norm", x, SHAPE.eps) for x in out.double().numpy()]
        logits = [w["lm_head.weight"] @ x for x in normed]
        np.testing.assert_allclose(head.logits(out).numpy(), np.stack(logits), atol=1e-5)
        back = np.stack(normed) if flag else out.numpy()
        np.testing.assert_allclose(head.feedback(out).numpy(), back, atol=1e-5)


@torch.no_grad()
def test_other_heads_use_the_targets_head_unnormed() -> None:
    head, out = tiny_head("eaglevlm"), torch.randn(3, HIDDEN)
    table = head.get_buffer("target_head")
    torch.testing.assert_close(head.logits(out), out @ table.T)
    assert head.feedback(out) is out


@pytest.mark.parametrize("fields", VARIANTS, ids=name_of)
@torch.no_grad()
def test_one_row_at_a_time_with_a_cache_equals_all_at_once(fields: dict[str, Any]) -> None:
    head = tiny_head(**fields)
    laid = lay_out(head, [tiny_sample(head, [3, -9, 4])])
    together = plain(head, laid.rows[0], laid.positions[0])
    memory = None
    for i in range(laid.rows.shape[1]):
        row, at = laid.rows[:, i : i + 1], laid.positions[:, i : i + 1]
        out, memory = head.layer(row, at, None, memory)
        torch.testing.assert_close(out[0, 0], together[i], atol=1e-5, rtol=0)


@torch.no_grad()
def test_untrained_vispec_leaves_the_hidden_state_alone() -> None:
    geometry = tiny_head("vispec").geometry
    head = build_head(geometry, torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN))
    embeds, hidden = torch.randn(1, 5, HIDDEN), torch.randn(1, 5, HIDDEN)
    fc = head.get_submodule("fc")
    plain_eagle = fc(torch.cat([embeds, hidden], -1))
    for offset in (None, torch.randn(HIDDEN)):
        torch.testing.assert_close(head.rows(embeds, hidden, offset), plain_eagle)


@torch.no_grad()
def test_vispec_text_before_any_image_still_passes_img_fc() -> None:
    head = tiny_head("vispec")
    embeds, hidden = torch.randn(1, 2, HIDDEN), torch.randn(1, 2, HIDDEN)
    without = head.rows(embeds, hidden, None)
    torch.testing.assert_close(without, head.rows(embeds, hidden, torch.zeros(HIDDEN)))
    raw = head.get_submodule("fc")(torch.cat([embeds, hidden], -1))
    assert (without - raw).abs().max() > 0.1


@torch.no_grad()
def test_msd_keeps_every_visual_token_and_ignores_what_the_target_made_of_them() -> None:
    head = tiny_head("msd")
    sample = tiny_sample(head, [3, -9, 4])
    rows = lay_out(head, [sample]).rows[0]
    torch.testing.assert_close(rows[2:11], sample.embeds[3:12])
    sample.features[2:11] = torch.nan  # rows 2 .. 10 hold the picture
    assert not lay_out(head, [sample]).rows.isnan().any()


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_specvlm_spreads_compressed_tokens_over_their_run(count: int) -> None:
    compression = parse_compression(f"stride:{-(-9 // count)}") if count < 9 else None
    head = tiny_head("specvlm", compression=compression)
    laid = lay_out(head, [tiny_sample(head, [3, -9, 4])])
    # The middle of each of ``count`` equal parts of rows 2 .. 10.
    middles = [2 + int((i + 0.5) * 9 / count) for i in range(count)]
    assert laid.positions[0].tolist() == [0, 1, *middles, *range(11, 16)]


@torch.no_grad()
def test_gate_reads_the_text_behind_the_last_image_or_the_last_row() -> None:
    head = tiny_head("specvlm", compression=parse_compression("elastic:weighted"))
    for layout in ([3, -9, 4], [3, -9]):
        rows = lay_out(head, [tiny_sample(head, layout)]).rows
        assert not rows.isnan().any()


def test_run_positions_rules() -> None:
    assert run_positions(TAIL, 10, 6, 2) == [14, 15]
    assert run_positions(SPREAD, 10, 6, 2) == [11, 14]
    for rule in (TAIL, SPREAD):
        assert run_positions(rule, 10, 6, 0) == []
        assert run_positions(rule, 10, 6, 6) == list(range(10, 16))
    with pytest.raises(ValueError, match="no positions"):
        run_positions(CONTIGUOUS, 10, 6, 2)


def test_rules_of_the_family() -> None:
    text = tiny_head("eagle").geometry.text
    kinds = {v: HeadGeometry(v, text, HIDDEN) for v in ("eagle", "eaglevlm", "msd", "vispec")}
    assert [v for v, g in kinds.items() if g.input_norm] == ["eaglevlm"]
    assert [v for v, g in kinds.items() if g.direct] == ["msd", "vispec"]
    assert [v for v, g in kinds.items() if g.position_rule == TAIL] == ["vispec"]
    assert captured_layers(32) == (2, 16, 29)
