"""What is installed: found by entry point, owned by a distribution, told apart by name."""

from __future__ import annotations

from tenancy_core._plugins.loader import load_plugins
from tenancy_core._plugins.registry import Offer, Registry

__all__ = ["Offer", "Registry", "load_plugins"]
