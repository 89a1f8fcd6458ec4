"""Policies by name, as flags, settings files and reports spell them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from edgespec.errors import ConfigError
from edgespec.sizing.contract import Policy
from edgespec.sizing.policies.chain import FixedChain
from edgespec.sizing.policies.eagle2 import Eagle2
from edgespec.sizing.policies.opt_tree import OptTree
from edgespec.sizing.policies.plain import Plain
from edgespec.sizing.policies.rolling import RollingBestN
from edgespec.sizing.policies.sage import Sage
from edgespec.sizing.policies.sequoia import Sequoia
from edgespec.sizing.policies.sized import Sized
from edgespec.sizing.policies.survey import Survey
from edgespec.sizing.policies.threshold import Threshold
from edgespec.sizing.policies.tree import FixedTree

KINDS: dict[str, type[Any]] = {
    "plain": Plain,
    "chain": FixedChain,
    "tree": FixedTree,
    "threshold": Threshold,
    "eagle2": Eagle2,
    "rolling": RollingBestN,
    "opt-tree": OptTree,
    "sequoia": Sequoia,
    "sage": Sage,
    "sized": Sized,
    "survey": Survey,
}
READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}


def parse_policy(text: str) -> Policy:
    """``"eagle2"`` or ``"eagle2:nodes=16,depth=8,top_k=2"`` -> a policy. Raises ConfigError."""
    name, _, settings = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        near = get_close_matches(name, KINDS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown policy '{name}'; {hint}there are: {', '.join(sorted(KINDS))}")
    readers = {field.name: READERS[str(field.type)] for field in fields(kind)}
    values: dict[str, Any] = {}
    for item in filter(None, settings.split(",")):
        key, equals, value = item.partition("=")
        if key not in readers or not equals:
            known = ", ".join(readers) or "none"
            raise ConfigError(
                f"policy '{name}' has no setting '{item}'; write KEY=VALUE with one of: {known}"
            )
        try:
            values[key] = readers[key](value)
        except ValueError:
            raise ConfigError(f"policy setting {key}={value!r} is not a number") from None
    policy: Policy = kind(**values)
    return policy
