"""One form of a decoder's call: a number of rows, its buffers on both sides, and the bound graph.

All inputs lie in one pinned array and one block of the device, the mask last: one copy carries
them, whatever the number of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgespec.bundle import GraphSpec, TensorSpec
from edgespec_runtime.engines.base import Array
from edgespec_runtime.engines.device_cache import DeviceCache
from edgespec_runtime.engines.executor import Executor, Tensor, sized
from edgespec_runtime.engines.memory import SIZES, Memory, aligned, pieces, shaped

MASK = "tree_mask"
PAST = "past_length"
RECORDED = 128  # rows; calls of a prompt are longer, and seldom the same


@dataclass(frozen=True)
class Form:
    """What calls with the same buffers have in common."""

    rows: int
    """Rows of the graph, padding included."""
    last_only: bool
    noise: tuple[int, int]
    """Rows and columns of the noise; a single column: none, but zeros."""


class DeviceCall:
    """The buffers and the bound graph of one form over one cache."""

    def __init__(
        self,
        memory: Memory,
        executor: Executor,
        spec: GraphSpec,
        cache: DeviceCache,
        form: Form,
        outputs: Sequence[str],
    ) -> None:
        self.form = form
        self._memory = memory
        self._spec = spec
        self._span = str(spec.meta["mask_span"])
        capacity = cache.capacity
        columns = capacity + (form.rows if self._span == "behind" else 0)
        sizes = {
            "B": 1, "S": form.rows, "R": 1 if form.last_only else form.rows,
            "C": capacity, "T": columns, "N": form.noise[0], "W": form.noise[1],
        }  # fmt: skip
        given = [t for t in spec.inputs if not t.name.startswith("past_") or t.name == PAST]
        given.sort(key=lambda tensor: tensor.name == MASK)
        self._place_inputs(given, sizes)
        known = {tensor.name: tensor for tensor in spec.outputs}
        self._place_outputs([known[name] for name in outputs], sizes)
        self._place_new_rows(cache)
        inputs, written = self._cache_tensors(cache)
        self._call = executor.prepare(
            [*self._inputs.values(), *inputs],
            [*self._outputs.values(), *written],
            steady=self._span != "total" and form.rows <= RECORDED,
        )

    # --- buffers

    def _place_inputs(self, specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> None:
        shapes = [sized(tensor, sizes) for tensor in specs]
        lengths = [_bytes(t.dtype, shape) for t, shape in zip(specs, shapes, strict=True)]
        total = sum(aligned(length) for length in lengths)
        self._staged = self._memory.pinned(total)
        self._given = self._memory.allocate(total)
        parts = pieces(self._staged, lengths)
        self._inputs: dict[str, Tensor] = {}
        offset = 0
        for tensor, shape, part in zip(specs, shapes, parts, strict=True):
            host = shaped(part, tensor.dtype, shape)
            pointer = self._given.pointer + offset
            self._inputs[tensor.name] = Tensor(tensor.name, tensor.dtype, shape, pointer, host)
            offset += aligned(len(part))
        self._mask_start = total - aligned(len(parts[-1]))

    def _place_outputs(self, specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> None:
        self._outputs: dict[str, Tensor] = {}
        self._padded: set[str] = set()
        self._blocks = []
        for tensor in specs:
            shape = sized(tensor, sizes)
            size = _bytes(tensor.dtype, shape)
            block = self._memory.allocate(size)
            host = shaped(self._memory.pinned(size), tensor.dtype, shape)
            self._blocks.append(block)
            self._outputs[tensor.name] = Tensor(
                tensor.name, tensor.dtype, shape, block.pointer, host
            )
            if tensor.axes[1] == "S" or (tensor.axes[1] == "R" and not self.form.last_only):
                self._padded.add(tensor.name)

    def _place_new_rows(self, cache: DeviceCache) -> None:
        """Where a graph that does not write its cache leaves the new rows."""
        self._new_rows = None
        if self._span == "behind":
            size = cache.shape.slices * self.form.rows * cache.shape.row
            self._new_rows = self._memory.allocate(size)

    def _cache_tensors(self, cache: DeviceCache) -> tuple[list[Tensor], list[Tensor]]:
        shape = (1, cache.shape.kv_heads, cache.capacity, cache.shape.head_dim)
        dtype = cache.shape.dtype
        where = dict(cache.pointers())
        given = [Tensor(f"past_{name}", dtype, shape, at) for name, at in where.items()]
        if self._new_rows is not None:
            fresh = (1, cache.shape.kv_heads, self.form.rows, cache.shape.head_dim)
            size = _bytes(dtype, fresh)
            at = self._new_rows.pointer
            return given, [
                Tensor(f"new_{name}", dtype, fresh, at + i * size) for i, name in enumerate(where)
            ]
        # A chain graph has one present per step, all in one buffer.
        names = [t.name for t in self._spec.outputs if t.name.startswith("present_")]
        return given, [Tensor(n, dtype, shape, where[_slice(n)]) for n in names]

    # --- one run

    def fill(self, name: str, rows: Array, padding: float = 0) -> None:
        """Stages ``rows`` [n, ...] as the leading ones of that input's [1, rows, ...]."""
        host = self._inputs[name].host
        assert host is not None
        host[0, : len(rows)] = rows
        host[0, len(rows) :] = padding

    def put(self, name: str, value: Array | float) -> None:
        """Stages all of an input."""
        host = self._inputs[name].host
        assert host is not None
        host[...] = value

    def mask(self, mask: Array, used: int) -> None:
        """Stages [n, used + n] as the graph wants it; padding rows see no more than themselves,
        as a row that sees nothing has no softmax."""
        rows, padded = len(mask), self.form.rows
        tensor = self._inputs[MASK]
        assert tensor.host is not None
        flat = tensor.host.reshape(-1)
        if self._span == "total":
            columns = used + padded
            seen = flat[: padded * columns].reshape(padded, columns)
        else:
            seen = tensor.host[0, 0]
            columns = seen.shape[1]
        new = columns - padded if self._span == "behind" else used
        seen[:] = False
        seen[:rows, :used] = mask[:, :used]
        seen[:rows, new : new + rows] = mask[:, used:]
        for row in range(rows, padded):
            seen[row, new + row] = True
        self._masked = Tensor(MASK, "bool", (1, 1, padded, columns), tensor.pointer, seen)

    def run(self, cache: DeviceCache, rows: int) -> list[Array]:
        """Uploads, runs, and reads the outputs of the leading ``rows`` rows; waits once."""
        assert self._masked.host is not None
        end = self._mask_start + self._masked.host.size
        self._memory.upload(self._given.pointer, self._staged[:end])
        self._call.run((self._masked,) if self._span == "total" else ())
        if self._new_rows is not None:
            pitch = self.form.rows * cache.shape.row
            cache.append(self._new_rows.pointer, pitch, rows)
        found = [self._read(tensor, rows) for tensor in self._outputs.values()]
        self._memory.synchronise()
        return found

    def _read(self, tensor: Tensor, rows: int) -> Array:
        assert tensor.host is not None
        part: Array = tensor.host[0, :rows] if tensor.name in self._padded else tensor.host[0]
        self._memory.download(part, tensor.pointer)
        return part


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    size = SIZES[dtype]
    for axis in shape:
        size *= axis
    return size


def _slice(present: str) -> str:
    """ "present_key.3.1" -> "key.3"."""
    kind, layer = present.removeprefix("present_").split(".")[:2]
    return f"{kind}.{layer}"
