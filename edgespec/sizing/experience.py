"""What earlier requests taught: shared by the requests of one loaded bundle."""

from __future__ import annotations


class Experience:
    """Mutable; one per loaded bundle."""
