"""Verifiers: where the target runs. The contract is in ``base``."""

from __future__ import annotations

from edgespec_runtime.verifiers.base import Away, Meanwhile, Verifier
from edgespec_runtime.verifiers.local import LocalVerifier

__all__ = ["Away", "LocalVerifier", "Meanwhile", "Verifier"]
