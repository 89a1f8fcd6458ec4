"""TensorRT engines beside a bundle's graphs: what was built, from which files, for which machine.

``engines/<tag>/`` holds one ``<role>.plan`` per graph and ``engines.json``. A plan runs where it
was built for and nowhere else, so it is no part of what the manifest lists: `edgespec build` makes
it on the device, and a bundle without it is whole. Knows files and versions; knows no TensorRT.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgespec.bundle import ENGINES, Bundle, file_sha256
from edgespec.errors import BundleError, EngineError

INDEX = "engines.json"
FORMAT_VERSION = 1
VERSION_COMPATIBLE = "version-compatible"

STEPS = ("prefill", "tree", "single")
"""Profiles that a step graph may have; a plan has prefill and tree at least, and the tree profile
takes a single row too. Other graphs have one profile."""


@dataclass(frozen=True)
class Span:
    """Sizes of one input that a profile takes; ``best`` is what its kernels were chosen for."""

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """An optimisation profile: what every input with a named axis may measure."""

    name: str
    """prefill, tree, single; "whole" for a graph that is no step graph."""
    inputs: Mapping[str, Span]


@dataclass(frozen=True)
class Plan:
    """One serialised engine. Its profiles have the indices of their order."""

    role: str
    file: str
    size: int
    sha256: str
    sources: Mapping[str, str]
    """sha256 of what it was built from: the ONNX file and the files of its weights."""
    profiles: tuple[Profile, ...]
    decomposed: bool
    """Whether its attention had to be taken apart, as no fused kernel takes it: slower."""


@dataclass(frozen=True)
class BuiltEngines:
    """The plans of one flavour for one machine, as ``engines.json`` has them."""

    folder: Path
    library: str
    """tensorrt or tensorrt_rtx."""
    version: str
    """As the library spells its own, e.g. 10.3.0."""
    compute_capabilities: tuple[str, ...]
    """Of the GPUs it was built for, e.g. 8.7."""
    device: str | None
    """The GPU's name; None where it was built without one."""
    l4t: str | None
    """Release of Jetson Linux, e.g. R36.4.0; None elsewhere."""
    flavour: str
    """Of the graphs, e.g. native:fp16."""
    context: int
    """Rows of text and image that a session may have."""
    capacity: int
    """Rows of a KV cache: those and the spare ones of trees. The axes C (and, in the native
    lowering, T) have this size."""
    prefill_rows: int
    """Most rows of a prefill call; longer prompts take several."""
    max_rows: int
    """Most rows of a call that verifies or drafts; a profile may take more."""
    profiles: tuple[str, ...]
    """Profiles of the step graphs, in the order of their indices in a plan."""
    flags: tuple[str, ...]
    """Flags of `edgespec build`, sorted: refit, strip, version-compatible, weight-streaming."""
    plans: tuple[Plan, ...]

    @property
    def tag(self) -> str:
        return self.folder.name

    def plan(self, role: str) -> Plan | None:
        """The plan of that role, if it was built."""
        return next((plan for plan in self.plans if plan.role == role), None)

    def path(self, role: str) -> Path:
        """The plan's file. Raises EngineError where the role was not built."""
        plan = self.plan(role)
        if plan is None:
            raise EngineError(
                f"{self.folder} has no engine of graph '{role}'; run: {self.rebuild_command()}"
            )
        return self.folder / plan.file

    def rebuild_command(self) -> str:
        """What builds these engines anew, for the machine it is run on."""
        words = ["edgespec", "build", "--bundle", str(self.folder.parent.parent)]
        words += ["--flavour", self.flavour, "--library", self.library]
        words += ["--context", str(self.context), "--max-rows", str(self.max_rows)]
        words += ["--prefill-rows", str(self.prefill_rows)]
        words += ["--profiles", ",".join(self.profiles), *(f"--{flag}" for flag in self.flags)]
        return shlex.join([*words, "--overwrite"])


def read_engines(bundle: Bundle, *, check_hashes: bool = True) -> tuple[BuiltEngines, ...]:
    """All engines of a bundle, by tag, checked: sizes, (by default) hashes, and that they were
    built from the graphs the bundle holds now. Empty where nothing was built.

    Raises BundleError naming the file that is missing, altered, or of another graph.
    """
    folder = bundle.path / ENGINES
    if folder.is_symlink():
        raise BundleError(f"{folder} is a symbolic link; a bundle holds plain files only")
    if not folder.is_dir():
        return ()
    found = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return tuple(_checked(bundle, parse_engines(path), check_hashes) for path in found)


def parse_engines(folder: Path) -> BuiltEngines:
    """One ``engines.json``, unchecked against any file. Raises BundleError."""
    path = folder / INDEX
    again = f"remove {folder} and run `edgespec build` again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{path} has format version {version}, this edgespec reads {FORMAT_VERSION}; "
                f"{again}"
            )
        unknown = sorted(set(data) - {f.name for f in fields(BuiltEngines)})
        if unknown:
            raise BundleError(f"{path} has unknown keys: {', '.join(unknown)}; {again}")
        data["plans"] = tuple(_plan(plan) for plan in data["plans"])
        data["compute_capabilities"] = tuple(data["compute_capabilities"])
        data["profiles"], data["flags"] = tuple(data["profiles"]), tuple(data["flags"])
        return BuiltEngines(folder=folder, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read ({error}); {again}") from None


def write_index(built: BuiltEngines, folder: Path) -> None:
    """Writes ``engines.json`` of ``built`` into ``folder``."""
    data = {"format_version": FORMAT_VERSION, **asdict(built)}
    del data["folder"]
    (folder / INDEX).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def check_runs_here(
    built: BuiltEngines, library: str, version: str, compute_capability: str
) -> None:
    """Raises EngineError, with the command that rebuilds, unless these engines run under that
    library and version on a GPU of that compute capability (e.g. "8.7")."""
    here = f"{_spoken(library)} {version} on compute capability {compute_capability}"
    made = f"{_spoken(built.library)} {built.version} on {' or '.join(built.compute_capabilities)}"
    if built.l4t:
        made += f" (Jetson Linux {built.l4t})"
    fits = built.library == library and compute_capability in built.compute_capabilities
    if not fits or not _reads(built, version):
        raise EngineError(
            f"engines '{built.tag}' were built for {made}; here is {here}; "
            f"run: {built.rebuild_command()}"
        )


def _reads(built: BuiltEngines, version: str) -> bool:
    """Whether a library of ``version`` loads them: its own, or newer ones of the same major version
    where that was asked for."""
    if version == built.version:
        return True
    if VERSION_COMPATIBLE not in built.flags:
        return False
    made, here = _numbers(built.version), _numbers(version)
    return made[:1] == here[:1] and made <= here


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _spoken(library: str) -> str:
    return {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}.get(library, library)


def _checked(bundle: Bundle, built: BuiltEngines, check_hashes: bool) -> BuiltEngines:
    for plan in built.plans:
        path = built.folder / plan.file
        if Path(plan.file).name != plan.file or path.is_symlink() or not path.is_file():
            raise BundleError(f"{path} is missing or no plain file; run: {built.rebuild_command()}")
        if not is_of(bundle, plan):
            raise BundleError(
                f"{path} was built from another graph '{plan.role}' than the bundle's; "
                f"run: {built.rebuild_command()}"
            )
        size = path.stat().st_size
        if size != plan.size or (check_hashes and file_sha256(path) != plan.sha256):
            raise BundleError(
                f"{path} was altered: it is not what {INDEX} says; run: {built.rebuild_command()}"
            )
    return built


def is_of(bundle: Bundle, plan: Plan) -> bool:
    """Whether a plan was built from files that the bundle holds, unchanged."""
    files = bundle.manifest.files
    return bool(plan.sources) and all(
        name in files and files[name].sha256 == digest for name, digest in plan.sources.items()
    )


def _plan(data: Mapping[str, Any]) -> Plan:
    def span(value: Mapping[str, Any]) -> Span:
        return Span(**{key: tuple(sizes) for key, sizes in value.items()})

    def profile(value: Mapping[str, Any]) -> Profile:
        return Profile(value["name"], {name: span(s) for name, s in value["inputs"].items()})

    return Plan(**{**data, "profiles": tuple(profile(p) for p in data["profiles"])})
