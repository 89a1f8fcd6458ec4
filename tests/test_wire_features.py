"""Target features on the wire: what comes out is what went in, or it is refused."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.features import bytes_per_row, decode, encode

Floats = npt.NDArray[np.float32]
KINDS = [pb.FLOAT16, pb.INT8]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
shapes = st.tuples(st.integers(0, 5), st.integers(1, 9))


def there_and_back(features: Floats, kind: pb.Features) -> Floats:
    data = encode(features, kind)
    assert len(data) == features.shape[0] * bytes_per_row(features.shape[1], kind)
    return decode(data, len(features), features.shape[1], kind)


@given(arrays(np.float32, shapes, elements=finite))
def test_two_bytes_round_and_saturate(features: Floats) -> None:
    clipped = np.clip(features, -65504, 65504)
    found = there_and_back(features, pb.FLOAT16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, clipped, rtol=2**-11, atol=2**-25)


@given(arrays(np.float32, shapes, elements=finite))
@example(np.array([[np.finfo(np.float32).max, 1.0]], dtype=np.float32))
def test_one_byte_is_within_half_a_step_of_its_row(features: Floats) -> None:
    found = there_and_back(features, pb.INT8)
    peaks = np.abs(features).max(axis=1, keepdims=True, initial=0)
    assert (np.abs(found.astype(np.float64) - features) <= peaks * (0.501 / 127) + 1e-37).all()


def test_a_loud_row_does_not_drown_the_others() -> None:
    features = np.array([[1e4, -2e4, 3.0], [1e-3, -2e-3, 5e-4], [0, 0, 0]], dtype=np.float32)
    found = there_and_back(features, pb.INT8)
    np.testing.assert_allclose(found[1], features[1], atol=2e-3 / 250)
    assert (found[2] == 0).all()


def test_sizes() -> None:
    features = np.ones((3, 4096), dtype=np.float32)
    assert len(encode(features, pb.FLOAT16)) == 3 * 8192
    assert len(encode(features, pb.INT8)) == 3 * 4100
    assert encode(features, pb.NO_FEATURES) == b""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rows, width, cut", [(3, 8, 1), (2, 8, 0), (4, 8, 0), (3, 7, 0), (0, 8, 0)]
)
def test_data_of_another_size_is_refused(
    kind: pb.Features, rows: int, width: int, cut: int
) -> None:
    data = encode(np.ones((3, 8), dtype=np.float32), kind)
    with pytest.raises(ValueError, match="were to come"):
        decode(data[: len(data) - cut], rows, width, kind)


def test_no_features_have_no_form() -> None:
    with pytest.raises(ValueError, match="no form"):
        decode(b"", 0, 8, pb.NO_FEATURES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_on_both_sides(kind: pb.Features, bad: float) -> None:
    features = np.ones((2, 3), dtype=np.float32)
    data = bytearray(encode(features, kind))
    data[:4] = np.array([bad, bad], dtype="<f2" if kind == pb.FLOAT16 else "<f4").tobytes()[:4]
    with pytest.raises(ValueError, match="not finite"):
        decode(bytes(data), 2, 3, kind)
    features[1, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        encode(features, kind)
