"""TensorRT releases that cannot be run here, as far as their Python bindings tell of themselves.

``tensorrt_api.json`` records what names a release has, and how that was read. A module made from it
has those names and no others: code that asks for one that a release lacks fails as it would there.
What its methods do is the least that lets a build go from end to end; nothing is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from edgespec.nvidia import TensorRT

RECORD: Mapping[str, Any] = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())
VERSIONS: tuple[str, ...] = tuple(RECORD["versions"])
PLAN = b"a plan"


def enumeration(version: str, name: str) -> list[str]:
    """Members of an enumeration in that release."""
    return list(RECORD["versions"][version]["enumerations"][name] or ())


def recorded(version: str) -> TensorRT:
    """The release as a module. ``module.calls`` lists what was called, with its arguments."""
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module.calls = []
    for name in RECORD["versions"][version]["enumerations"]:
        members = enumeration(version, name)
        if members:
            setattr(module, name, IntEnum(name, members, start=0))
    for name, members in RECORD["versions"][version]["classes"].items():
        if members is not None:
            setattr(module, name, _class(module, name, members))
    module.ILogger = type("ILogger", (), {"Severity": IntEnum("Severity", LEVELS, start=0)})
    return TensorRT("tensorrt", version, module)


LEVELS = ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]
PROPERTIES: Mapping[str, Any] = {"logger": None, "num_errors": 0, "num_inputs": 0, "num_layers": 0}


def _class(module: Any, name: str, members: list[str]) -> type:
    """A class of that name with ``members`` alone; attributes it lacks can be neither read nor
    set."""
    results: Mapping[str, Callable[..., Any]] = {
        "create_network": lambda flags: module.INetworkDefinition(),
        "create_builder_config": lambda: module.IBuilderConfig(),
        "create_optimization_profile": lambda: module.IOptimizationProfile(),
        "build_serialized_network": lambda network, config: PLAN,
        "parse": lambda model, path: True,
        "create_timing_cache": lambda content: module.ITimingCache(),
        "get_timing_cache": lambda: module.ITimingCache(),
        "set_timing_cache": lambda cache, ignore_mismatch: True,
        "serialize": lambda: b"timings",
    }

    def method(member: str) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any) -> Any:
            module.calls.append((f"{name}.{member}", arguments))
            result = results.get(member)
            return result(*arguments) if result else None

        return call

    def set_known(self: Any, attribute: str, value: Any) -> None:
        if attribute not in members and not attribute.startswith("_"):
            raise AttributeError(f"{name} of TensorRT {module.__version__} has no {attribute}")
        object.__setattr__(self, attribute, value)

    body: dict[str, Any] = {"__init__": lambda self, *given: None, "__setattr__": set_known}
    for member in members:
        body[member] = PROPERTIES[member] if member in PROPERTIES else method(member)
    return type(name, (), body)
