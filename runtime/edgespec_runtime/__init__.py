"""Bundles to text: numpy and one inference engine, never torch.

>>> import edgespec_runtime
>>> model = edgespec_runtime.load("my-bundle")                      # doctest: +SKIP
>>> for record in model.stream("cat.jpg", "What is this?"):         # doctest: +SKIP
...     print(record.text, end="", flush=True)

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgespec_runtime.entry import load
    from edgespec_runtime.model import Model
    from edgespec_runtime.records import Generation, Record, Stats

__all__ = ["Generation", "Model", "Record", "Stats", "load"]


def __getattr__(name: str) -> Any:
    if name == "Model":
        from edgespec_runtime.model import Model

        return Model
    if name == "load":
        from edgespec_runtime.entry import load

        return load
    if name in ("Generation", "Record", "Stats"):
        from edgespec_runtime import records

        return getattr(records, name)
    raise AttributeError(f"module 'edgespec_runtime' has no attribute '{name}'")
