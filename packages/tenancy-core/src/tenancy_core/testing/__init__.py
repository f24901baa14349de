"""For tests: suites that prove a plugin right, fakes, and pytest fixtures.

A plugin author subclasses the suite of the Protocol that the plugin implements; see
:mod:`tenancy_core.testing.suite`. Nothing in tenancy imports this package: it needs pytest, which
``pip install 'tenancy-core[testing]'`` brings.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import pytest
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "tenancy_core.testing needs pytest: pip install 'tenancy-core[testing]'", name="pytest"
    ) from None

if TYPE_CHECKING:
    from tenancy_core.testing.cache import CacheBackendSuite
    from tenancy_core.testing.fakes import (
        FakeClock,
        RecordingAuditSink,
        RecordingObserver,
        current_as,
        make_connection,
        make_tenant,
    )
    from tenancy_core.testing.invalidation_bus import InvalidationBusSuite
    from tenancy_core.testing.isolation import IsolationSuite
    from tenancy_core.testing.rate_limiter import RateLimiterSuite
    from tenancy_core.testing.resolver import ResolverSuite
    from tenancy_core.testing.store import TenantStoreSuite
    from tenancy_core.testing.suite import Suite, SuiteError

__all__ = [
    "CacheBackendSuite",
    "FakeClock",
    "InvalidationBusSuite",
    "IsolationSuite",
    "RateLimiterSuite",
    "RecordingAuditSink",
    "RecordingObserver",
    "ResolverSuite",
    "Suite",
    "SuiteError",
    "TenantStoreSuite",
    "current_as",
    "make_connection",
    "make_tenant",
]

_ROOMS = {
    "CacheBackendSuite": "cache",
    "FakeClock": "fakes",
    "RecordingAuditSink": "fakes",
    "RecordingObserver": "fakes",
    "current_as": "fakes",
    "make_connection": "fakes",
    "make_tenant": "fakes",
    "InvalidationBusSuite": "invalidation_bus",
    "IsolationSuite": "isolation",
    "RateLimiterSuite": "rate_limiter",
    "ResolverSuite": "resolver",
    "TenantStoreSuite": "store",
    "Suite": "suite",
    "SuiteError": "suite",
}

# Before any of them is imported: pytest then explains a failed assertion with its values.
pytest.register_assert_rewrite(
    *sorted({f"{__name__}.{room}" for room in _ROOMS.values() if room != "fakes"})
)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
