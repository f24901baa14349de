"""Broken implementations, one mistake each, which the suites have to notice.

A suite that passes everything proves nothing. Each of these names the tests that have to fail on
it; tenancy's own tests run them all. They are of use to whoever changes a suite, and as a list of
what goes wrong in practice. The isolation strategies among them need aiosqlite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tenancy_core.testing.mutants.buses import BUS_MUTANTS, HONEST_BUSES
from tenancy_core.testing.mutants.caches import CACHE_MUTANTS, HONEST_CACHES
from tenancy_core.testing.mutants.limiters import HONEST_LIMITERS, LIMITER_MUTANTS
from tenancy_core.testing.mutants.mutant import Mutant, mutant
from tenancy_core.testing.mutants.resolvers import HONEST_RESOLVERS, RESOLVER_MUTANTS
from tenancy_core.testing.mutants.stores import HONEST_STORES, STORE_MUTANTS
from tenancy_core.testing.mutants.strategies import HONEST_STRATEGIES, STRATEGY_MUTANTS

if TYPE_CHECKING:
    from tenancy_core.testing.suite import Suite

__all__ = ["HONEST", "MUTANTS", "Mutant", "mutant"]

HONEST: Final[tuple[type[Suite], ...]] = (
    *HONEST_RESOLVERS,
    *HONEST_CACHES,
    *HONEST_BUSES,
    *HONEST_LIMITERS,
    *HONEST_STRATEGIES,
    *HONEST_STORES,
)
"""The suites on the implementations that the mutants are made of; all of them pass."""

MUTANTS: Final[tuple[Mutant, ...]] = (
    *RESOLVER_MUTANTS,
    *CACHE_MUTANTS,
    *BUS_MUTANTS,
    *LIMITER_MUTANTS,
    *STRATEGY_MUTANTS,
    *STORE_MUTANTS,
)
"""All mutants."""
