"""Pictures and prompts: what a request pays before its rounds. Every clocking opens a request of
its own, so that fresh caches and buffers are paid for as they are in a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edgespec.sampling import Sampler
from edgespec_runtime.inputs import VisualInputs
from edgespec_runtime.model import Model
from edgespec_runtime.profiling.measuring.rigs import (
    Source,
    open_session,
    text_only,
    verifier_over,
)
from edgespec_runtime.profiling.measuring.samples import Samples
from edgespec_runtime.profiling.measuring.sizes import Sizes

Floats = npt.NDArray[np.float32]
Job = Callable[[Samples], None]
DRAFT_VISION = ("draft_vision", "draft_projector", "compressor")


class PromptBench:
    """Clocks what comes before the rounds, and drawing tokens."""

    def __init__(self, model: Model, sizes: Sizes, source: Source, seed: int = 0) -> None:
        self._model, self._sizes, self._source = model, sizes, source
        self._rng = np.random.default_rng(seed)
        params = model.sampling()
        params = replace(params, temperature=1.0) if params.greedy else params
        self._vocab = int(model.steps["target"].spec.meta["vocab"])
        self._sampler = Sampler(params, self._vocab)

    def jobs(self) -> Iterator[Job]:
        """Every point once."""
        sizes, draft = self._sizes, self._model.draft
        for size in sizes.prompts:
            yield lambda samples, size=size: self._prefill(size, samples)  # type: ignore[misc]
        for count in sizes.pictures:
            yield lambda samples, count=count: self._vision(count, samples)  # type: ignore[misc]
        if draft is not None:
            for size in sizes.draft_prompts:
                yield lambda samples, size=size: self._prepare(size, samples)  # type: ignore[misc]

    def _prefill(self, size: int, samples: Samples) -> None:
        session = open_session(self._model, size + 1)
        verifier = verifier_over(self._model, session, self._source.ids(size))
        started = perf_counter()
        verifier.begin()
        samples.add("prefill", size, _since(started))

    def _prepare(self, size: int, samples: Samples) -> None:
        draft = self._model.draft
        assert draft is not None
        prompt = self._source.prompt(size)
        drafter = draft.drafter(*draft.sessions(size + 1), prompt, text_only(self._model))
        drafter.begin(self._source.verdict(1, size))
        started = perf_counter()
        drafter.prepare()
        samples.add("draft_prefill", size, _since(started))

    def _vision(self, count: int, samples: Samples) -> None:
        """Pictures for the target, then for the draft, as a request wants them. Without a target
        here the draft pays for a tower that both share."""
        graphs = dict(self._model.graphs)
        if not {"vision", "draft_vision"} & set(graphs):
            return
        own = self._pixels("draft_vision", count) if "draft_vision" in graphs else None
        shown = self._pixels("vision", count) if "vision" in graphs else own
        visual = VisualInputs(graphs, shown, own)
        started = perf_counter()
        rows = visual.target if "projector" in graphs else None
        if rows is not None:
            samples.add("vision", count, _since(started))
        draft = self._model.draft
        if draft is None or not any(role in graphs for role in DRAFT_VISION):
            return
        width = int(draft.step.spec.meta["hidden"])
        seen = np.zeros((1, 1, 0)) if rows is None else rows
        hidden = np.zeros((*seen.shape[:2], width), dtype=np.float32)
        started = perf_counter()
        if draft.wants_features:
            draft.image_rows(visual, hidden, hidden[0, :1])
        else:
            _ = visual.draft
        samples.add("draft_vision", count, _since(started))

    def pick(self, samples: Samples) -> None:
        """Drawing a token at the checkpoint's temperature (1 where it is greedy), beyond the
        arg-max of its logits."""
        logits = 3 * self._rng.standard_normal(self._vocab, dtype=np.float32)
        started = perf_counter()
        self._sampler.pick(logits, int(self._rng.integers(1 << 20)), ())
        drawn = perf_counter()
        logits.argmax()
        samples.add("pick", 1, (drawn - started - (perf_counter() - drawn)) * 1e3)

    def _pixels(self, role: str, count: int) -> Floats:
        spec = self._model.manifest.graph(role)
        assert spec is not None
        sides = [int(size) for size in spec.inputs[0].axes[1:]]
        return self._rng.standard_normal((count, *sides), dtype=np.float32)


def _since(started: float) -> float:
    return (perf_counter() - started) * 1e3
