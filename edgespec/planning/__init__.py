"""Memory of a bundle on a device, said before anything is copied there."""

from __future__ import annotations
