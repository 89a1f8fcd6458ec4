"""`edgespec build --parse-only`: what would be refused, without building anything."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import EngineError
from edgespec.nvidia import TensorRT, find_tensorrt
from edgespec_export.tensorrt.build import (
    BuildRequest,
    choose_flavour,
    chosen_graphs,
    request_sizes,
)
from edgespec_export.tensorrt.graph import read_source
from edgespec_export.tensorrt.network import parse
from edgespec_export.tensorrt.operators import check_operators
from edgespec_export.tensorrt.shapes import static_axes

TABLE = "operator table of TensorRT 10.3"


@dataclass(frozen=True)
class Checked:
    """One graph and what was found in it."""

    role: str
    by: str
    """What judged it: a library and its version, or the operator table."""
    problems: tuple[str, ...]


def check_graphs(request: BuildRequest) -> list[Checked]:
    """Parses every graph with the TensorRT that is there, and checks portable ones against the
    operators of 10.3 too; those are checked even where there is no TensorRT.

    Raises InputError; EngineError where there is no TensorRT to parse a native flavour.
    """
    bundle = read_bundle(request.bundle)
    tensorrt, missing = _library(request.library)
    flavour = choose_flavour(bundle, tensorrt, request.flavour)
    if tensorrt is None and flavour.lowering != "portable":
        raise missing
    return [row for role in _judge(bundle.only(flavour), tensorrt, request) for row in role]


def _judge(bundle: Bundle, tensorrt: TensorRT | None, request: BuildRequest) -> list[list[Checked]]:
    sizes = request_sizes(bundle, request, tensorrt)
    found = []
    for graph in chosen_graphs(bundle, request.roles):
        source = read_source(bundle, graph, static_axes(graph, sizes))
        rows = []
        if tensorrt:
            problems: tuple[str, ...] = ()
            try:
                parse(tensorrt, source)
            except EngineError as error:
                problems = (str(error),)
            rows.append(Checked(graph.role, f"{tensorrt.library} {tensorrt.version}", problems))
        if graph.lowering == "portable":
            listed = tuple(str(problem) for problem in check_operators(source.model))
            rows.append(Checked(graph.role, TABLE, listed))
        found.append(rows)
    return found


def _library(name: str) -> tuple[TensorRT | None, EngineError]:
    try:
        return find_tensorrt(name), EngineError()
    except EngineError as error:
        return None, error
