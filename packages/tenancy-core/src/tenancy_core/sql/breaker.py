"""Circuit breakers: what does not answer is left alone for a while instead of waited for.

Without one, every request for a server that hangs waits for the connect time-out, and holds a
connection of the budget meanwhile. A breaker is for one thing that can fail on its own, such as a
server or one tenant's database there; a connection is opened while all of its breakers allow it.
What is open already is used either way.
"""

from __future__ import annotations

import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.errors import BackendUnavailable, TenancyError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

__all__ = ["Breaker", "is_unreachable", "require_closed", "watch"]

_log = logging.getLogger("tenancy")

_FAILURES: Final = 3
"""In a row, until the breaker opens. One alone may be a connection that a restart cut off."""
_FIRST: Final = 1.0
_LONGEST: Final = 30.0
"""Seconds for which it stays open: doubled each time that the probe fails."""

_OWN_LIMITS: Final = frozenset({"InitializeSessionUserId", "CheckMyDatabase"})
"""The server's functions that refuse a connection because the role, or the database, has as many as
it may (``CONNECTION LIMIT``). The SQLSTATE is that of a server which is full
(https://www.postgresql.org/docs/current/protocol-error-fields.html)."""

_CONNECTION: Final = "08"
_POOLERS: Final = "08P01"
"""What PgBouncer says of everything, a wrong password among it."""
_TOO_MANY: Final = "53300"
_NOT_SERVING: Final = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05"})
"""SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html"""


class Breaker:
    """Closed while connections can be opened; open after failures; then half open, for one probe.

    Args:
        name: Of what it is for, for the log: no URL.
        sources: From how many tenants the failures must come. Where tenants have pools of their
            own on one server, a single one that fails says more of its tenant than of the server,
            and what is refused to one role or database says nothing of it.
        clock: Seconds, never going back.

    Attributes:
        is_full: Whether the last failure was that there are as many connections as there may be:
            those that are open can be waited for.
    """

    __slots__ = (
        "_clock",
        "_delay",
        "_failures",
        "_from",
        "_probing",
        "_sources",
        "_until",
        "is_full",
        "name",
    )

    def __init__(
        self, name: str, *, sources: int = 1, clock: Callable[[], float] = monotonic
    ) -> None:
        self.name = name
        self._clock = clock
        self._sources = sources
        self._failures = 0
        self._from: set[Hashable] = set()
        self.is_full = False
        # Of the time-out that is running or was the last; 0 while it is closed.
        self._delay = 0.0
        self._until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether connections are refused, but for one probe."""
        return bool(self._delay)

    @property
    def retry_after(self) -> float:
        """Seconds until a connection may be opened; 0 if one may be now."""
        if not self._delay:
            return 0.0
        left = self._until - self._clock()
        if left > 0:
            return left
        return _FIRST if self._probing else 0.0

    def begin(self) -> None:
        """Take note that a connection is being opened: the probe, if the breaker is not closed."""
        self._probing = bool(self._delay)

    def succeed(self) -> None:
        """The other end answered."""
        if self._delay:
            _log.warning("%s can be reached again", self.name)
        self._failures = 0
        self._from.clear()
        self._delay = 0.0
        self._probing = False
        self.is_full = False

    def fail(
        self, *, at_once: bool, source: Hashable, full: bool = False, of_one: bool = False
    ) -> None:
        """The other end did not answer, or let nobody in.

        Args:
            at_once: Whether one such failure is enough: it made somebody wait.
            source: Which tenant's, or pool's, it was.
            full: Whether there are as many connections as there may be.
            of_one: Whether it may be that one role or database only which is not let in.
        """
        if of_one and self._sources > 1:
            self.abandon()
            return
        probing, self._probing = self._probing, False
        self.is_full = full
        self._failures += 1
        if len(self._from) < self._sources:
            self._from.add(source)
        if self._delay:
            if probing:
                self._open(min(self._delay * 2, _LONGEST))
        elif (at_once or self._failures >= _FAILURES) and len(self._from) >= self._sources:
            _log.warning("%s cannot be reached: no connection is opened for a while", self.name)
            self._open(_FIRST)

    def abandon(self) -> None:
        """It was not found out whether the other end answers."""
        self._probing = False

    def _open(self, delay: float) -> None:
        self._delay = delay
        self._until = self._clock() + delay


def require_closed(breakers: Iterable[Breaker]) -> None:
    """Refuse while a connection would not be opened.

    Raises:
        BackendUnavailable: With the seconds until it is tried again.
    """
    left = max((breaker.retry_after for breaker in breakers), default=0.0)
    if left > 0:
        raise BackendUnavailable(
            "The database cannot be reached: opening a connection failed, and is tried again in "
            f"{left:.1f} seconds.",
            retry_after=left,
        )


def watch(
    breakers: tuple[Breaker, ...], connect: Callable[..., Any], source: Hashable
) -> Callable[..., Any]:
    """Return what opens a connection and tells the breakers how it went.

    Args:
        breakers: Of what has to answer.
        connect: Opens it, in a greenlet that nobody cancels.
        source: Whose pool it is.

    Raises:
        BackendUnavailable: A breaker is open.
    """
    require_closed(breakers)
    # None of them is told before all have agreed.
    for breaker in breakers:
        breaker.begin()
    return partial(_connect, breakers, connect, source)


def _connect(
    breakers: tuple[Breaker, ...], connect: Callable[..., Any], source: Hashable, *args: Any
) -> Any:  # noqa: ANN401 - DBAPI
    try:
        connection = connect(*args)
    except BaseException as error:
        if is_unreachable(error):
            _fail(breakers, error, source)
        elif any(_has_answered(cause) for cause in _causes(error)):
            _succeed(breakers)
        else:
            for breaker in breakers:
                breaker.abandon()
        raise
    _succeed(breakers)
    return connection


def _succeed(breakers: tuple[Breaker, ...]) -> None:
    for breaker in breakers:
        breaker.succeed()


def _fail(breakers: tuple[Breaker, ...], error: BaseException, source: Hashable) -> None:
    causes = _causes(error)
    at_once = any(isinstance(cause, TimeoutError) for cause in causes)
    full = any(_code_of(cause) == _TOO_MANY for cause in causes)
    of_one = any(_is_of_one(cause) for cause in causes)
    for breaker in breakers:
        breaker.fail(at_once=at_once, source=source, full=full, of_one=of_one)


def _is_of_one(error: BaseException) -> bool:
    code = _code_of(error)
    function = getattr(error, "server_source_function", None)
    return code == _POOLERS or (code == _TOO_MANY and function in _OWN_LIMITS)


def is_unreachable(error: BaseException) -> bool:
    """Whether an error means that nobody answers, or that nobody is let in for now.

    A wrong password or a missing database is an answer, and waiting does not cure it.
    """
    if isinstance(error, TenancyError) and not isinstance(error, BackendUnavailable):
        return False
    return any(
        isinstance(cause, OSError)
        or code[:2] == _CONNECTION
        or code == _TOO_MANY
        or code in _NOT_SERVING
        for cause in _causes(error)
        for code in [_code_of(cause)]
    )


def _has_answered(error: BaseException) -> bool:
    return bool(_code_of(error))


def _code_of(error: BaseException) -> str:
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else ""


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it was made from, by tenancy or by SQLAlchemy."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = getattr(cause, "orig", None) or cause.__cause__
    return found
