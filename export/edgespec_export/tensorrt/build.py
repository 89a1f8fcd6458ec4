"""`edgespec build`: the graphs of one flavour to engines beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from edgespec.bundle import ENGINES, Bundle, GraphSpec, read_bundle
from edgespec.engines import STEPS, BuiltEngines, Plan
from edgespec.errors import BundleError, ConfigError, EngineError
from edgespec.flavour import Flavour
from edgespec.nvidia import Gpu, TensorRT, find_gpu, find_tensorrt, l4t_release
from edgespec_export.tensorrt.folder import Workshop, sole_builder
from edgespec_export.tensorrt.graph import Source, read_source
from edgespec_export.tensorrt.isolated import Job, run_job
from edgespec_export.tensorrt.network import NATIVE_FROM, Settings, check_settings
from edgespec_export.tensorrt.shapes import NEEDED, Sizes, profiles_of, sizes_of, static_axes

PACKED = "it splits rows by counts that come with the call, which TensorRT cannot"
CHAIN = "it writes a cache once per step, and TensorRT updates one once per engine"

WEIGHTS_IN_MEMORY = 2
"""Copies of the weights that a build holds: the parser's and the plan's (measured with
TensorRT-RTX; TensorRT's tactics may want more)."""


@dataclass(frozen=True)
class BuildRequest:
    """What `edgespec build` was asked for."""

    bundle: Path
    flavour: str | None = None
    context: int | None = None
    prefill_rows: int | None = None
    max_rows: int | None = None
    profiles: tuple[str, ...] = ()
    """Of the step graphs; without any what suits the library (``suitable_profiles``)."""
    roles: tuple[str, ...] = ()
    """Graphs to build; all of the flavour where there is none."""
    library: str = "auto"
    settings: Settings = Settings()
    overwrite: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a build gave."""

    engines: BuiltEngines
    seconds: dict[str, float]
    """Per role that was built in this call; the others were there."""


Progress = Callable[[str, str, float], None]
"""Told (role, phase, share done of that phase)."""


def build_engines(
    request: BuildRequest,
    progress: Progress = lambda role, phase, share: None,
    announce: Callable[[BuiltEngines, Sequence[str]], None] = lambda engines, roles: None,
) -> Outcome:
    """Builds what is missing of the engines asked for; published when all are there.

    ``announce`` is told what will be, and the roles still to build. Raises InputError for what
    cannot be done as asked, EngineError for what TensorRT or the machine refuses.
    """
    bundle = read_bundle(request.bundle)
    tensorrt = find_tensorrt(request.library)
    bundle = bundle.only(choose_flavour(bundle, tensorrt, request.flavour))
    check_settings(tensorrt, request.settings)
    graphs = chosen_graphs(bundle, request.roles)
    sizes = request_sizes(bundle, request, tensorrt)
    wanted = _wanted(bundle, tensorrt, sizes, request.settings, find_gpu())
    seconds = {}
    with sole_builder(bundle, wanted.folder):
        workshop = Workshop(bundle, wanted)
        workshop.take_over(request.overwrite)
        kept = {plan.role for plan in workshop.plans}
        missing = [g for g in graphs if g.role not in kept]
        announce(wanted, [graph.role for graph in missing])
        for graph in missing:
            started = perf_counter()
            _build_one(workshop, bundle, graph, tensorrt, sizes, request.settings, progress)
            seconds[graph.role] = perf_counter() - started
        return Outcome(workshop.publish(), seconds)


def request_sizes(bundle: Bundle, request: BuildRequest, tensorrt: TensorRT | None) -> Sizes:
    """How large everything gets. Raises ConfigError."""
    return sizes_of(
        bundle.manifest,
        request.context,
        request.prefill_rows,
        request.max_rows,
        request.profiles or suitable_profiles(tensorrt),
    )


def suitable_profiles(tensorrt: TensorRT | None) -> tuple[str, ...]:
    """All of them, but with TensorRT-RTX no profile for single rows: it would store the weights a
    second time (measured, docs/tensorrt.md), and it compiles kernels for the sizes it meets."""
    rtx = tensorrt is not None and tensorrt.library == "tensorrt_rtx"
    return NEEDED if rtx else STEPS


def _build_one(
    workshop: Workshop,
    bundle: Bundle,
    graph: GraphSpec,
    tensorrt: TensorRT,
    sizes: Sizes,
    settings: Settings,
    progress: Progress,
) -> None:
    static, profiles = static_axes(graph, sizes), profiles_of(graph, sizes)
    source = read_source(bundle, graph, static)
    check_memory(source)
    file = f"{graph.role}.plan"
    job = Job(
        bundle=bundle.path,
        flavour=graph.flavour,
        role=graph.role,
        static=static,
        profiles=profiles,
        library=tensorrt.library,
        settings=settings,
        out=workshop.draft(file),
    )
    decomposed = run_job(job, partial(progress, graph.role))
    digests = {name: bundle.manifest.files[name].sha256 for name in source.files}
    workshop.add(Plan(graph.role, file, 0, "", digests, profiles, decomposed))


def choose_flavour(bundle: Bundle, tensorrt: TensorRT | None, asked: str | None) -> Flavour:
    """The flavour asked for; else the first one of the lowering that this TensorRT is best with.

    Raises BundleError where the bundle has none for TensorRT, ConfigError for one of ONNX
    Runtime's own operators.
    """
    there = bundle.manifest.flavours
    if asked:
        flavour = Flavour.parse(asked, next((f.precision for f in there), "fp32"))
        if flavour.lowering == "ort":
            raise ConfigError(f"--flavour {asked} is ONNX Runtime's alone; give native or portable")
        return flavour
    native = not tensorrt or tensorrt.library == "tensorrt_rtx" or tensorrt.numbers >= NATIVE_FROM
    order = ("native", "portable") if native else ("portable",)
    found = [f for lowering in order for f in there if f.lowering == lowering]
    if not found:
        raise BundleError(
            f"{bundle.path} has no graphs for TensorRT, only {', '.join(map(str, there))}; "
            f"export it again with --lowering {order[0]}:fp16"
        )
    return found[0]


def chosen_graphs(bundle: Bundle, roles: Sequence[str]) -> list[GraphSpec]:
    """The graphs of those roles, or all that TensorRT can be given. Raises ConfigError."""
    graphs = {graph.role: graph for graph in bundle.manifest.graphs}
    for role in roles:
        if role not in graphs:
            raise ConfigError(f"--role {role}: the bundle's graphs are {', '.join(graphs)}")
        if left_out(graphs[role]):
            raise ConfigError(f"--role {role}: no engine is built of it: {left_out(graphs[role])}")
    return [g for role, g in graphs.items() if (role in roles if roles else not left_out(g))]


def left_out(graph: GraphSpec) -> str | None:
    """Why TensorRT is not given a graph; the runtime calls a step graph instead."""
    if graph.role == "target_packed":
        return PACKED
    many = int(graph.meta.get("steps", 1)) > 1
    return CHAIN if many and graph.meta["mask_span"] == "capacity" else None


def check_memory(source: Source, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Raises EngineError where building would not fit into memory and swap together."""
    try:
        text = meminfo.read_text(encoding="utf-8")
    except OSError:
        return
    found = dict(re.findall(r"^(MemAvailable|SwapFree):\s+(\d+) kB", text, re.MULTILINE))
    free = sum(int(kilobytes) for kilobytes in found.values()) << 10
    needed = WEIGHTS_IN_MEMORY * source.weight_bytes
    if found and needed > free:
        raise EngineError(
            f"building {source.spec.file} takes about {needed / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free, swap included; end other programs, add swap, or export "
            "a smaller precision (--lowering native:int4)"
        )


def _wanted(
    bundle: Bundle, tensorrt: TensorRT, sizes: Sizes, settings: Settings, gpu: Gpu | None
) -> BuiltEngines:
    """What the finished engines will say of themselves, without any plan yet."""
    capabilities = settings.compute_capabilities or ((gpu.compute_capability,) if gpu else ())
    if not capabilities:
        more = ""
        if tensorrt.library == "tensorrt_rtx":
            more = "; without one, name what to build for, e.g. --compute-capability 8.6"
        raise EngineError(f"no NVIDIA GPU is found, and engines are built for one{more}")
    (flavour,) = bundle.manifest.flavours
    blank = BuiltEngines(
        folder=Path(),
        library=tensorrt.library,
        version=tensorrt.version,
        compute_capabilities=capabilities,
        device=gpu.name if gpu and not settings.compute_capabilities else None,
        l4t=l4t_release(),
        flavour=str(flavour),
        context=sizes.context,
        capacity=sizes.capacity,
        prefill_rows=sizes.prefill_rows,
        max_rows=sizes.max_rows,
        profiles=sizes.profiles,
        flags=tuple(sorted(settings.flags)),
        plans=(),
    )
    return replace(blank, folder=bundle.path / ENGINES / _tag(blank, flavour))


def _tag(built: BuiltEngines, flavour: Flavour) -> str:
    """E.g. ``tensorrt-10.3.0-sm87-native-fp16``."""
    chips = "+".join(f"sm{name.replace('.', '')}" for name in built.compute_capabilities)
    return f"{built.library}-{built.version}-{chips}-{flavour.label}"
