"""Tells observers what happened: each on its own, timed, and never fatal."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenancy_core.contract import Observer
    from tenancy_core.tenant import Tenant

__all__ = ["SLOW_OBSERVER_SECONDS", "Observers"]

SLOW_OBSERVER_SECONDS: Final = 0.05
"""An observer runs on the event loop; one that takes longer than this holds up every request."""

_log = logging.getLogger("tenancy")


class Observers:
    """Hands an event to every observer.

    Attributes:
        failures: How often an observer raised, by its class name.
        slow: How often an observer took too long, by its class name.
    """

    __slots__ = ("_observers", "failures", "slow")

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self.failures: dict[str, int] = {}
        self.slow: dict[str, int] = {}

    def refused(self, code: str, status: int, tenant: Tenant | None) -> None:
        """A request was refused."""
        for observer in self._observers:
            self._tell(observer, "refused", code, status, tenant)

    def changed(self, tenant: Tenant, action: str) -> None:
        """A tenant was changed, and the change is committed."""
        for observer in self._observers:
            self._tell(observer, "changed", tenant, action)

    def _tell(self, observer: Observer, event: str, *values: Any) -> None:
        name = type(observer).__name__
        began = perf_counter()
        try:
            # Looked up here: an observer that lacks a method is one that fails.
            getattr(observer, event)(*values)
        except Exception:  # noqa: BLE001 - whatever an observer does, the request goes on
            # Logged once per observer: a broken one would fail for every request.
            count = self.failures[name] = self.failures.get(name, 0) + 1
            if count == 1:
                _log.exception("the observer %s failed; later failures are only counted", name)
        took = perf_counter() - began
        if took > SLOW_OBSERVER_SECONDS:
            count = self.slow[name] = self.slow.get(name, 0) + 1
            if count == 1:
                _log.warning(
                    "the observer %s held up the event loop for %.0f ms; later times are only "
                    "counted",
                    name,
                    took * 1e3,
                )
