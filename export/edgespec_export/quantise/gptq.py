"""GPTQ (Frantar et al., arXiv 2210.17323): rounding one input after the other, the error of each
made up for by the inputs that are not rounded yet, as far as what a layer reads correlates them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int8]
Doubles = npt.NDArray[np.float64]
Root = npt.NDArray[np.float32]
"""U, upper triangular, with U' U the inverse of a layer's second moments."""

DAMPING = 0.01
"""Part of the mean of the diagonal that is added to it: without, inputs that are almost sums of
others would take corrections of any size."""
SHRINK = np.linspace(1.0, 0.76, 9, dtype=np.float32)
"""Parts of the full range that a block's scale is tried with: cutting the largest may pay."""


def root_of(moments: Floats | Doubles) -> Root:
    """``moments`` [K, K]: the sum of x x' over what a layer reads."""
    damped = moments.astype(np.float64)
    diagonal = np.diagonal(damped).copy()
    mean = float(diagonal.mean()) or 1.0
    # An input that is always zero gets a moment of its own, and none of the others' errors.
    np.fill_diagonal(damped, np.where(diagonal > 0, diagonal, mean) + DAMPING * mean)
    # With everything in reverse order Cholesky's lower factor becomes the upper one wanted.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    del damped  # K is 11,008 in a model of seven billion
    root: Root = np.triu(np.linalg.inv(upper)).astype(np.float32)
    return root


def compensated(
    rows: Floats, block: int, root: Root, scales_of: Callable[[Floats], Floats]
) -> tuple[Numbers, Floats]:
    """``rows`` [n, K] in 4 bits: (numbers [n, K], scales [n, K / block]). Rows are independent of
    each other."""
    left = np.ascontiguousarray(rows.T, dtype=np.float32)  # an input's weights side by side
    numbers = np.empty(left.shape, dtype=np.int8)
    scales = np.empty((len(rows), len(left) // block), dtype=np.float32)
    errors = np.empty((block, len(rows)), dtype=np.float32)
    for index, start in enumerate(range(0, len(left), block)):
        end = start + block
        own = _best_scales(left[start:end].T, root[start:end, start:end], scales_of)
        for column in range(start, end):
            found = np.clip(np.rint(left[column] / own), -8, 7)
            error = (left[column] - found * own) / root[column, column]
            left[column:end] -= root[column, column:end, None] * error
            numbers[column] = found
            errors[column - start] = error
        left[end:] -= root[start:end, end:].T @ errors
        scales[:, index] = own
    return np.ascontiguousarray(numbers.T), scales


def _best_scales(block: Floats, root: Root, scales_of: Callable[[Floats], Floats]) -> Floats:
    """[n]: of the full range and parts of it the one with the least error, each input weighted as
    GPTQ weights its error."""
    weight = 1 / np.square(np.diagonal(root))
    full = scales_of(block)
    best, least = full.copy(), np.full(len(block), np.inf, dtype=np.float32)
    for part in SHRINK:
        scales = full * part
        error = block - np.clip(np.rint(block / scales), -8, 7) * scales
        total = np.square(error) @ weight
        better = total < least
        best[better], least[better] = scales[better], total[better]
    chosen: Floats = best[:, 0]
    return chosen
