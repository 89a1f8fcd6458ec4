"""Bundles to text: numpy and one inference engine, never torch.

>>> import edgespec_runtime
>>> model = edgespec_runtime.load("my-bundle")                      # doctest: +SKIP
>>> for record in model.stream("cat.jpg", "What is this?"):         # doctest: +SKIP
...     print(record.text, end="", flush=True)
"""

from __future__ import annotations

from edgespec_runtime.model import Model, load
from edgespec_runtime.records import Generation, Record, Stats

__all__ = ["Generation", "Model", "Record", "Stats", "load"]
