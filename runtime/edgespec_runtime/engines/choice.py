"""Which engine runs a bundle here, and which of its flavours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgespec.bundle import ENGINES as FOLDER
from edgespec.bundle import Bundle
from edgespec.engines import BuiltEngines, check_runs_here, parse_engines, read_engines
from edgespec.errors import BundleError, ConfigError, EdgespecError, EngineError
from edgespec.flavour import LOWERINGS, Flavour
from edgespec.nvidia import find_gpu, find_tensorrt

AUTO = "auto"
ENGINES = ("ort", "ort-cuda", "ort-tensorrt-rtx", "tensorrt", "tensorrt-rtx")
"""By name: ONNX Runtime on the CPU, with CUDA, with its TensorRT-RTX provider; engines that
`edgespec build` made, under either TensorRT."""
BUILT = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Engines that run what was built, and the library of each."""
ON_GPU = ("cuda", "native", "portable", "ort")
"""Lowerings by speed with ONNX Runtime on a GPU (docs/performance.md)."""
HALVES = ("fp16", "bf16", "int8", "int4", "fp32")
"""Precisions as a GPU likes them: half ones first, and of those the exacter ones."""


@dataclass(frozen=True)
class Choice:
    """An engine, the flavour it is to run, and why those."""

    engine: str
    flavour: Flavour
    why: str

    def __str__(self) -> str:
        return f"engine {self.engine}, flavour {self.flavour}: {self.why}"


def choose(bundle: Bundle, engine: str = AUTO, flavour: str | None = None) -> Choice:
    """What runs ``bundle`` on ``engine``, or with "auto" on the best one that can run it here:
    engines built for this GPU, CUDA, the CPU. ``flavour``: that one and no other.

    Raises ConfigError for names that do not exist, BundleError where the bundle has no flavour for
    the engine asked for, EngineError where that engine cannot run here.
    """
    if engine != AUTO and engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}'; there are: {AUTO}, {', '.join(ENGINES)}")
    there = bundle.manifest.flavours
    if flavour:
        default = there[0].precision if there else "fp32"
        there = bundle.only(Flavour.parse(flavour, default)).manifest.flavours
    if not there:
        return Choice("ort" if engine == AUTO else engine, Flavour("ort"), "there are no graphs")
    if engine != AUTO:
        return Choice(engine, _best(bundle, engine, there), _asked(there))
    why = "no GPU"
    if find_gpu() is not None:
        for name in ("tensorrt", "tensorrt-rtx", "ort-cuda"):
            why = _why_not(bundle, name, there)
            if not why:
                return Choice(name, _best(bundle, name, there), _asked(there, "the fastest here"))
    return Choice("ort", _best(bundle, "ort", there), _asked(there, why))


def flavours_for(engine: str = AUTO) -> tuple[Flavour, ...]:
    """What a bundle should hold to run on ``engine`` here."""
    if engine == "ort" or (engine == AUTO and why_no_cuda()):
        return (Flavour("ort"),)
    return (Flavour("cuda" if engine in (AUTO, "ort-cuda") else "native", "fp16"),)


def chosen(bundle: Bundle, engine: str = "ort") -> Bundle:
    """``bundle`` with the graphs that ``engine`` is to run, and no others."""
    return shown(bundle, choose(bundle, engine))


def shown(bundle: Bundle, choice: Choice) -> Bundle:
    """``bundle`` with the graphs of the flavour chosen, and no others."""
    return bundle.only(choice.flavour) if len(bundle.manifest.flavours) > 1 else bundle


def built_here(
    bundle: Bundle, engine: str, compute_capability: str, *, check_hashes: bool = True
) -> BuiltEngines:
    """What was built of the bundle's one flavour for the library of ``engine`` and a GPU of that
    compute capability. Raises EngineError, saying what builds it, where there is none."""
    library = BUILT[engine]
    version = find_tensorrt(library).version
    (flavour,) = bundle.manifest.flavours
    refusals = []
    for built in read_engines(bundle, check_hashes=check_hashes):
        if built.flavour != str(flavour) or built.library != library:
            continue
        try:
            check_runs_here(built, library, version, compute_capability)
        except EngineError as error:
            refusals.append(error)
        else:
            return built
    if refusals:
        raise refusals[0]
    raise EngineError(
        f"{bundle.path} has no engines of {flavour} for {engine}; run: edgespec build --bundle "
        f"{bundle.path} --flavour {flavour} --library {library}"
    )


def _best(bundle: Bundle, engine: str, there: Sequence[Flavour]) -> Flavour:
    """The flavour of ``there`` that ``engine`` runs best. Raises BundleError where it runs none."""
    fit = [flavour for flavour in there if _takes(engine, flavour)]
    if engine in BUILT:
        built = {found.flavour for found in _index(bundle) if found.library == BUILT[engine]}
        fit = [flavour for flavour in fit if str(flavour) in built] or fit
    if not fit:
        add = "cuda" if engine == "ort-cuda" else "native"
        raise BundleError(
            f"engine {engine} runs none of {', '.join(map(str, there))}; export {bundle.path} "
            f"again with --lowering {add}:fp16 as well"
        )
    if engine == "ort":  # its own operators, and float32 before anything else
        return min(fit, key=lambda f: (f.precision != "fp32", LOWERINGS.index(f.lowering)))
    return min(fit, key=lambda f: (ON_GPU.index(f.lowering), HALVES.index(f.precision)))


def _takes(engine: str, flavour: Flavour) -> bool:
    if engine == "ort":
        return True
    own = flavour.lowering in ("ort", "cuda")  # ONNX Runtime's own operators
    if engine == "ort-cuda":  # whose GroupQueryAttention has no float32 there
        return not own or flavour.precision != "fp32"
    return not own


def _why_not(bundle: Bundle, engine: str, there: Sequence[Flavour]) -> str:
    """Why that engine cannot run one of ``there`` here; empty where it can."""
    try:
        flavour = _best(bundle, engine, there)
        if engine in BUILT:
            if not _index(bundle):
                return "no engines were built"
            gpu = find_gpu()
            if gpu is None:
                return "no GPU"
            built_here(bundle.only(flavour), engine, gpu.compute_capability, check_hashes=False)
            return ""
        return why_no_cuda()
    except EdgespecError as error:
        return str(error)


def why_no_cuda() -> str:
    """Why ONNX Runtime has no GPU here; empty where it has one."""
    from edgespec_runtime.engines.cuda import cuda_runtime
    from edgespec_runtime.engines.ort_device import CUDA, import_ort

    if find_gpu() is None:
        return "no GPU"
    try:
        if CUDA not in import_ort().get_available_providers():
            return "this onnxruntime has no CUDA; for the GPU install onnxruntime-gpu instead"
        cuda_runtime()
    except EdgespecError as error:
        return str(error)
    return ""


def _index(bundle: Bundle) -> list[BuiltEngines]:
    """What was built, unchecked."""
    folder = bundle.path / FOLDER
    if not folder.is_dir():
        return []
    inside = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return [parse_engines(path) for path in inside if not path.name.startswith(".")]


def _asked(there: Sequence[Flavour], why: str = "as asked for") -> str:
    """``why``, and what the flavour was chosen from."""
    return f"{why}; of {', '.join(map(str, there))}" if len(there) > 1 else why
