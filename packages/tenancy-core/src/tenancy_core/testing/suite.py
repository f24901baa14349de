"""What all conformance suites have in common.

A plugin author writes a class whose name pytest collects::

    class TestAcmeCache(CacheBackendSuite):
        capabilities = frozenset({"bus"})

        @pytest.fixture
        async def cache(self):
            async with AcmeCache() as cache:
                yield cache

The tests come with the suite. They run on anyio's pytest plugin, which anyio brings; no
``conftest.py`` is needed, and a fixture ``anyio_backend`` of the project is not looked at.

A suite is worth what it asks for, so it cannot be thinned out by accident: a test that is
redefined, set to None or marked ``skip`` or ``xfail`` is an error when pytest collects the class.
There are two ways to ask for less, and both are visible in pytest's report. A capability that is
not declared makes its tests *not applicable* (skipped, with that reason). A deviation,
``deviations = {"test_name": "reason"}``, runs its test as a strict ``xfail``: it has to fail, so
that a deviation that is over cannot stay.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar

import anyio
import anyio.lowlevel
import pytest

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Coroutine,
        Generator,
        Iterable,
        Mapping,
        Sequence,
    )

    from tenancy_core.testing.fakes import FakeClock

__all__ = [
    "MOST_WAITS",
    "Suite",
    "SuiteError",
    "cancel_after",
    "requires",
    "run_together",
    "strike",
]

FunctionT = TypeVar("FunctionT", bound="Callable[..., Any]")
T = TypeVar("T")

_REQUIRES: Final = "tenancy_requires"
_FORBIDDEN: Final = ("skip", "xfail")

MOST_WAITS: Final = 300
"""So often a transaction of the suites waits at the most; a driver waits 10 to 40 times."""

_published: Final[set[type]] = set()


class SuiteError(TypeError):
    """A class uses a suite in a way that would make it prove less than it seems to."""


def requires(*capabilities: str) -> Callable[[FunctionT], FunctionT]:
    """Say that a test of a suite is for implementations that declare these capabilities."""

    def mark(function: FunctionT) -> FunctionT:
        vars(function)[_REQUIRES] = frozenset(capabilities)
        return function

    return mark


async def cancel_after(steps: int, work: Callable[[], Awaitable[object]]) -> None:
    """Start ``work`` and cancel it after so many turns of the event loop, if it still runs."""

    async def run() -> None:
        await work()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


class _Struck:
    """Awaits a coroutine, and calls ``strike`` when it waits for something for the n-th time."""

    def __init__(
        self, work: Coroutine[Any, Any, object], point: int, strike: Callable[[], object]
    ) -> None:
        self.struck = False
        self._work = work
        self._left = point
        self._strike = strike

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self._work.__await__()
        error: BaseException | None = None
        answer: Any = None
        while True:
            try:
                waiting_for = inner.send(answer) if error is None else inner.throw(error)
            except StopIteration:
                return
            if self._left == 0:
                self.struck = True
                self._strike()
            self._left -= 1
            error = None
            try:
                answer = yield waiting_for
            except BaseException as thrown:  # noqa: BLE001 - it is for the work to deal with
                error = thrown


async def strike(work: Coroutine[Any, Any, object], point: int, *, insist: bool) -> bool:
    """Run ``work`` and cancel it when it waits for the n-th time; return whether that came.

    Args:
        work: What is struck.
        point: How often it may wait before; from 0.
        insist: Whether to cancel as anyio's scopes do, in every turn of the event loop until the
            work is left; else once, as asyncio does.
    """
    if insist:
        scope = anyio.CancelScope()
        struck = _Struck(work, point, scope.cancel)
        with scope:
            await struck
        return struck.struck
    outcome: list[bool] = []

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None  # this is one
        struck = _Struck(work, point, task.cancel)
        try:
            await struck
        except asyncio.CancelledError:
            task.uncancel()
        outcome.append(struck.struck)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
    return outcome == [True]


async def run_together(works: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run all at once, wait for all, and return what they returned, in order.

    Raises:
        BaseException: The first of them that failed did so with it.
    """
    started = list(works)
    results: dict[int, T] = {}
    errors: list[Exception] = []

    async def run(number: int, work: Callable[[], Awaitable[T]]) -> None:
        try:
            results[number] = await work()
        except Exception as error:  # noqa: BLE001 - raised below, where a reader can read it
            errors.append(error)

    async with anyio.create_task_group() as group:
        for number, work in enumerate(started):
            group.start_soon(run, number, work)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(started))]


class Suite:
    """Base of the conformance suites; subclass one of those.

    Attributes:
        capabilities: What the implementation can do beyond the least that is asked of all.
        deviations: Names of tests that it fails, each with the reason: known, and reported as
            ``xfail``.
        backends: Event loops to run on, as anyio names them: ``("asyncio", "trio")``.
        timeout: Seconds that one test may take; generous, because machines are slow at times.
        clock: What the implementation takes for the time, if it can be given a clock: the fixture
            sets ``self.clock = FakeClock()``. Without one, tests about time wait.
        known_capabilities: Each capability of the suite, and what it means.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset()
    deviations: ClassVar[Mapping[str, str]] = {}
    backends: ClassVar[Sequence[str]] = ("asyncio",)
    timeout: ClassVar[float] = 100.0
    clock: FakeClock | None = None

    known_capabilities: ClassVar[Mapping[str, str]] = {}

    pytestmark = pytest.mark.anyio

    def __init_subclass__(cls, *, published: bool = False, **more: Any) -> None:
        """Check a class that uses a suite; with ``published`` it is a suite itself."""
        super().__init_subclass__(**more)
        if published:
            _publish(cls)
        _check_tests(cls)
        if not published:
            _check_names(cls, "capability", cls.capabilities, cls.known_capabilities)
            _check_deviations(cls)

    async def advance(self, seconds: float) -> None:
        """Let seconds pass: on the fake clock, else by waiting."""
        if self.clock is None:
            await anyio.sleep(seconds)
        else:
            self.clock.advance(seconds)

    @classmethod
    def promises(cls) -> Mapping[str, Callable[..., Any]]:
        """Return the tests that the suite consists of, by name."""
        return {
            name: value
            for base in reversed(cls.__mro__)
            if base is Suite or base in _published
            for name, value in vars(base).items()
            if name.startswith("test_") and callable(value)
        }

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Choose the event loops, and refuse marks that would silence a test."""
        name, definition = metafunc.function.__name__, metafunc.definition
        if name in self.promises():
            found = {mark.name for mark in definition.iter_markers()} & {*_FORBIDDEN}
            found |= {mark.name for mark in definition.own_markers} & {"skipif"}
            if found:
                pytest.fail(
                    f"{type(self).__name__}.{name} is marked {min(found)}, and a suite is "
                    "run as it is. What the implementation does not offer is a capability that it "
                    "does not declare; what it does otherwise is told in "
                    f'deviations = {{"{name}": "the reason"}}.',
                    pytrace=False,
                )
        if "anyio_backend" in metafunc.fixturenames:
            metafunc.parametrize("anyio_backend", list(self.backends), scope="session")

    @pytest.fixture(autouse=True)
    def tenancy_suite_applies(self, request: pytest.FixtureRequest) -> None:
        """Report what does not apply to this implementation, and what deviates."""
        name = request.function.__name__
        test = self.promises().get(name)
        if test is None:
            return
        needed: frozenset[str] = getattr(test, _REQUIRES, frozenset[str]())
        missing = needed - self.capabilities
        if missing:
            names = ", ".join(sorted(missing))
            pytest.skip(f"not applicable: {type(self).__name__} does not declare {names}")
        if name in self.deviations:
            reason = f"deviation: {self.deviations[name]}"
            # One that has parameters may hold for some of them.
            parameters = {*request.node.callspec.params} - {"anyio_backend"}
            request.applymarker(pytest.mark.xfail(reason=reason, strict=not parameters))

    async def test_the_suite_is_whole(self) -> None:
        """No test of the suite was replaced or taken out after its class was made."""
        _check_tests(type(self))


def _publish(cls: type[Suite]) -> None:
    if "known_capabilities" not in vars(cls):
        raise SuiteError(f"{cls.__name__} is a suite, and has to say its known_capabilities.")
    _published.add(cls)
    for name, value in [*vars(cls).items()]:
        if name.startswith("test_"):
            setattr(cls, name, _promise(value))


def _promise(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Wrap a test: it has a time, and its failure says which promise is broken."""
    sentence = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())

    @functools.wraps(function)
    async def promise(self: Suite, *args: Any, **fixtures: Any) -> None:
        __tracebackhide__ = True
        try:
            with anyio.move_on_after(self.timeout) as time:
                await function(self, *args, **fixtures)
            if time.cancelled_caught:
                _too_late(self.timeout)
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"The promise that is broken: {sentence}")
            raise

    return promise


def _too_late(seconds: float) -> NoReturn:
    # Not hidden: pytest shows the last frame that is not, which would be one of anyio's.
    raise AssertionError(f"It was not done after {seconds:g} seconds.")


def _check_tests(cls: type[Suite]) -> None:
    for name, promised in {**cls.promises(), **_machinery()}.items():
        found = inspect.getattr_static(cls, name)
        if found is promised:
            continue
        what = "is None" if found is None else "is defined again"
        raise SuiteError(
            f"{cls.__name__}.{name} {what}, and a suite is run as it is. What the implementation "
            "does not offer is a capability that it does not declare; what it does otherwise is "
            f'told in deviations = {{"{name}": "the reason"}}. Tests of your own need names of '
            "their own."
        )


def _machinery() -> Mapping[str, Any]:
    names = ("pytest_generate_tests", "promises", "tenancy_suite_applies")
    return {name: vars(Suite)[name] for name in names}


def _check_names(cls: type[Suite], what: str, given: Iterable[str], known: Iterable[str]) -> None:
    if isinstance(given, str):
        raise SuiteError(
            f"{cls.__name__}: capabilities is a set of names: frozenset({{{given!r}}})."
        )
    for name in sorted(given):
        if name in known:
            continue
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        there = ", ".join(map(repr, sorted(known)))
        raise SuiteError(
            f"{cls.__name__} names the {what} {name!r}, which its suite does not know.{hint} "
            f"There is {there}."
        )


def _check_deviations(cls: type[Suite]) -> None:
    _check_names(cls, "test", cls.deviations, cls.promises())
    for name, reason in cls.deviations.items():
        if not reason.strip():
            raise SuiteError(f"{cls.__name__}: the deviation {name!r} needs a reason.")
