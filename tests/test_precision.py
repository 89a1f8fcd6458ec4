"""Numbers as graphs store them: halves, bfloat16, int8 and int4 with their scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from edgespec.errors import CheckpointError
from edgespec_export.builder import FLOATS, GraphBuilder, Weight
from edgespec_export.precision import KNOWN, Quantised, block_of, encoded, stored_bytes

Floats = npt.NDArray[np.float32]


def weights(inputs: int, outputs: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.2, 3.0, size=(1, outputs))  # every output of a size of its own
    return (rng.standard_normal((inputs, outputs)) * spread).astype(np.float32)


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 31, size=20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (values < 1e38)]
    ties = (np.arange(64, dtype=np.uint32) * 0x8000 + 0x3F800000).view(np.float32)
    values = np.concatenate([values, -values, ties])
    wanted = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(encoded(values, "bfloat16", "w"), wanted)


def test_float16_refuses_what_it_cannot_hold() -> None:
    fine = np.array([65504.0, -65504.0], dtype=np.float32)
    assert encoded(fine, "float16", "w").dtype == np.float16
    with pytest.raises(CheckpointError, match="'w' holds values beyond 65504.*bf16"):
        encoded(np.array([1.0, -70_000.0], dtype=np.float32), "float16", "w")


@pytest.mark.parametrize("bits, block", [(8, 0), (4, 32), (4, 64)])
def test_rounding_is_off_by_half_a_step_at_most(bits: int, block: int) -> None:
    exact = weights(128, 24)
    reads: list[int] = []

    def load() -> Floats:
        reads.append(1)
        return np.array(exact)

    rounded = Quantised(load, bits, block)
    numbers, scales = rounded.numbers(), rounded.scales()
    assert len(reads) == 1, "a layer's weights are read once"
    assert np.abs(numbers).max() == 2 ** (bits - 1) - 1
    steps = np.repeat(np.atleast_2d(scales), block or 128, axis=0)
    # The scale was rounded to float16, so the largest number may be cut by a part in 2,000.
    assert (np.abs(numbers * steps - exact) <= steps * (0.5 + 2.0 ** (bits - 12))).all()


def test_a_layer_of_zeros_stays_zeros() -> None:
    rounded = Quantised(lambda: np.zeros((64, 3), dtype=np.float32), 4, 32)
    assert not rounded.numbers().any() and (rounded.scales() > 0).all()


def test_blocks() -> None:
    assert [block_of(n) for n in (4096, 192, 96, 80)] == [128, 64, 32, 0]
    assert [stored_bytes((3, 5), kind) for kind in ("int4", "int8", "bfloat16")] == [8, 15, 30]


@pytest.mark.parametrize(
    "precision, inputs, kind", [("int8", 80, "int8"), ("int4", 96, "int4"), ("int4", 80, "")]
)
def test_an_engine_reads_the_numbers_that_were_written(
    tmp_path: Path, precision: str, inputs: int, kind: str
) -> None:
    """Packing, axes and blocks; int4 without a block that divides the inputs stays float16."""
    exact = weights(inputs, 24)
    b = GraphBuilder("layer", 21, KNOWN[precision])
    x = b.given("x", ["N", inputs])
    weight = Weight(exact.shape, FLOATS, exact.copy)
    b.give(b.node("MatMul", x, b.matrix("w", weight, quantised=True)), "y", ["N", 24])
    assert b.multiplied == exact.size
    b.save(tmp_path, "layer")
    wanted: npt.NDArray[Any] = exact.astype(np.float16).astype(np.float32)
    if kind:
        block = block_of(inputs) if kind == "int4" else 0
        rounded = Quantised(exact.copy, int(kind[3:]), block)
        scales = np.atleast_2d(rounded.scales())
        wanted = rounded.numbers() * np.repeat(scales, block or inputs, axis=0)
        assert (tmp_path / "layer.bin").stat().st_size < exact.size * 2
    session = onnxruntime.InferenceSession(str(tmp_path / "layer.onnx"))
    (found,) = session.run(None, {"x": np.eye(inputs, dtype=np.float32)})
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-4)


def test_same_weights_of_another_kind_are_written_again(tmp_path: Path) -> None:
    """Flavours share what is equal to the bit, and nothing else."""
    exact = weights(64, 32)
    stored: dict[Any, Any] = {}
    files = []
    for number, precision in enumerate(("fp32", "fp16", "int8", "fp16")):
        b = GraphBuilder("layer", 20, KNOWN[precision])
        x = b.given("x", ["N", 64])
        weight = Weight(exact.shape, FLOATS, exact.copy)
        b.give(b.node("MatMul", x, b.matrix("w", weight, quantised=True)), "y", ["N", 32])
        files.append(b.save(tmp_path, str(number), written_before=stored))
    sizes = [f[1].stat().st_size if len(f) > 1 else 0 for f in files]
    assert sizes == [64 * 32 * 4, 64 * 32 * 2, 64 * 32, 0]
