"""Fixtures shared by all tests: small random models, exported once per session."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# The helpers in tests/support are imported by name, however pytest was started.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

# Two workers on two cores: threads that wait for each other by spinning make both crawl. Read by
# torch and numpy, here and in child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job starts with Ctrl-C ignored, and so would all whom tests start and press
# it for.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No example is drawn by chance (but constants of whatever is imported by then are among them), and
# there is no time limit: a busy machine is no defect.
settings.register_profile("edgespec", deadline=None, derandomize=True)
settings.load_profile("edgespec")

if TYPE_CHECKING:
    from edgespec_export.plan import Model
    from tests.support.zoo import Zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Checkpoints and bundles by name, made when first asked for."""
    from tests.support.zoo import Zoo

    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def head_target(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny target that the heads of tests/support/heads.py are for."""
    from edgespec_export.plan import open_model
    from tests.support.heads import target_folder

    return open_model(str(target_folder(tmp_path_factory.mktemp("heads") / "target")))


@pytest.fixture(scope="session")
def builtin_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in family, target and draft, as `edgespec demo` exports it."""
    from edgespec_export.exporter import export_bundle
    from edgespec_export.family import export_request

    out = tmp_path_factory.mktemp("builtin") / "builtin.bundle"
    export_bundle(export_request("draft", out))
    return out
