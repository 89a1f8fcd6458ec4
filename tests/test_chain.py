"""The chain graph: a chain that is continued by a second call is the chain of one longer call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.bundle import GraphSpec
from edgespec.flavour import Flavour
from edgespec_export.builder import GraphBuilder
from edgespec_export.exporter import ExportRequest, plan_export
from edgespec_export.graphs.chain import build_chain
from edgespec_export.graphs.feature import build_feature_chain
from edgespec_export.heads.folded import Folded
from edgespec_export.lowerings import get_lowering
from edgespec_export.plan import CHAIN_STEPS, DraftPlan, Plan
from edgespec_runtime.engines import StepSession, open_engine
from edgespec_runtime.prefill import causal_mask
from tests.support.compare import host_rows
from tests.support.zoo import Zoo

Floats = npt.NDArray[np.float32]

ORT = Flavour("ort")
PREFIX = 5
TOP_K = 4


class Chains:
    """A plan's chain, built with any number of steps and run on random rows."""

    def __init__(self, zoo: Zoo, folder: Path, variant: str) -> None:
        target, head = zoo.checkpoint("gqa"), variant != "vlm"
        draft = zoo.head_checkpoint("gqa", variant) if head else zoo.checkpoint("gqa", "shared")
        request = ExportRequest(
            str(target), folder / "b", str(draft), draft_variant=variant if head else None
        )
        self._plan: Plan = plan_export(request)
        assert self._plan.draft is not None
        self._draft: DraftPlan = self._plan.draft
        self._folder = folder
        self.table = np.concatenate(list(self._draft.table.pieces()))
        rng = np.random.default_rng(0)
        width = self.table.shape[1]
        self.tokens = rng.integers(4, 300, PREFIX)
        self.hidden = rng.standard_normal((PREFIX, width), dtype=np.float32) if head else None
        self.offset: Floats | None = None
        if variant == "vispec":
            self.offset = rng.standard_normal((width,), dtype=np.float32)

    def rows(self, tokens: Any) -> Floats:
        rows: Floats = self.table[tokens]
        return rows if self.offset is None else rows + self.offset

    @property
    def proposed(self) -> int:
        return self._draft.proposer.size

    def open(self, steps: int) -> StepSession:
        (planned,) = (g for g in self._plan.graphs[ORT] if g.role == "draft_chain")
        builder = self._build(steps)
        builder.save(self._folder, f"chain{steps}")
        spec = GraphSpec(
            "draft_chain", f"chain{steps}.onnx", "ort", "fp32",
            tuple(builder.inputs), tuple(builder.outputs), {**planned.meta, "steps": steps},
        )  # fmt: skip
        outputs = ("topk_logprobs", "topk_ids", *(("feedback",) if self.hidden is not None else ()))
        return open_engine("ort", threads=1).load_step(spec, self._folder).open(64, outputs)

    def _build(self, steps: int) -> GraphBuilder:
        proposer, lowering, original = (
            self._draft.proposer, get_lowering(ORT).chains, self._draft.original,
        )  # fmt: skip
        if self.hidden is None:
            return build_chain(
                original.checkpoint, original.geometry.text, proposer, lowering,
                name="chain", top_k=TOP_K, steps=steps,
            )  # fmt: skip
        folded = Folded(original.checkpoint, original.geometry, self._plan.target.checkpoint)
        return build_feature_chain(
            folded, proposer, lowering, name="chain", top_k=TOP_K, steps=steps
        )


@pytest.mark.parametrize("coupled", [False, True], ids=["plain", "coupled"])
@pytest.mark.parametrize("variant", ["vlm", "eaglevlm", "vispec", "eagle3"])
def test_a_chain_goes_on_where_it_stopped(
    zoo: Zoo, tmp_path: Path, variant: str, coupled: bool
) -> None:
    chains = Chains(zoo, tmp_path, variant)
    whole, short = chains.open(2 * CHAIN_STEPS), chains.open(CHAIN_STEPS)
    noise = np.random.default_rng(1).gumbel(size=(2 * CHAIN_STEPS, chains.proposed))
    noises = noise.astype(np.float32) if coupled else None

    def begin(session: StepSession, steps: int) -> list[Any]:
        session.set_temperature(4.0 if coupled else 1.0)
        found = session.step(
            chains.rows(chains.tokens), range(PREFIX), causal_mask(0, PREFIX),
            hidden=chains.hidden, offset=chains.offset,
            noise=None if noises is None else noises[:steps],
        )  # fmt: skip
        session.cache.settle(PREFIX)
        return [array.copy() for array in found]

    wanted, first = begin(whole, 2 * CHAIN_STEPS), begin(short, CHAIN_STEPS)
    assert short.cache.pending == CHAIN_STEPS - 1
    tip, used = first[1][-1, 0], short.cache.used
    second = short.step(
        chains.rows([tip]), [PREFIX - 1 + CHAIN_STEPS], causal_mask(used, 1),
        hidden=first[2] if chains.hidden is not None else None, offset=chains.offset,
        noise=None if noises is None else noises[CHAIN_STEPS:],
    )  # fmt: skip
    np.testing.assert_array_equal(np.concatenate([first[1], second[1]]), wanted[1])
    np.testing.assert_allclose(np.concatenate([first[0], second[0]]), wanted[0], atol=1e-4)
    if chains.hidden is not None:
        np.testing.assert_allclose(second[2], wanted[2], atol=1e-4)
    assert short.cache.pending == whole.cache.pending == 2 * CHAIN_STEPS - 1
    np.testing.assert_allclose(host_rows(short.cache), host_rows(whole.cache), atol=1e-4)
