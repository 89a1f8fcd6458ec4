"""Verifiers: where the target runs. The contract is in ``base``."""

from __future__ import annotations

from edgespec_runtime.verifiers.base import Meanwhile, Verifier
from edgespec_runtime.verifiers.local import LocalVerifier

__all__ = ["LocalVerifier", "Meanwhile", "Verifier"]
