"""Where a checkpoint is: a directory, or a repository of the Hugging Face hub that is fetched."""

from __future__ import annotations

from pathlib import Path

from edgespec.errors import CheckpointError, MissingDependencyError
from edgespec_export.pickled import PICKLE, require_torch

HUB_FILES = ("*.json", "model*.safetensors", "*.jinja", "tokenizer.model")


def resolve(source: str, *, pickles: bool = False) -> Path:
    """The directory of ``source``. ``pickles`` also fetches pickled weights, where the hub has
    nothing else. Raises CheckpointError."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        found = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"checkpoint '{source}' {found}; give a directory with config.json and safetensors "
            "files, or a hub id such as 'llava-hf/llava-1.5-7b-hf'"
        )
    path = _fetch(source, HUB_FILES)
    if pickles and not any(path.glob("*.safetensors")):
        require_torch(f"'{source}'")  # before the download
        path = _fetch(source, (*HUB_FILES, PICKLE))
    return path


def _fetch(source: str, patterns: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingDependencyError("huggingface_hub", f"'{source}'", "export") from None
    try:  # "*/*": only what lies at the top, no exports to other formats in folders below
        return Path(
            snapshot_download(source, allow_patterns=list(patterns), ignore_patterns=["*/*"])
        )
    except Exception as error:  # the hub client raises many unrelated types; all mean "not fetched"
        reason = next(iter(str(error).strip().splitlines()), "")
        raise CheckpointError(
            f"'{source}' is no directory here, and it could not be fetched from the hub "
            f"({type(error).__name__}: {reason}); where there is no network, fetch it elsewhere "
            f"(`hf download {source} --local-dir DIR`) and give the directory"
        ) from None
