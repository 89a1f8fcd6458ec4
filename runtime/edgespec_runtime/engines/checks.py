"""What a step may be given, whichever engine takes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError
from edgespec_runtime.kv import Cache


def check_rows(
    spec: GraphSpec,
    cache: Cache,
    new: int,
    positions: Sequence[int] | npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
) -> None:
    """Raises EngineError for rows that the graph would get wrong; ``new``: those it appends."""
    if mask.shape != (len(positions), cache.used + len(positions)):
        raise EngineError(
            f"{spec.file}: {len(positions)} rows behind {cache.used} take a mask "
            f"[{len(positions)}, {cache.used + len(positions)}]; it is {list(mask.shape)}"
        )
    if cache.used + new > cache.capacity:
        raise EngineError(
            f"{spec.file}: {cache.used} rows in use and {new} new ones exceed the cache of "
            f"{cache.capacity} rows"
        )
    if spec.lowering == "ort" and not cache.used and list(positions) != _run(positions):
        raise EngineError(
            f"{spec.file}: GroupQueryAttention takes the positions of an empty cache for a "
            "run; feed the rows up to the first gap alone"
        )


def _run(positions: Sequence[int] | npt.NDArray[np.int64]) -> list[int]:
    return list(range(int(positions[0]), int(positions[0]) + len(positions)))


def picked_rows(spec: GraphSpec, rows: int, last_only: bool) -> int:
    """Rows whose outputs a step of ``rows`` rows gives: a chain graph gives one for each step."""
    steps = int(spec.meta.get("steps", 1))
    return steps if steps > 1 else 1 if last_only else rows


def check_coupled(spec: GraphSpec) -> None:
    """Raises EngineError for a graph that ranks no candidates."""
    if all(tensor.name != "noise" for tensor in spec.inputs):
        raise EngineError(f"{spec.file} takes no noise: only a draft's graphs are coupled")


def check_noise(spec: GraphSpec, noise: npt.NDArray[np.float32], picked: int) -> None:
    """Raises EngineError for noise that is not [1 or ``picked``, V_d]; a chain takes a row for each
    of its steps."""
    width = int(spec.meta["proposed"])
    allowed = {int(spec.meta.get("steps", 1)), picked}
    if noise.ndim != 2 or len(noise) not in allowed or noise.shape[1] != width:
        counts = " or ".join(str(count) for count in sorted(allowed))
        raise EngineError(
            f"{spec.file}: noise must be [{counts}, {width}], a row for each row picked and a "
            f"column for each token proposed; it is {list(noise.shape)}"
        )


def inverse(spec: GraphSpec, temperature: float) -> float:
    """What a draft's scores are multiplied by. Raises EngineError unless ``temperature`` is above
    0."""
    if not temperature > 0.0:
        raise EngineError(
            f"{spec.file}: a draft is coupled at a temperature above 0, not {temperature}"
        )
    return 1.0 / temperature
