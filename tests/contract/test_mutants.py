"""The suites notice what they are there to notice: every broken implementation fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tenancy_core.testing import (
    CacheBackendSuite,
    InvalidationBusSuite,
    IsolationSuite,
    RateLimiterSuite,
    ResolverSuite,
    TenantStoreSuite,
    mutants,
)

if TYPE_CHECKING:
    from tenancy_core.testing import Suite

pytest_plugins = ["pytester"]

SUITES = [
    ResolverSuite,
    CacheBackendSuite,
    InvalidationBusSuite,
    RateLimiterSuite,
    IsolationSuite,
    TenantStoreSuite,
]

# Cases run in a pytest and a process of their own, which is what a third party would see, and what
# broken implementations leave behind (connections that nobody closed) ends with that process.
MODULE = """
from tenancy_core.testing import mutants

for number, case in enumerate(mutants.HONEST):
    globals()[f"TestHonest{number}"] = case
for mutant in mutants.MUTANTS:
    globals()[f"Test{mutant.name}"] = mutant.case
"""
REPORTER = """
def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        with open("outcomes.tsv", "a", encoding="utf-8") as file:
            print(report.nodeid, report.when, report.outcome, sep="\\t", file=file)
"""
OPTIONS = (
    *("-p", "no:cacheprovider", "-p", "no:xdist", "-q", "--tb=no"),
    # The thread of a connection that was struck while it was made may find its event loop closed.
    *("-W", "ignore::pytest.PytestUnhandledThreadExceptionWarning"),
)

# There is no server among the mutants on which two may write to one file at once.
WITHOUT_A_MUTANT = {
    "test_the_suite_is_whole",
    "test_two_sessions_of_a_tenant_write_at_the_same_time",
}


def outcomes(pytester: pytest.Pytester, *selected: str) -> dict[tuple[str, str], set[str]]:
    """Run tests of the module; return the outcomes of each, by its class and its name."""
    pytester.makeconftest(REPORTER)
    path = pytester.makepyfile(MODULE)
    pytester.runpytest_subprocess(*OPTIONS, *[f"{path}::{node}" for node in selected])
    found: dict[tuple[str, str], set[str]] = {}
    for line in (pytester.path / "outcomes.tsv").read_text(encoding="utf-8").splitlines():
        node, when, outcome = line.split("\t")
        _, case, name = node.partition("[")[0].split("::")
        found.setdefault((case, name), set()).add(f"{when} {outcome}")
    return found


def name_of(suite: type[Suite]) -> str:
    return suite.__name__


@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", SUITES, ids=name_of)
def test_every_mutant_fails_the_tests_that_have_to_notice_it(
    pytester: pytest.Pytester, suite: type[Suite]
) -> None:
    expected = {
        (f"Test{mutant.name}", test): mutant.mistake
        for mutant in mutants.MUTANTS
        if issubclass(mutant.case, suite)
        for test in mutant.caught_by
    }
    found = outcomes(pytester, *["::".join(node) for node in expected])
    assert {*found} == {*expected}
    # In one of its parameters, and by the test itself: a set-up that fails proves nothing.
    missed = [node for node in expected if "call failed" not in found[node]]
    assert not missed, {node: expected[node] for node in missed}
    unready = {node for node in expected if "setup failed" in found[node]}
    assert not unready


@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", SUITES, ids=name_of)
def test_what_the_mutants_are_made_of_passes(pytester: pytest.Pytester, suite: type[Suite]) -> None:
    cases = {
        f"TestHonest{number}": case
        for number, case in enumerate(mutants.HONEST)
        if issubclass(case, suite)
    }
    found = outcomes(pytester, *cases)
    assert {*found} == {(name, test) for name, case in cases.items() for test in case.promises()}
    unwell = {node: seen for node, seen in found.items() if seen - {"call passed", "setup skipped"}}
    assert not unwell
    # What one of them cannot do, another can.
    passed = {test for (_, test), seen in found.items() if seen == {"call passed"}}
    assert {*suite.promises()} - passed <= WITHOUT_A_MUTANT


def test_every_test_of_every_suite_is_needed_by_a_mutant() -> None:
    """A test that no mistake makes fail may be one that cannot fail."""
    needed = {name for mutant in mutants.MUTANTS for name in mutant.caught_by}
    promised = {name for suite in SUITES for name in suite.promises()}
    assert promised - needed == WITHOUT_A_MUTANT


def test_every_mutant_says_its_mistake() -> None:
    names = [(mutant.case.__mro__[1], mutant.name) for mutant in mutants.MUTANTS]
    assert len({*names}) == len(names)
    assert all(mutant.mistake.endswith(".") for mutant in mutants.MUTANTS)
