"""Plants a defect in the code under test by editing one function's source."""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from types import ModuleType
from typing import Any

import pytest


def plant(patch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Replaces ``owner.name`` (a class's method or a module's function) by a copy of itself in
    which ``old`` reads ``new``. ``old`` must occur exactly once: a mutant that no longer fits the
    code is an error, not a test that passes."""
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    found = source.count(old)
    if found != 1:
        raise LookupError(f"{name} holds {old!r} {found} times; bring the mutant up to date")
    namespace: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(old, new), f"<mutant of {name}>", "exec", flags)
    exec(code, sys.modules[original.__module__].__dict__, namespace)
    if not isinstance(owner, ModuleType):
        patch.setattr(owner, name, namespace[name])
        return
    for module in list(sys.modules.values()):  # wherever it was imported by name
        ours = getattr(module, "__name__", "").startswith(("edgespec", "tests", "test_"))
        if ours and module.__dict__.get(name) is original:
            patch.setattr(module, name, namespace[name])
