"""Second moments of what a decoder's layers read, layer by layer, over calibration rows.

Each layer is built by itself in float32 and run by ONNX Runtime over what the layer before gave:
memory is one layer, its moments and the rows, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np

from edgespec.errors import ConfigError
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import TextGeometry
from edgespec_export.graphs.decoder import begin_step
from edgespec_export.graphs.layers import block, input_scale
from edgespec_export.lowerings.base import Cache
from edgespec_export.lowerings.ort import OrtLowering
from edgespec_export.precision import FP32
from edgespec_export.quantise.gptq import Doubles, Root, root_of
from edgespec_export.quantise.matrix import Floats

HELD = 2
ROWS = "rows"
"""The output of a layer's graph that the next layer reads."""


class LayerMoments:
    """``rows``: sequences [S, H] as they enter the first layer, asked for once.

    Weights are written layer by layer, by threads that run ahead a little, so the moments of HELD
    layers are kept: asking for an earlier one begins again.
    """

    def __init__(
        self, checkpoint: Checkpoint, text: TextGeometry, rows: Callable[[], Sequence[Floats]]
    ) -> None:
        if text.head_dim % 16:
            raise ConfigError(
                f"calibration needs a head size that is a multiple of 16, this model has "
                f"{text.head_dim}; leave --calibration out"
            )
        self._checkpoint = checkpoint
        self._text = text
        self._given = rows
        self._first: Sequence[Floats] | None = None
        self._rows: list[Floats] = []
        self._layer = -1
        self._moments: dict[int, dict[str, Floats]] = {}
        self._lock = Lock()

    def root(self, name: str) -> Root | None:
        """See ``precision.Moments``."""
        layer = _layer_of(name)
        if layer is None:
            return None
        with self._lock:
            moments = self._of(layer).get(name)
            return None if moments is None else root_of(moments)

    def _of(self, layer: int) -> dict[str, Floats]:
        """Moments of a layer's products, by their names."""
        if self._first is None:
            self._first = self._given()
        if layer not in self._moments and layer <= self._layer or self._layer < 0:
            self._rows, self._layer = list(self._first), -1
            self._moments.clear()
        while self._layer < layer:
            self._layer += 1
            self._moments[self._layer] = self._run(self._layer)
            self._moments.pop(self._layer - HELD, None)
        return self._moments[layer]

    def _run(self, layer: int) -> dict[str, Floats]:
        """Moves the rows through a layer; returns the moments of its products."""
        with TemporaryDirectory() as folder:
            session, outputs = self._open(layer, Path(folder))
            found: dict[str, Doubles] = {}
            for number, rows in enumerate(self._rows):
                values = session.run([*outputs.values(), ROWS], self._feeds(rows))
                self._rows[number] = values.pop()[0]
                for name, value in zip(outputs, values, strict=True):
                    read = value.reshape(-1, value.shape[-1])
                    total = found.setdefault(name, np.zeros((read.shape[1],) * 2))
                    total += read.T @ read
        return {name: total.astype(np.float32) for name, total in found.items()}

    def _open(self, layer: int, folder: Path) -> tuple[Any, dict[str, str]]:
        """A session of one layer, and its outputs by the products that read them."""
        import onnxruntime

        lowering, alone = OrtLowering(FP32), replace(self._text, layers=1)
        b = lowering.graph("layer")
        x, step, caches = begin_step(b, alone, lowering)

        def attend(layer: int, qkv: str) -> tuple[str, Cache]:
            return lowering.attention(b, qkv, caches[0], alone, step)

        scale = input_scale(b, self._checkpoint, layer)
        normed = lowering.rms_norm(b, x, scale, alone.eps)
        added, stream, _ = block(b, self._checkpoint, alone, lowering, layer, normed, x, attend)
        outputs = {}
        for number, (name, value) in enumerate(b.fed.items()):
            outputs[name] = f"read.{number}"
            b.output(value, outputs[name], "float32", ["B", "S", f"K.{number}"])
        b.output(b.node("Add", added, stream), ROWS, "float32", ["B", "S", alone.hidden])
        b.save(folder, "layer")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = str(folder / "layer.onnx")
        return onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        ), outputs

    def _feeds(self, rows: Floats) -> dict[str, Any]:
        count, text = len(rows), self._text
        empty = np.zeros((1, text.kv_heads, count, text.head_dim), dtype=np.float32)
        return {
            "inputs_embeds": rows[None],
            "position_ids": np.arange(count)[None],
            "tree_mask": np.tri(count, dtype=np.bool_)[None, None],
            "past_length": np.zeros(1, dtype=np.int64),
            "past_key.0": empty,
            "past_value.0": empty.copy(),
        }


def _layer_of(name: str) -> int | None:
    """``text.layers.3.qkv.weight`` -> 3."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["text", "layers"] else None
