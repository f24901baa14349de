"""A suite cannot be thinned out unseen, and says in a sentence what is wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.server import ROOT
from tenancy_core import testing
from tenancy_core.testing import CacheBackendSuite, ResolverSuite, Suite, SuiteError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytest_plugins = ["pytester"]

OPTIONS = ("-p", "no:cacheprovider", "-p", "no:xdist")

CASE = """
import pytest
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core.testing import CacheBackendSuite, FakeClock

{above}

class TestMine(CacheBackendSuite):
    capabilities = frozenset({{"bus"}})

    @pytest.fixture
    def cache(self):
        self.clock = FakeClock()
        return MemoryCacheBackend(clock=self.clock)

{body}

{below}
"""

ASIS = "a suite is run as it is"


def run(
    pytester: pytest.Pytester, body: str = "", *, above: str = "", below: str = "", only: str = ""
) -> pytest.RunResult:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    pytester.makepyfile(CASE.format(above=above, body=lines, below=below))
    return pytester.runpytest_inprocess(*OPTIONS, "-rsx", "-k", only)


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "test_the_last_value_counts = None",
        "async def test_the_last_value_counts(self, cache): ...",
        "@pytest.mark.skip\nasync def test_the_last_value_counts(self, cache): ...",
        "def pytest_generate_tests(self, metafunc): ...",
        "promises = classmethod(lambda cls: {})",
        "tenancy_suite_applies = None",
    ],
)
def test_a_test_that_is_redefined_is_an_error(pytester: pytest.Pytester, body: str) -> None:
    done = run(pytester, body)
    assert done.ret == pytest.ExitCode.INTERRUPTED
    assert ASIS in done.stdout.str()


def test_a_test_that_a_mixin_replaces_is_an_error() -> None:
    class Mixin:
        async def test_silence_is_no_claim(self) -> None:
            """Do nothing."""

    with pytest.raises(SuiteError, match=ASIS):
        type("TestMine", (Mixin, ResolverSuite), {})
    with pytest.raises(SuiteError, match="test_silence_is_no_claim is defined again"):
        type("TestMine", (Mixin, ResolverSuite), {"known_capabilities": {}}, published=True)


@pytest.mark.parametrize("what", ["None", "lambda self: None"])
def test_a_test_that_is_replaced_afterwards_is_noticed(
    pytester: pytest.Pytester, what: str
) -> None:
    done = run(
        pytester, below=f"TestMine.test_the_last_value_counts = {what}", only="suite_is_whole"
    )
    done.assert_outcomes(failed=1)
    assert ASIS in done.stdout.str()


@pytest.mark.parametrize(
    ("above", "body", "below"),
    [
        ("", "pytestmark = pytest.mark.xfail", ""),
        ("", "pytestmark = pytest.mark.skip(reason='no')", ""),
        ("pytestmark = pytest.mark.xfail", "", ""),
        ("", "", "TestMine = pytest.mark.xfail(TestMine)"),
        ("", "", "pytest.mark.skipif(True, reason='x')(TestMine.test_the_last_value_counts)"),
    ],
)
def test_marks_that_silence_a_test_are_an_error(
    pytester: pytest.Pytester, above: str, body: str, below: str
) -> None:
    name = "test_the_last_value_counts"
    before = [*vars(CacheBackendSuite)[name].__dict__.get("pytestmark", [])]
    try:
        done = run(pytester, body, above=above, below=below)
    finally:
        vars(CacheBackendSuite)[name].__dict__["pytestmark"] = before
    assert done.ret == pytest.ExitCode.INTERRUPTED
    assert ASIS in done.stdout.str()
    assert "Traceback" not in done.stdout.str()


def test_a_server_that_is_not_there_may_skip_the_whole_class(pytester: pytest.Pytester) -> None:
    done = run(pytester, "pytestmark = pytest.mark.skipif(True, reason='no server')")
    assert done.ret == pytest.ExitCode.OK
    done.assert_outcomes(skipped=len(CacheBackendSuite.promises()))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (
            {"capabilities": frozenset({"buss"})},
            "does not know. Did you mean 'bus'? There is 'bus', 'shared', 'survives_restart'.",
        ),
        ({"capabilities": "bus"}, "capabilities is a set of names: frozenset({'bus'})."),
        (
            {"deviations": {"test_the_last_value_count": "x"}},
            "does not know. Did you mean 'test_the_last_value_counts'?",
        ),
        (
            {"deviations": {"test_the_last_value_counts": " "}},
            "the deviation 'test_the_last_value_counts' needs a reason.",
        ),
    ],
)
def test_what_a_suite_does_not_know_is_an_error(
    attributes: Mapping[str, object], words: str
) -> None:
    with pytest.raises(SuiteError) as caught:
        type("TestMine", (CacheBackendSuite,), dict(attributes))
    assert words in str(caught.value)


def test_a_suite_says_what_its_capabilities_are() -> None:
    for name in testing.__all__:
        value = getattr(testing, name)
        if isinstance(value, type) and issubclass(value, Suite) and value is not Suite:
            assert value.known_capabilities
            for test in value.promises().values():
                needed = getattr(test, "tenancy_requires", frozenset())
                assert needed <= {*value.known_capabilities}, test
            for test in value.promises().values():
                assert (test.__doc__ or "").strip(), test
    with pytest.raises(SuiteError, match="has to say its known_capabilities"):
        type("OtherSuite", (Suite,), {}, published=True)


def test_the_page_names_every_capability_and_what_it_means() -> None:
    page = (ROOT / "docs" / "how-to" / "test-a-plugin.md").read_text()
    for name in testing.__all__:
        value = getattr(testing, name)
        if isinstance(value, type) and issubclass(value, Suite) and value is not Suite:
            rows = page[page.index("## Capabilities") :]
            rows = rows[rows.index(f"| `{name}` | ") :]
            for capability, meaning in sorted(value.known_capabilities.items()):
                assert f"| `{capability}` | {meaning} |" in rows


def test_every_capability_decides_about_something() -> None:
    # Two of the resolver's and one of the limiter's change what a test expects.
    for name in testing.__all__:
        value = getattr(testing, name)
        if isinstance(value, type) and issubclass(value, Suite) and value is not Suite:
            used = {
                capability
                for test in value.promises().values()
                for capability in getattr(test, "tenancy_requires", ())
            }
            assert {*value.known_capabilities} - used <= {"case_insensitive"}


def test_whoever_gives_no_fixture_is_told_which(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from tenancy_core.testing import CacheBackendSuite\n"
        "class TestMine(CacheBackendSuite): ...\n"
    )
    done = pytester.runpytest_inprocess(*OPTIONS, "-k", "last_value")
    done.assert_outcomes(errors=1)
    assert "TestMine has to give the fixture `cache`." in done.stdout.str()


# -- what it reports -------------------------------------------------------------------------------


def test_without_a_conftest_it_runs_on_the_loops_that_it_names(pytester: pytest.Pytester) -> None:
    done = run(pytester, "backends = ('asyncio', 'trio')", only="last_value")
    done.assert_outcomes(passed=2)


def test_what_is_not_declared_is_visibly_not_applicable(pytester: pytest.Pytester) -> None:
    done = run(pytester, "capabilities = frozenset()", only="nobody_is_no_error")
    done.assert_outcomes(skipped=1)
    assert "not applicable: TestMine does not declare bus" in done.stdout.str()


FORGETFUL = """
class Forgetful(MemoryCacheBackend):
    async def get(self, key, /):
        return None
"""
DEVIATES = """
deviations = {"test_the_last_value_counts": "we keep nothing, see issue 7"}

@pytest.fixture
def cache(self):
    return %s()
"""


def test_a_deviation_is_an_xfail_with_its_reason(pytester: pytest.Pytester) -> None:
    done = run(pytester, DEVIATES % "Forgetful", above=FORGETFUL, only="last_value")
    done.assert_outcomes(xfailed=1)
    assert "deviation: we keep nothing, see issue 7" in done.stdout.str()


def test_a_deviation_that_is_over_fails(pytester: pytest.Pytester) -> None:
    done = run(pytester, DEVIATES % "MemoryCacheBackend", only="last_value")
    done.assert_outcomes(failed=1)
    assert "XPASS(strict)" in done.stdout.str()


def test_a_deviation_may_hold_for_some_parameters(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from tenancy_core._ratelimit import MemoryRateLimiter
        from tenancy_core.testing import FakeClock, RateLimiterSuite

        class TestMine(RateLimiterSuite):
            deviations = {"test_retry_after_is_honest": "not for all"}

            @pytest.fixture
            def limiter(self):
                self.clock = FakeClock()
                return MemoryRateLimiter(self.clock)
        """
    )
    done = pytester.runpytest_inprocess(*OPTIONS, "-k", "honest")
    done.assert_outcomes(xpassed=3)


def test_a_failure_shows_the_values_and_says_the_promise(pytester: pytest.Pytester) -> None:
    case = CASE.format(above=FORGETFUL, body="", below="")
    pytester.makepyfile(case.replace("return Memory", "return Forgetful() or Memory"))
    # In a process of its own: in this one pytest has rewritten the suites already.
    done = pytester.runpytest_subprocess(*OPTIONS, "-k", "last_value")
    done.assert_outcomes(failed=1)
    shown = [line.removeprefix("E").strip() for line in done.outlines if line.startswith("E ")]
    assert shown == [
        "AssertionError: assert None == b'first'",
        "The promise that is broken: A second ``set`` replaces the first, whichever is longer.",
    ]


def test_a_test_that_takes_too_long_says_so(pytester: pytest.Pytester) -> None:
    above = """
import anyio
class Slow(MemoryCacheBackend):
    async def get(self, key, /):
        await anyio.sleep_forever()
"""
    body = "timeout = 0.05\n@pytest.fixture\ndef cache(self):\n    return Slow()\n"
    done = run(pytester, body, above=above, only="last_value")
    done.assert_outcomes(failed=1)
    assert "It was not done after 0.05 seconds." in done.stdout.str()
    assert "The promise that is broken" in done.stdout.str()


def test_tests_of_ones_own_stand_beside_those_of_the_suite(pytester: pytest.Pytester) -> None:
    body = "@pytest.mark.xfail\nasync def test_ours(self, cache):\n    assert not cache\n"
    done = run(pytester, body, only="ours")
    done.assert_outcomes(xfailed=1)


# -- the package -----------------------------------------------------------------------------------


def test_without_pytest_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError(name='pytest')")
    done = subprocess.run(
        [sys.executable, "-c", "import tenancy_core.testing"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: tenancy_core.testing needs pytest: "
        "pip install 'tenancy-core[testing]'"
    )


def test_its_names_are_there_and_sorted() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    assert {*testing.__all__} <= {*dir(testing)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing  # noqa: B018 - that is the test


def test_a_resolver_suite_does_not_bring_sqlalchemy() -> None:
    code = "from tenancy_core.testing import ResolverSuite; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tenancy_core.testing.resolver" in done.stdout
    assert "sqlalchemy" not in done.stdout.split()
