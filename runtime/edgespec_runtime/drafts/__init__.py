"""Drafters: what proposes tokens. The contract is in ``base``; "none" is plain decoding."""

from __future__ import annotations

from edgespec_runtime.drafts.base import Answered, Drafter, NoDraft

__all__ = ["Answered", "Drafter", "NoDraft"]
