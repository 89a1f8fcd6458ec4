"""One graph to one plan: parse, set what the machine is, build; every refusal names the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgespec.engines import Profile
from edgespec.errors import ConfigError, EngineError
from edgespec.nvidia import TensorRT
from edgespec_export.tensorrt.graph import Source
from edgespec_export.tensorrt.listening import (
    NO_FUSED_KERNEL,
    OUT_OF_MEMORY,
    Log,
    Tell,
    progress_monitor,
)

FLAGS: Mapping[str, str] = {
    "refit": "REFIT",
    "strip": "STRIP_PLAN",
    "version-compatible": "VERSION_COMPATIBLE",
    "weight-streaming": "WEIGHT_STREAMING",
}
"""Flags of `edgespec build` to TensorRT's names."""

NATIVE_FROM = (10, 15)
"""The first TensorRT whose parser has RotaryEmbedding, RMSNormalization and TensorScatter."""
STRONGLY_TYPED = "STRONGLY_TYPED"
EXPLICIT_BATCH = "EXPLICIT_BATCH"


@dataclass(frozen=True)
class Settings:
    """How plans are built, the same for all graphs of one call."""

    flags: tuple[str, ...] = ()
    workspace_mb: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    """Only for TensorRT-RTX: without them the GPU of this machine."""
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Network:
    """A parsed graph; ``builder`` and ``parser`` own what it refers to."""

    value: Any
    builder: Any
    parser: Any
    log: Log


def parse(tensorrt: TensorRT, source: Source) -> Network:
    """The graph as a strongly typed network. Raises EngineError naming the node that is refused,
    and the lowering that would do."""
    module, log = tensorrt.module, Log()
    builder = module.Builder(log.listener(module))
    network = builder.create_network(network_flags(module))
    parser = module.OnnxParser(network, builder.logger)
    if not parser.parse(source.serialized, str(source.path)):
        raise EngineError(_refusal(tensorrt, source, parser, log))
    return Network(network, builder, parser, log)


def network_flags(module: Any) -> int:
    """Strongly typed, with an explicit batch where TensorRT still asks for that (not from 11)."""
    flags = module.NetworkDefinitionCreationFlag
    known = [getattr(flags, name, None) for name in (STRONGLY_TYPED, EXPLICIT_BATCH)]
    return sum(1 << int(flag) for flag in known if flag is not None)


def check_settings(tensorrt: TensorRT, settings: Settings) -> None:
    """Raises ConfigError for what this TensorRT does not have."""
    name = f"{tensorrt.library} {tensorrt.version}"
    for flag in settings.flags:
        if not hasattr(tensorrt.module.BuilderFlag, FLAGS[flag]):
            raise ConfigError(f"--{flag}: {name} has no such flag; leave it out")
    capabilities = _capabilities(tensorrt.module)
    if settings.compute_capabilities and not capabilities:
        raise ConfigError(
            f"--compute-capability: {name} builds for the GPU of this machine alone; leave it out, "
            "or use --library tensorrt_rtx"
        )
    for asked in settings.compute_capabilities:
        if asked not in capabilities:
            raise ConfigError(
                f"--compute-capability {asked}: {name} builds for {', '.join(capabilities)}"
            )
    if settings.timing_cache and tensorrt.library == "tensorrt_rtx":
        raise ConfigError(f"--timing-cache: {name} times nothing when it builds; leave it out")


def _capabilities(module: Any) -> dict[str, Any]:
    """Compute capabilities that a TensorRT can be told to build for: "8.6" to its own value."""
    kind = getattr(module, "ComputeCapability", None)
    members = dict(getattr(kind, "__members__", {}))
    return {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in members.items()
        if name.startswith("SM") and name[2:].isdigit()
    }


def build_plan(
    tensorrt: TensorRT,
    source: Source,
    profiles: Sequence[Profile],
    settings: Settings,
    tell: Tell = lambda phase, share: None,
) -> tuple[Any, bool]:
    """The serialised engine (a buffer), and whether attention had to be taken apart for it.

    Attention without a fused kernel (float32, uncommon head sizes) is refused by TensorRT unless
    marked decomposable; that is tried second, so that the fast form is never lost silently.
    Raises EngineError naming graph and node.
    """
    for decomposed in (False, True):
        network = parse(tensorrt, source)
        if decomposed:
            _mark_decomposable(tensorrt.module, network.value)
        plan = _build(tensorrt, network, source, profiles, settings, tell)
        if plan is not None:
            return plan, decomposed
        if not network.log.said(NO_FUSED_KERNEL):
            break
    raise EngineError(_failure(tensorrt, source, network.log))


def _build(
    tensorrt: TensorRT,
    network: Network,
    source: Source,
    profiles: Sequence[Profile],
    settings: Settings,
    tell: Tell,
) -> Any | None:
    module = tensorrt.module
    config = network.builder.create_builder_config()
    for flag in settings.flags:
        config.set_flag(getattr(module.BuilderFlag, FLAGS[flag]))
    if settings.workspace_mb:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    known = _capabilities(module)
    if settings.compute_capabilities:
        config.num_compute_capabilities = len(settings.compute_capabilities)
        for index, name in enumerate(settings.compute_capabilities):
            config.set_compute_capability(known[name], index)
    config.progress_monitor = progress_monitor(module, tell)
    for profile in profiles:
        config.add_optimization_profile(_profile(network, profile, source))
    if settings.timing_cache:
        _use_timing_cache(config, settings.timing_cache)
    plan = network.builder.build_serialized_network(network.value, config)
    if plan is not None and settings.timing_cache:
        _keep_timing_cache(config, settings.timing_cache)
    return plan


def _profile(network: Network, profile: Profile, source: Source) -> Any:
    made = network.builder.create_optimization_profile()
    present = {network.value.get_input(i).name for i in range(network.value.num_inputs)}
    for name, span in profile.inputs.items():
        if name not in present:
            raise EngineError(
                f"{source.spec.file} has no input '{name}', which the manifest lists; "
                "export the bundle again"
            )
        made.set_shape(name, span.least, span.best, span.most)
    return made


def _mark_decomposable(module: Any, network: Any) -> None:
    """Lets every attention of the network be taken apart."""
    attention = module.LayerType.ATTENTION_INPUT
    layers = (network.get_layer(index) for index in range(network.num_layers))
    for layer in [layer for layer in layers if layer.type == attention]:
        layer.__class__ = module.IAttentionInputLayer  # how its bindings tell kinds of layers
        layer.attention.decomposable = True


def _use_timing_cache(config: Any, path: Path) -> None:
    """What earlier builds measured; one of another TensorRT or GPU is not taken over by it."""
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"timing cache '{path}' is of another TensorRT or GPU; give another file, or remove it"
        )


def _keep_timing_cache(config: Any, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(memoryview(config.get_timing_cache().serialize()))
    partial.replace(path)


def _refusal(tensorrt: TensorRT, source: Source, parser: Any, log: Log) -> str:
    """Which node was refused, why, and what to export instead."""
    where = f"{tensorrt.library} {tensorrt.version} cannot parse {source.spec.file}"
    if not parser.num_errors:
        return f"{where}: {log.last()}"
    error = parser.get_error(0)
    name, operator = _node_of(error, source)
    what = " ".join(str(error.desc()).split())[:300]
    return f"{where}: node '{name}' ({operator}): {what}; {_remedy(tensorrt, source)}"


def _node_of(error: Any, source: Source) -> tuple[str, str]:
    """Name and operator of the refused node, by its index where the parser names none."""
    name, operator = str(error.node_name()), str(error.node_operator())
    index, nodes = int(error.node()), source.model.graph.node
    if not name and 0 <= index < len(nodes):
        return nodes[index].name, nodes[index].op_type
    return name, operator


def _remedy(tensorrt: TensorRT, source: Source) -> str:
    """The lowering whose operators this TensorRT has."""
    precision = source.spec.precision
    new = tensorrt.library == "tensorrt_rtx" or tensorrt.numbers >= NATIVE_FROM
    lowering = "native" if new else "portable"
    if source.spec.lowering == lowering:
        return f"it should take lowering '{lowering}': please report this with the bundle's recipe"
    return f"export the bundle with --lowering {lowering}:{precision}"


def _failure(tensorrt: TensorRT, source: Source, log: Log) -> str:
    """Why a parsed network was not built, with the nodes that TensorRT speaks of."""
    where = f"{tensorrt.library} {tensorrt.version} cannot build {source.spec.file}"
    if log.said(*OUT_OF_MEMORY):
        return (
            f"{where}: too little memory ({log.last()}); end other programs, add swap, or give "
            "a smaller --context, --prefill-rows or --workspace-mb, or export a smaller precision"
        )
    text = "\n".join(log.errors)
    named = [node.name for node in source.model.graph.node if node.name and _says(text, node.name)]
    nodes = f"nodes {', '.join(named[:4])}: " if named else ""
    return f"{where}: {nodes}{log.last()}"


def _says(text: str, name: str) -> bool:
    at = text.find(name)
    return at >= 0 and not text[at + len(name) : at + len(name) + 1].isalnum()
