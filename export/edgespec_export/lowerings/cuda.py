"""ONNX Runtime's own operators over a cache of fixed capacity, for its CUDA provider.

GroupQueryAttention is told that all of the capacity is there, and the mask hides what is not
written yet. So no shape changes from step to step, nothing is computed on the host, and the launch
of a step can be recorded. On an H200 that is faster than attention out of standard operators, at
every size (docs/performance.md).
"""

from __future__ import annotations

from edgespec_export.builder import GraphBuilder
from edgespec_export.geometry import TextGeometry
from edgespec_export.lowerings.base import CONTRACT, Given, Length, StepInputs
from edgespec_export.lowerings.ort import MASKED, OrtLowering

LAST = "last_row"
"""[B] int32: the cache's row that the last new row goes to. It takes the place of ``past_length``:
the sum of that and the number of new rows would be computed on the host, and then no launch is
recorded."""
CAPACITY = "capacity"
"""[] int32, read on the host: rows of the cache, the same in every step."""


class CudaLowering(OrtLowering):
    name = "cuda"
    mask_span = "capacity"
    lengths: tuple[Length, ...] = ((LAST, "int32", ["B"]), (CAPACITY, "int32", []))
    names_best = True

    def step_inputs(
        self, b: GraphBuilder, text: TextGeometry, cos: str, sin: str, given: Given = CONTRACT
    ) -> StepInputs:
        bias = b.node("Where", given.mask, b.number(0.0), b.number(MASKED))
        return StepInputs(bias, given.positions, cos, sin, (LAST, CAPACITY))

    def chained(
        self, b: GraphBuilder, text: TextGeometry, step: StepInputs, positions: str, ahead: int
    ) -> StepInputs:
        last, total = step.own
        # Causal over the rows up to its own: one row that sees all before it needs no mask.
        moved = b.node("Add", last, b.constant(ahead, "int32"))
        return StepInputs("", positions, step.cos, step.sin, (moved, total))
