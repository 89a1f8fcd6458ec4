"""What one call on an accelerator is given: masks in every span, padding, and what is uploaded."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.bundle import GraphSpec, TensorSpec
from edgespec_runtime.engines.device_cache import DeviceCache
from edgespec_runtime.engines.device_call import DeviceCall, Form
from edgespec_runtime.engines.executor import Tensor
from edgespec_runtime.engines.memory import SIZES, Shelf
from edgespec_runtime.kv import CacheShape
from tests.support.host_memory import HostMemory

SHAPE = CacheShape(1, 1, 4)
USED, ROWS, PADDED, CAPACITY = 5, 3, 4, 64


class Peek:
    """An executor and its call: keeps copies of what lay in device memory when it ran."""

    host_inputs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.seen: dict[str, npt.NDArray[Any]] = {}
        self.steady = False

    def prepare(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], steady: bool) -> Peek:
        self._inputs, self.steady = {tensor.name: tensor for tensor in inputs}, steady
        return self

    def run(self, moved: Sequence[Tensor] = ()) -> None:
        given = {**self._inputs, **{tensor.name: tensor for tensor in moved}}
        for tensor in given.values():
            size = int(np.prod(tensor.shape)) * SIZES[tensor.dtype]
            raw = np.frombuffer(ctypes.string_at(tensor.pointer, size), dtype=tensor.dtype)
            self.seen[tensor.name] = raw.reshape(tensor.shape)


def spec_of(span: str) -> GraphSpec:
    inputs = (
        TensorSpec("inputs_embeds", "float32", ("B", "S", 2)),
        TensorSpec("tree_mask", "bool", ("B", 1, "S", "T")),
        TensorSpec("past_length", "int64", ("B",)),
        TensorSpec("past_key.0", "float32", ("B", 1, "C", 4)),
        TensorSpec("past_value.0", "float32", ("B", 1, "C", 4)),
    )
    outputs = (
        TensorSpec("logits", "float32", ("B", "R", 8)),
        TensorSpec("hidden", "float32", ("B", "S", 2)),
    )
    return GraphSpec("target", "t.onnx", "native", "fp32", inputs, outputs, {"mask_span": span})


def run_one(span: str, *, last_only: bool = False) -> tuple[Peek, list[npt.NDArray[Any]]]:
    """Three rows of a tree behind five committed ones, padded to four."""
    memory, peek = HostMemory(), Peek()
    cache = DeviceCache(memory, Shelf(memory), SHAPE, CAPACITY)
    cache.length = USED
    form = Form(PADDED, last_only, (1, 1), ("logits", "hidden"))
    call = DeviceCall(memory, peek, spec_of(span), cache, form)
    for rows in (PADDED, ROWS):  # the second time, the first one's leavings are there
        mask = np.ones((rows, USED + rows), dtype=np.bool_)
        mask[:, USED:] = np.eye(rows)
        mask[:, 1] = False
        call.fill("inputs_embeds", np.full((rows, 2), 7.0))
        call.put("past_length", USED)
        call.mask(mask, USED)
        found = call.run(cache, rows)
    return peek, found


@pytest.mark.parametrize("span", ["capacity", "behind", "total"])
def test_rows_see_what_they_may_and_padding_itself(span: str) -> None:
    columns = {"capacity": CAPACITY, "behind": CAPACITY + PADDED, "total": USED + PADDED}[span]
    expected = np.zeros((PADDED, columns), dtype=np.bool_)
    expected[:ROWS, [0, 2, 3, 4]] = True
    new = CAPACITY if span == "behind" else USED
    expected[range(PADDED), range(new, new + PADDED)] = True
    peek, _ = run_one(span)
    assert np.array_equal(peek.seen["tree_mask"], expected[None, None])
    assert peek.seen["past_length"].tolist() == [USED]


def test_padding_is_zeros_whatever_was_there() -> None:
    peek, _ = run_one("capacity")
    assert peek.seen["inputs_embeds"][0].tolist() == [[7.0, 7.0]] * ROWS + [[0.0, 0.0]]


def test_outputs_are_those_of_the_rows_given() -> None:
    assert [array.shape for array in run_one("capacity")[1]] == [(ROWS, 8), (ROWS, 2)]
    last = run_one("capacity", last_only=True)[1]
    assert [array.shape for array in last] == [(1, 8), (ROWS, 2)]


def test_only_calls_of_one_shape_are_worth_recording() -> None:
    assert run_one("capacity")[0].steady and run_one("behind")[0].steady
    assert not run_one("total")[0].steady
