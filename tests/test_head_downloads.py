"""Where heads come from: interrupted downloads, pickles, the hub."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgespec.errors import CheckpointError, MissingDependencyError
from edgespec_export.heads.layouts import open_head
from edgespec_export.plan import Model, open_model
from tests.support import heads
from tests.support.heads import PublishedHead


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def test_an_interrupted_download(tmp_path: Path, head_target: Model) -> None:
    folder = tmp_path / "head"
    heads.eagle().write(folder)
    truncated(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no intact safetensors file"):
        open_head(str(folder), head_target)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        open_head(str(folder), head_target)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no config.json"):
        open_head(str(folder), head_target)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_head(str(folder / "nowhere"), head_target)


def as_pickle(head: PublishedHead, folder: Path, value: Any = None) -> str:
    heads_folder = Path(head.write(folder))
    (heads_folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(tensor) for name, tensor in head.tensors.items()}
    torch.save(state if value is None else value, heads_folder / "pytorch_model.bin")
    return str(heads_folder)


@pytest.mark.parametrize("make", [heads.eagle, heads.eagle3])
def test_pickled_weights_open_with_torch(
    make: Callable[[], PublishedHead], tmp_path: Path, head_target: Model
) -> None:
    plain = open_head(make().write(tmp_path / "plain", "F32"), head_target)
    pickled = open_head(as_pickle(make(), tmp_path / "pickled"), head_target)
    assert plain.geometry == pickled.geometry
    names = plain.checkpoint.entries
    assert names.keys() == pickled.checkpoint.entries.keys()
    assert plain.checkpoint.fingerprint(names) == pickled.checkpoint.fingerprint(names)
    # Beside safetensors a pickle is not even looked at.
    (tmp_path / "plain" / "pytorch_model.bin").write_bytes(b"no pickle")
    assert open_head(str(tmp_path / "plain"), head_target).geometry == plain.geometry


def test_pickled_weights_without_torch(
    tmp_path: Path, head_target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_pickle(heads.eagle(), tmp_path / "head")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pickled.*'torch'.*edgespec\[train\]"):
        open_head(folder, head_target)
    # A target is never opened from a pickle.
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*does not open"):
        open_model(folder)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.file, "boom"))


@pytest.mark.parametrize("form", ["torch", "plain"])
def test_pickles_that_run_code_are_refused(form: str, tmp_path: Path, head_target: Model) -> None:
    boom = tmp_path / "boom"
    head = heads.eagle()
    folder = Path(as_pickle(head, tmp_path / "head", {**head.tensors, "fc.weight": Bomb(boom)}))
    if form == "plain":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"fc.weight": Bomb(boom)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is no intact pickle of tensors"):
        open_head(str(folder), head_target)
    assert not boom.exists()
    pickle.loads(pickle.dumps(Bomb(boom)))
    assert boom.exists()  # the bomb is live


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "more than tensors by name: epoch"),
        ({"state_dict": {}}, "more than tensors by name: state_dict"),
    ],
)
def test_pickles_of_something_else(
    value: Any, words: str, tmp_path: Path, head_target: Model
) -> None:
    folder = as_pickle(heads.eagle(), tmp_path / "head", value)
    with pytest.raises(CheckpointError, match=words):
        open_head(folder, head_target)


def test_a_truncated_pickle(tmp_path: Path, head_target: Model) -> None:
    folder = as_pickle(heads.eagle(), tmp_path / "head")
    file = Path(folder) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="no intact pickle.*fetch it again"):
        open_head(folder, head_target)


def test_a_torch_that_opens_pickles_unsafely(
    tmp_path: Path, head_target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_pickle(heads.eagle(), tmp_path / "head")
    monkeypatch.setattr("torch.__version__", "2.5.1+cpu")
    with pytest.raises(CheckpointError, match=r"torch 2\.5\.1.*upgrade"):
        open_head(folder, head_target)


@pytest.mark.parametrize("pickled", [False, True])
def test_heads_of_the_hub(
    pickled: bool, tmp_path: Path, head_target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle is fetched only where the hub has nothing else."""
    import huggingface_hub

    folder = tmp_path / "head"
    as_pickle(heads.eagle(), folder) if pickled else heads.eagle().write(folder)
    fetched: list[list[str]] = []

    def snapshot_download(repo: str, **more: Any) -> str:
        assert repo == "owner/head" and more["ignore_patterns"] == ["*/*"]
        fetched.append(more["allow_patterns"])
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_head("owner/head", head_target).geometry.variant == "eagle"
    with_pickle = [any(Path("pytorch_model.bin").match(p) for p in each) for each in fetched]
    assert with_pickle == ([False, True] if pickled else [False])


def test_a_pickle_of_the_hub_is_not_fetched_in_vain(
    tmp_path: Path, head_target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    calls: list[Any] = []

    def snapshot_download(repo: str, **more: Any) -> str:
        calls.append(more)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="owner/head"):
        open_head("owner/head", head_target)
    assert len(calls) == 1


def test_heads_open_without_torch(tmp_path: Path, head_target: Model) -> None:
    head = heads.eagle3().write(tmp_path / "head")
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        "from edgespec_export.checkpoint import open_checkpoint\n"
        "import edgespec_export.heads.layouts, edgespec_export.configuration as c, types\n"
        f"t = open_checkpoint({head_target.checkpoint.source!r})\n"
        "target = types.SimpleNamespace(\n"
        "    checkpoint=t, geometry=c.read_geometry(t.config), text_fingerprint='')\n"
        f"head = edgespec_export.heads.layouts.open_head({head!r}, target)\n"
        "print(head.geometry.variant)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "eagle3\n", result.stderr
