"""One form of a decoder's call: so many rows, its buffers on both sides, and the bound graph."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.bundle import GraphSpec
from edgespec_runtime.engines.base import Array
from edgespec_runtime.engines.device_cache import DeviceCache
from edgespec_runtime.engines.executor import Executor, Tensor
from edgespec_runtime.engines.memory import Memory
from edgespec_runtime.engines.staging import Inputs, Outputs, bytes_of

MASK = "tree_mask"
PAST = "past_length"
RECORDED = 128  # rows; calls of a prompt are longer, and seldom the same


@dataclass(frozen=True)
class Form:
    """What calls with the same buffers have in common."""

    rows: int
    """Rows that are given to the graph, padding included."""
    last_only: bool
    noise: tuple[int, int]
    """Rows and columns of the noise; a single column: none, but zeros."""
    outputs: tuple[str, ...]


class DeviceCall:
    """The buffers and the bound graph of one form over one cache."""

    def __init__(
        self, memory: Memory, executor: Executor, spec: GraphSpec, cache: DeviceCache, form: Form
    ) -> None:
        self.form = form
        self._memory = memory
        self._span = str(spec.meta["mask_span"])
        capacity = cache.capacity
        columns = capacity + (form.rows if self._span == "behind" else 0)
        sizes = {
            "B": 1, "S": form.rows, "R": 1 if form.last_only else form.rows,
            "C": capacity, "T": columns, "N": form.noise[0], "W": form.noise[1],
        }  # fmt: skip
        given = [t for t in spec.inputs if t.name == PAST or not t.name.startswith("past_")]
        given.sort(key=lambda tensor: tensor.name == MASK)  # last, as it may be shorter
        known = {tensor.name: tensor for tensor in spec.outputs}
        asked = [known[name] for name in form.outputs]
        per_row = {"S"} if form.last_only else {"S", "R"}
        self._padded = {tensor.name for tensor in asked if tensor.axes[1] in per_row}
        self._inputs = Inputs(memory, given, sizes)
        self._outputs = Outputs(memory, asked, sizes)
        self._new = form.rows + int(spec.meta.get("steps", 1)) - 1
        behind = self._span == "behind"
        size = cache.slices * self._new * cache.row
        self._new_rows = memory.allocate(size) if behind else None
        self._call = executor.prepare(
            [*self._inputs.tensors.values(), *_past(cache)],
            [
                *self._outputs.tensors.values(),
                *(self._fresh(cache) if behind else _present(spec, cache)),
            ],
            steady=self._span != "total" and form.rows <= RECORDED,
        )

    def _fresh(self, cache: DeviceCache) -> list[Tensor]:
        """Where a graph that does not write its cache leaves the new rows: [layers, 2, 1, KV, new,
        D]."""
        assert self._new_rows is not None
        shape = (1, cache.shape.kv_heads, self._new, cache.shape.head_dim)
        size = bytes_of(cache.shape.dtype, shape)
        names = (name for name, _ in cache.pointers())
        return [
            Tensor(f"new_{name}", cache.shape.dtype, shape, self._new_rows.pointer + i * size)
            for i, name in enumerate(names)
        ]

    def fill(self, name: str, rows: Array) -> None:
        """Stages ``rows`` [n, ...] as the leading ones of that input's [1, rows, ...]; zeros behind
        them."""
        host = self._inputs.host(name)
        host[0, : len(rows)] = rows
        host[0, len(rows) :] = 0

    def put(self, name: str, value: Array | float) -> None:
        """Stages all of an input."""
        self._inputs.host(name)[...] = value

    def mask(self, mask: Array, used: int) -> None:
        """Stages [n, used + n] as the graph wants it; padding rows see no more than themselves, as
        a row that sees nothing has no softmax."""
        rows, padded = len(mask), self.form.rows
        tensor = self._inputs.tensors[MASK]
        whole = self._inputs.host(MASK)
        if self._span == "total":
            columns = used + padded
            seen = whole.reshape(-1)[: padded * columns].reshape(padded, columns)
        else:
            seen = whole[0, 0]
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
        self._inputs.upload(self._inputs.starts[MASK] + self._masked.host.size)
        self._call.run((self._masked,) if self._span == "total" else ())
        if self._new_rows is not None:
            pitch = self._new * cache.row
            cache.append(self._new_rows.pointer, pitch, rows + self._new - self.form.rows)
        found = [
            self._outputs.download(name, rows if name in self._padded else None)
            for name in self.form.outputs
        ]
        self._memory.synchronise()
        return found


def _past(cache: DeviceCache) -> list[Tensor]:
    return [
        Tensor(f"past_{name}", cache.shape.dtype, cache.slice_shape, at)
        for name, at in cache.pointers()
    ]


def _present(spec: GraphSpec, cache: DeviceCache) -> list[Tensor]:
    """The cache's own memory; a chain graph has one present per step, all in one buffer."""
    where = dict(cache.pointers())
    found = []
    for tensor in spec.outputs:
        if tensor.name.startswith("present_"):
            kind, layer = tensor.name.removeprefix("present_").split(".")[:2]
            at = where[f"{kind}.{layer}"]
            found.append(Tensor(tensor.name, cache.shape.dtype, cache.slice_shape, at))
    return found
