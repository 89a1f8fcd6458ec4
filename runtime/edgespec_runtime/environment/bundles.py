"""The checks of a bundle and a profile on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgespec.bundle import Bundle, read_bundle
from edgespec.engines import BuiltEngines, check_runs_here, read_engines
from edgespec.errors import BundleError, ConfigError, EngineError
from edgespec.latency import bundle_facts, check_fits, profile_for, this_device
from edgespec_runtime.environment.check import Check, ok, problem, warning
from edgespec_runtime.environment.facts import Facts
from edgespec_runtime.environment.place import HERE

NATIVE_TENSORRT, PORTABLE_TENSORRT, NATIVE_ONNXRUNTIME = (10, 15), (10, 3), (1, 24)
"""The oldest releases that take the lowering."""


def bundle_checks(
    facts: Facts, path: str, profile: str = "", root: Path = HERE
) -> tuple[Check, ...]:
    """Of the bundle at ``path``, and of a profile for it where one is named."""
    try:
        bundle = read_bundle(path)
    except BundleError as error:
        return (problem("bundle", str(error)),)
    checks = [ok("bundle", f"{path}, {size_mb(bundle):,} MB, whole"), _flavours(facts, bundle)]
    checks += [*_engines(facts, bundle), _room(facts, bundle)]
    if profile:
        checks.append(_profile(bundle, profile, root))
    return tuple(checks)


def size_mb(bundle: Bundle) -> int:
    """Of all files, engines left out; megabytes of 2**20 bytes."""
    return sum(entry.size for entry in bundle.manifest.files.values()) >> 20


def runs(facts: Facts, lowering: str) -> tuple[str, ...]:
    """The engines here that take a lowering."""
    ort, tensorrt = facts.onnxruntime, facts.tensorrt
    names = []
    if ort.providers and (lowering != "native" or _numbers(ort.version) >= NATIVE_ONNXRUNTIME):
        names.append("onnxruntime")
    least = {"native": NATIVE_TENSORRT, "portable": PORTABLE_TENSORRT}.get(lowering)
    if not (least and facts.builds_engines):
        return tuple(names)
    if tensorrt.module and _numbers(tensorrt.library or tensorrt.module) >= least:
        names.append("TensorRT")
    if tensorrt.rtx:
        names.append("TensorRT-RTX")
    return tuple(names)


def _flavours(facts: Facts, bundle: Bundle) -> Check:
    """Whether an engine here takes one of the bundle's flavours, and whether it is the GPU's."""
    usable = {flavour: runs(facts, flavour.lowering) for flavour in bundle.manifest.flavours}
    has = ", ".join(map(str, usable))
    export = f"on the host: edgespec export --lowering {_wanted(facts)} ..."
    if not any(usable.values()):
        return problem("flavours", f"it has {has}, which no engine installed here takes", export)
    if facts.builds_engines and not any(
        name.startswith("TensorRT") for names in usable.values() for name in names
    ):
        return warning("flavours", f"it has {has}, which TensorRT here does not take", export)
    taken = (f"{flavour} by {' or '.join(by)}" for flavour, by in usable.items() if by)
    return ok("flavours", "; ".join(taken))


def _wanted(facts: Facts) -> str:
    """The lowering and precision for this machine's TensorRT, or for onnxruntime."""
    if not facts.builds_engines:
        return "ort"
    tensorrt = facts.tensorrt
    version = _numbers(tensorrt.library or tensorrt.module)
    native = bool(tensorrt.rtx) or version >= NATIVE_TENSORRT
    return "native:fp16" if native else "portable:fp16"


def _engines(facts: Facts, bundle: Bundle) -> Iterator[Check]:
    try:
        built = read_engines(bundle, check_hashes=False)
    except BundleError as error:
        yield problem("engines", str(error))
        return
    if not built and facts.builds_engines:
        command = f"edgespec build --bundle {bundle.path}"
        yield warning("engines", "TensorRT is here, and nothing was built for it", command)
    fitting = [item for item in built if not _misfit(facts, item)]
    if fitting:
        yield ok("engines", ", ".join(item.tag for item in fitting))
        return
    for item in built:
        yield problem("engines", _misfit(facts, item), item.rebuild_command())


def _misfit(facts: Facts, built: BuiltEngines) -> str:
    """Why engines do not run here; "" if they do."""
    tensorrt = facts.tensorrt
    version = tensorrt.library or tensorrt.module if built.library == "tensorrt" else tensorrt.rtx
    capability = facts.gpu.compute_capability if facts.gpu else ""
    if not version or not capability:
        missing = "its library" if not version else "a GPU"
        return f"'{built.tag}' was built, but {missing} is missing here"
    short = ".".join(version.split(".")[: len(built.version.split("."))])
    try:
        check_runs_here(built, built.library, short, capability)
    except EngineError as error:
        return str(error).rsplit("; run:", 1)[0]
    return ""


def _room(facts: Facts, bundle: Bundle) -> Check:
    """Whether the weights of the largest flavour fit; one runs."""
    memory, weights = facts.memory, _largest_mb(bundle)
    found = f"weights of {weights:,} MB, {memory.available_mb:,} MB of memory available"
    plan = f"edgespec plan --bundle {bundle.path}"
    plan += f" --device {facts.device}" if facts.device else " --device ..."
    if weights > memory.total_mb:
        return problem("room", f"{found} of {memory.total_mb:,}", plan)
    if weights > memory.available_mb:
        return warning("room", found, plan)
    return ok("room", found)


def _largest_mb(bundle: Bundle) -> int:
    """Weights of the flavour that reads most; those that it has no file of its own for, it shares
    with the first."""
    files = bundle.manifest.files
    sizes = [0]
    for flavour in bundle.manifest.flavours:
        graphs = bundle.only(flavour).manifest.graphs
        names = {f"{g.stem if f'{g.stem}.bin' in files else g.role}.bin" for g in graphs}
        sizes.append(sum(files[name].size for name in names if name in files))
    return max(sizes) >> 20


def _profile(bundle: Bundle, profile: str, root: Path) -> Check:
    try:
        given = profile_for(profile, bundle)
        check_fits(given, bundle=bundle_facts(bundle), device=this_device(root), path=profile)
    except ConfigError as error:
        command = f"edgespec profile --bundle {bundle.path} --out profile.yaml"
        return problem("profile", str(error).split(". Measure again:")[0], command)
    if given.kind == "estimate":
        return warning(
            "profile",
            f"{profile} is an estimate from a datasheet",
            f"edgespec profile --bundle {bundle.path} --out profile.yaml",
        )
    return ok("profile", f"{profile}, measured {given.created}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
