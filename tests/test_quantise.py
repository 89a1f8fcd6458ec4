"""Rounded weights and their products, against numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from edgespec.flavour import Flavour
from edgespec.precisions import Precisions
from edgespec_export.builder import GraphBuilder
from edgespec_export.lowerings import precision_of
from edgespec_export.precision import Precision
from edgespec_export.quantise.gptq import DAMPING, compensated, root_of
from edgespec_export.quantise.matrix import Matrix
from edgespec_export.quantise.rounding import BlockWeights, RowWeights, signed_scales

Floats = npt.NDArray[np.float32]
Product = Callable[[Floats], Floats]


def weights(outputs: int, inputs: int, seed: int = 0) -> Floats:
    """Every output and every stretch of inputs of a size of its own."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.2, 3.0, (outputs, 1)) * np.repeat(rng.uniform(0.2, 3, inputs // 16), 16)
    return (rng.standard_normal((outputs, inputs)) * sizes).astype(np.float32)


def in_pieces(exact: Floats, size: int = 7) -> Matrix:
    """As a checkpoint gives it: some rows at a time."""
    outputs, inputs = exact.shape
    starts = range(0, outputs, size)
    return Matrix(inputs, outputs, lambda: (exact[start : start + size] for start in starts))


def activations(rows: int, inputs: int, seed: int = 1) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((1, rows, inputs)) * rng.uniform(0.1, 9, (rows, 1))).astype("f4")


def product_of(folder: Path, precision: Precision, exact: Floats, part: str = "layer") -> Product:
    """The product in a graph of its own, run by ONNX Runtime."""
    outputs, inputs = exact.shape
    b = GraphBuilder("product", 17, precision)
    x = b.input("x", "float32", [1, "S", inputs])
    y = b.product(x, "w", in_pieces(exact), part)
    b.output(y, "y", "float32", [1, "S", outputs])
    assert b.multiplied == exact.size
    b.save(folder, "product")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "product.onnx"), options)

    def run(x: Floats) -> Floats:
        found: Floats = session.run(None, {"x": x})[0]
        return found

    return run


def ort(name: str, **parts: str) -> Precision:
    return precision_of(Flavour("ort", name), Precisions(**parts), None)


def unpacked(rounded: BlockWeights) -> npt.NDArray[Any]:
    """[outputs, blocks, block] numbers around zero, from the bytes that are written."""
    packed = rounded.numbers()
    low, high = packed & 15, packed >> 4
    return np.stack([low, high], axis=-1).reshape(*packed.shape[:2], -1).astype(np.int8) - 8


def rounded_rows(x: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    largest = np.abs(x).max(axis=-1, keepdims=True)
    return np.rint(x / largest * np.float32(127)).astype(np.int64), largest


@pytest.mark.parametrize("block", [32, 64, 128])
def test_blocks_of_four_bits(block: int) -> None:
    exact = weights(20, 256)
    rounded = BlockWeights(in_pieces(exact), 4, block, lambda: None)
    numbers, scales = unpacked(rounded), rounded.scales()
    blocks = exact.reshape(20, -1, block)
    assert numbers.min() == -8 and scales.shape == (20, 256 // block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_allclose(scales * -8, largest, rtol=1e-6)
    steps = np.abs(scales)[..., None]
    off = np.abs(numbers * scales[..., None] - blocks)
    # A value as large as the largest, but of the other sign, is cut from 8 to 7.
    cut = numbers == 7
    assert (off[~cut] <= (steps * 0.501 + 0 * off)[~cut]).all() and (off <= steps * 1.001).all()


def test_zeros_stay_zeros(tmp_path: Path) -> None:
    nothing = np.zeros((8, 64), dtype=np.float32)
    for precision in (ort("int8"), ort("int4")):
        run = product_of(tmp_path, precision, nothing)
        assert np.abs(run(activations(3, 64))).max() < 1e-9
        run = product_of(tmp_path, precision, weights(8, 64))
        x = activations(3, 64)
        x[0, 1] = 0.0  # a row without a largest value
        found = run(x)
        assert not found[0, 1].any() and found[0, 0].any()


def test_int8_is_integers_and_two_scales(tmp_path: Path) -> None:
    """Per output for weights, per row for activations: the very sums that numpy gives."""
    exact, x = weights(48, 80), activations(5, 80)
    rounded = RowWeights(in_pieces(exact))
    numbers, scales = rounded.numbers(), rounded.scales()
    np.testing.assert_array_equal(np.abs(numbers).max(0), 127)
    np.testing.assert_allclose(scales * 127, np.abs(exact).max(1), rtol=1e-6)
    codes, largest = rounded_rows(x)
    wanted = (codes @ numbers.astype(np.int64)) * largest * (scales / np.float32(127))
    found = product_of(tmp_path, ort("int8"), exact)(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("block", ["32", "64"])
def test_int4_is_read_as_it_was_written(tmp_path: Path, block: str) -> None:
    """One-hot rows are rounded without a loss, so the weights come out."""
    exact = weights(24, 192)
    rounded = BlockWeights(in_pieces(exact), 4, int(block), lambda: None)
    wanted = (unpacked(rounded) * rounded.scales()[..., None]).reshape(exact.shape)
    found = product_of(tmp_path, ort("int4", block=block), exact)(np.eye(192, dtype="f4")[None])
    np.testing.assert_allclose(found[0], wanted.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "precision, inputs, bits",
    [
        (ort("int4"), 96, 4), (ort("int4"), 80, 8), (ort("int4", block="128"), 192, 4),
        (ort("int8"), 80, 8), (ort("int4", head="int4"), 96, 4),
        (ort("int8", block="64"), 192, 8), (ort("int8", block="64"), 80, 8),
    ],
)  # fmt: skip
def test_a_row_is_the_same_alone_and_among_others(
    tmp_path: Path, precision: Precision, inputs: int, bits: int
) -> None:
    """Blocks that do not divide the inputs would not be: such layers are int8."""
    exact, x = weights(40, inputs), activations(33, inputs)
    run = product_of(tmp_path, precision, exact)
    size = (tmp_path / "product.bin").stat().st_size
    assert exact.size * bits / 8 <= size < exact.size * (bits + 4) / 8
    together = run(x)
    scale = np.abs(together).max()
    for rows in ([4], [4, 5], [0, 4, 17], range(4, 33)):
        chosen = list(rows)
        apart = np.abs(run(x[:, chosen]) - together[:, chosen]).max()
        assert apart <= 1e-5 * scale, f"{len(chosen)} rows: {apart / scale:.2g}"


def test_int8_is_by_blocks_where_that_is_asked_for(tmp_path: Path) -> None:
    """Of layers; heads keep a scale for each output."""
    exact, x = weights(24, 192), activations(5, 192)
    precision = ort("int8", block="64")
    assert precision.stored["block"] == "64" and "blocks" in precision.row_invariance
    for part, op in (("layer", "MatMulNBits"), ("head", "MatMulInteger")):
        b = GraphBuilder("int8", 17, precision)
        b.product(b.input("x", "float32", [1, "S", 192]), "w", in_pieces(exact), part)
        assert op in [node.op_type for node in b._nodes]
    found, wanted = product_of(tmp_path, precision, exact)(x), x @ exact.T
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_half_precision_keeps_what_no_block_divides(tmp_path: Path) -> None:
    precision = precision_of(Flavour("cuda", "int4"), Precisions(), None)
    for inputs, op in ((80, "MatMul"), (96, "MatMulNBits")):
        b = GraphBuilder("half", 17, precision)
        b.product(
            b.input("x", "float16", [1, "S", inputs]), "w", in_pieces(weights(8, inputs)), "layer"
        )
        assert [node.op_type for node in b._nodes] == [op]


def test_activations_are_rounded_once_for_all_that_read_them() -> None:
    b = GraphBuilder("shared", 17, ort("int8"))
    x = b.input("x", "float32", [1, "S", 32])
    for name in ("a", "b", "c"):
        b.product(x, name, in_pieces(weights(8, 32)), "layer")
    kinds = [node.op_type for node in b._nodes]
    assert kinds.count("QuantizeLinear") == 1 and kinds.count("MatMulInteger") == 3


@pytest.mark.parametrize("head, bits", [("fp16", 16), ("int8", 8), ("int4", 4), ("fp32", 32)])
@pytest.mark.parametrize("layers", ["fp32", "int4"])
def test_heads_are_what_was_asked_for(tmp_path: Path, layers: str, head: str, bits: int) -> None:
    exact, x = weights(512, 64), activations(4, 64)
    found = product_of(tmp_path, ort(layers, head=head), exact, "head")(x)
    size = (tmp_path / "product.bin").stat().st_size
    assert exact.size * bits / 8 <= size < exact.size * bits / 8 + 4096 * 3 + exact.size / 8
    wanted = x @ exact.T
    limit = {32: 1e-5, 16: 1e-3, 8: 2e-2, 4: 2e-1}[bits]
    assert np.abs(found - wanted).max() < limit * np.abs(wanted).max()


def correlated(rows: int, inputs: int) -> Floats:
    """What a layer reads: a few directions carry most of it."""
    rng = np.random.default_rng(3)
    mixed = rng.standard_normal((rows, inputs // 8)) @ rng.standard_normal((inputs // 8, inputs))
    return (mixed + 0.3 * rng.standard_normal((rows, inputs))).astype(np.float32)


def test_the_root_is_of_the_damped_inverse() -> None:
    read = correlated(300, 64).astype(np.float64)
    moments = read.T @ read
    root = root_of(moments)
    assert not np.tril(root, -1).any()
    damped = moments + DAMPING * np.diagonal(moments).mean() * np.eye(64)
    np.testing.assert_allclose(root.T @ root @ damped, np.eye(64), atol=1e-3)


@pytest.mark.parametrize("block", [32, 64])
def test_calibrated_rounding_beats_the_nearest(block: int) -> None:
    """In what the layer gives, on rows that were not calibrated on; and it uses the same scales'
    rule and range."""
    exact, read = weights(48, 128), correlated(900, 128)
    seen, unseen = read[:600].astype(np.float64), read[600:]
    numbers, scales = compensated(exact, block, root_of(seen.T @ seen), signed_scales)
    assert numbers.min() == -8 and numbers.max() <= 7

    def error(numbers: npt.NDArray[Any], scales: Floats) -> float:
        steps = np.repeat(scales, block, axis=1)
        return float(np.square(unseen @ (numbers * steps - exact).T).sum())

    nearest = BlockWeights(in_pieces(exact), 4, block, lambda: None)
    plain = error(unpacked(nearest).reshape(exact.shape), nearest.scales())
    assert error(numbers, scales) < 0.5 * plain


def test_rows_are_calibrated_each_by_itself() -> None:
    """So that a matrix may come in pieces."""
    exact, read = weights(30, 64), correlated(200, 64).astype(np.float64)
    root = root_of(read.T @ read)
    whole = BlockWeights(in_pieces(exact, 30), 4, 32, lambda: root)
    parts = BlockWeights(in_pieces(exact, 7), 4, 32, lambda: root)
    differ = np.mean(whole.numbers() != parts.numbers())
    assert differ < 0.01, "but for float32 sums in another order"
    np.testing.assert_allclose(whole.scales(), parts.scales(), rtol=1e-2)


def test_inputs_that_are_never_used_do_no_harm() -> None:
    read = correlated(200, 64).astype(np.float64)
    read[:, 5] = 0.0
    exact = weights(16, 64)
    numbers, scales = compensated(exact, 32, root_of(read.T @ read), signed_scales)
    assert np.isfinite(scales).all()
    steps = np.repeat(scales, 32, axis=1)
    assert np.abs(numbers * steps - exact)[:, 5].max() < np.abs(scales).max()


def test_weights_are_rounded_once_whoever_asks() -> None:
    """Weights are written by threads that run ahead of each other."""
    reads: list[int] = []
    exact = weights(16, 64)

    def pieces() -> Iterator[Floats]:
        reads.append(1)
        sleep(0.02)
        yield exact

    for rounded in (
        RowWeights(Matrix(64, 16, pieces)),
        BlockWeights(Matrix(64, 16, pieces), 4, 32, lambda: None),
    ):
        reads.clear()
        with ThreadPoolExecutor(2) as pool:
            scales, numbers = pool.submit(rounded.scales), pool.submit(rounded.numbers)
            assert scales.result().shape[0] == 16 and numbers.result().size in (1024, 512)
        assert len(reads) == 1
