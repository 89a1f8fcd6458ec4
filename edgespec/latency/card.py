"""The static card of a bundle: what each graph reads and multiplies, and how fast that could go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from time import perf_counter

import numpy as np

from edgespec.bundle import Bundle, GraphSpec
from edgespec.errors import ConfigError
from edgespec.latency.profile import Card, GraphCard

BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
"""Of one parameter, where all of them are alike."""
MIXED = ("int8", "int4")
"""Precisions of the layers' weights, beside others in fp16."""
STREAMED = 1 << 27  # bytes; well above any cache of an edge device
ROWS, SIDE = 8192, 1024
TRY_S = 0.4


def card_of(bundle: Bundle, bandwidth_gb_s: float, gflops: float, measured: bool) -> Card:
    """Weights, cache and arithmetic of every graph, from the manifest alone; not of one that serves
    several sessions at once, which no device runs.

    ``bandwidth_gb_s`` (10**9 bytes a second) and ``gflops`` are the machine's ceiling, either
    ``measured`` or a datasheet's. Raises ConfigError for a precision whose size is not known.
    """
    specs = (spec for spec in bundle.manifest.graphs if spec.role != "target_packed")
    graphs = tuple(_graph_card(bundle, spec) for spec in specs)
    return Card(graphs, bandwidth_gb_s, gflops, measured)


def stored_bytes(bundle: Bundle, spec: GraphSpec) -> int:
    """Bytes of the weights that no other graph of its flavour reads; 0 for a graph without any."""
    if "own_bytes" in spec.meta:
        return int(spec.meta["own_bytes"])
    entry = bundle.manifest.files.get(str(PurePosixPath(spec.file).with_suffix(".bin")))
    return entry.size if entry else 0


def _graph_card(bundle: Bundle, spec: GraphSpec) -> GraphCard:
    # The chain graph multiplies the step graph's weights; all it stores itself is a table that it
    # looks single rows up in.
    source = bundle.manifest.graph("draft") if spec.role == "draft_chain" else spec
    assert source is not None
    meta, width = spec.meta, number_bytes(spec.precision)
    whole = int(source.meta.get("weight_bytes", stored_bytes(bundle, source)))
    read = max(whole - _rotary_bytes(source), 0)
    numbers = read / width if spec.precision in BYTES else int(source.meta["multiplied"])
    cached = (
        int(meta["layers"]) * int(meta["kv_heads"]) * int(meta["head_dim"])
        if "layers" in meta
        else 0
    )
    return GraphCard(
        role=spec.role,
        precision=spec.precision,
        weight_bytes=read,
        kv_bytes_per_token=int(2 * cached * width),
        flops_per_row=2.0 * numbers,
        head_flops=2.0 * int(meta["hidden"]) * source.scored if "hidden" in meta else 0.0,
        steps=int(meta.get("steps", 1)),
    )


def number_bytes(precision: str) -> float:
    """Bytes of a number that is computed with, in the KV cache for instance. Raises ConfigError
    for a precision that is not known."""
    if precision in MIXED:
        return BYTES["fp16"]
    if precision not in BYTES:
        raise ConfigError(
            f"precision '{precision}' is not known here; known are {', '.join((*BYTES, *MIXED))}"
        )
    return BYTES[precision]


def _rotary_bytes(spec: GraphSpec) -> int:
    """The cosine and sine tables of a decoder graph, looked up and not multiplied: one row per
    position and per spare tree row, half a head wide."""
    if "max_positions" not in spec.meta:
        return 0
    rows = int(spec.meta["max_positions"]) + int(spec.meta["tree_rows"])
    return int(2 * rows * (int(spec.meta["head_dim"]) // 2) * number_bytes(spec.precision))


def measure_ceiling() -> tuple[float, float]:
    """(GB/s, GFLOPS) that numpy reaches here; takes one to two seconds.

    Bandwidth is the best of three ways through 128 MB, more than the caches of edge devices hold:
    a float32 matrix times a vector (the pattern of a single decoding row), a sum, and a copy (bytes
    read and written). The rate is the best float32 product of two matrices of 1024 x 1024. Both run
    in numpy's BLAS with as many threads as it was started with, on the CPU: a machine's theoretical
    peak is higher, an engine with better kernels or a GPU may exceed both, and weights that fit
    into a cache are read faster.
    """
    matrix = np.ones((ROWS, STREAMED // 4 // ROWS), dtype=np.float32)
    vector, target = np.ones(matrix.shape[1], dtype=np.float32), np.empty_like(matrix[: ROWS // 2])
    half = matrix[: ROWS // 2]
    bandwidth = max(
        matrix.nbytes / _best(lambda: matrix @ vector, TRY_S / 4),
        matrix.nbytes / _best(lambda: matrix.sum(dtype=np.float32), TRY_S / 4),
        2 * half.nbytes / _best(lambda: np.copyto(target, half), TRY_S / 4),
    )
    square = np.ones((SIDE, SIDE), dtype=np.float32)
    result = np.empty_like(square)
    rate = 2.0 * SIDE**3 / _best(lambda: np.matmul(square, square, out=result), TRY_S)
    return bandwidth / 1e9, rate / 1e9


def _best(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of the runs that fit into ``seconds``, one to warm up not counted."""
    run()
    best, end = float("inf"), perf_counter() + seconds
    while perf_counter() < end or best == float("inf"):
        started = perf_counter()
        run()
        best = min(best, perf_counter() - started)
    return best
