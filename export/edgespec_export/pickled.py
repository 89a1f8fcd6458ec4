"""Pickled weights (pytorch_model.bin), read with torch's restricted loader and nothing else.

A pickle can run any code when it is opened. ``torch.load(weights_only=True)`` builds tensors alone
and refuses the rest; before torch 2.6 it could be tricked (CVE-2025-32434), so that is the least.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgespec.errors import CheckpointError, MissingDependencyError

PICKLE = "pytorch_model.bin"
LEAST_TORCH = (2, 6)


def require_torch(what: str) -> None:
    """Raises MissingDependencyError where pickled weights could not be opened."""
    if find_spec("torch") is None:
        raise MissingDependencyError("torch", f"{what} (pickled weights, no safetensors)", "train")


def as_safetensors(file: Path) -> Path:
    """The tensors of a pickle in a temporary safetensors file, which goes with this process.

    Raises CheckpointError where the pickle holds anything but tensors by name.
    """
    require_torch(str(file))
    tensors = _load(file)
    from safetensors.torch import save_file

    folder = tempfile.TemporaryDirectory(prefix="edgespec-")
    atexit.register(folder.cleanup)
    out = Path(folder.name) / "model.safetensors"
    try:
        save_file(tensors, out)
    except OSError as error:
        raise CheckpointError(f"{file} could not be converted: {error}") from None
    return out


def _load(file: Path) -> dict[str, Any]:
    """Name -> tensor, each with memory of its own, as safetensors wants them."""
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < LEAST_TORCH:
        raise CheckpointError(
            f"{file} is a pickle, and torch {torch.__version__} does not open pickles safely "
            "(CVE-2025-32434); upgrade torch to 2.6 or later, or save it as safetensors"
        )
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes make it
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{file} is no intact pickle of tensors alone, so it is not opened ({reason[:120]}); "
            "fetch it again, or ask its author for safetensors"
        ) from None
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not tensors by name")
    odd = [str(k) for k, v in found.items() if not isinstance(v, torch.Tensor) or v.is_sparse]
    if odd or not all(isinstance(key, str) for key in found):
        raise CheckpointError(f"{file} holds more than tensors by name: {', '.join(odd[:6])}")
    return {key: value.detach().clone().contiguous() for key, value in found.items()}
