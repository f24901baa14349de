"""Fixtures for real servers. Nothing starts, and no driver is imported, before a test asks.

``*_server`` is shared by the tests of one process and must not be harmed; ``*_victim`` belongs to
one test, which may kill, pause and restart it. What cannot be had fails the test, unless
``TENANCY_TEST_SKIP`` names it.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from support.services.certificates import Certificates, make_certificates
from support.services.chaos import ChaosProxy
from support.services.databases import PostgresDatabase, fresh_database
from support.services.errors import ServiceUnavailableError
from support.services.external import External, external
from support.services.mysql import MySQL
from support.services.pgbouncer import PgBouncer
from support.services.postgres import Postgres
from support.services.redis import Redis
from support.services.round_trips import RoundTripCounter
from support.services.settings import SKIP, skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.services.server import Server


AnyServer = TypeVar("AnyServer", bound="Server")


def pytest_configure() -> None:
    """Refuse a wrong list of what to skip before any test runs."""
    try:
        skipped()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what this run did without, however quiet it is and whatever it calls the rest."""
    if without := ", ".join(sorted(skipped())):
        terminalreporter.section("services")
        terminalreporter.line(f"{SKIP} is set: whatever needs {without} was not tested.")


def own(service: str, server: Callable[[], AnyServer]) -> Iterator[AnyServer]:
    """Run a server for a fixture, unless this run does without the service."""
    wanted(service)
    with ExitStack() as stack:
        try:
            running = server()
            stack.callback(running.close)
            running.start()
        except ServiceUnavailableError as error:
            pytest.fail(str(error), pytrace=False)
        yield running


def shared(service: str, server: Callable[[], AnyServer]) -> Iterator[AnyServer | External]:
    """Run a server for a fixture, or use the one that somebody else runs."""
    wanted(service)
    if found := elsewhere(service):
        yield found
    else:
        yield from own(service, server)


def wanted(service: str) -> None:
    """Skip the test if this run does without the service."""
    if service in skipped():
        pytest.skip(f"{SKIP} names {service}")


def elsewhere(service: str) -> External | None:
    """Return the server that somebody else runs; fail if it is named and dead."""
    try:
        return external(service)
    except ServiceUnavailableError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres | External]:
    """The PostgreSQL that the tests of this process share."""
    yield from shared("postgres", Postgres)


@pytest.fixture
def postgres_victim() -> Iterator[Postgres]:
    """A PostgreSQL of this test's own, to be killed, paused and restarted."""
    yield from own("postgres", Postgres)


@pytest.fixture
def postgres_database(postgres_server: Postgres | External) -> Iterator[PostgresDatabase]:
    """A fresh database on the shared server, with its roles."""
    with fresh_database(postgres_server) as database:
        yield database


@pytest.fixture
def pgbouncer(postgres_server: Postgres | External) -> Iterator[Callable[..., Any]]:
    """Make PgBouncers of this test's own before the shared PostgreSQL: ``pgbouncer(**options)``.

    The options are those of :class:`PgBouncer`; ``postgres=`` puts it before another server. One
    that somebody else runs (``TENANCY_TEST_PGBOUNCER_URL``) is returned where no option is given:
    what it is set to is not ours to say.
    """
    wanted("pgbouncer")
    with ExitStack() as stack:

        def make(**options: Any) -> PgBouncer | External:
            if not options and (found := elsewhere("pgbouncer")):
                return found
            postgres = options.pop("postgres", postgres_server)
            try:
                return stack.enter_context(PgBouncer(postgres, **options))
            except ServiceUnavailableError as error:
                pytest.fail(str(error), pytrace=False)

        yield make


@pytest.fixture(scope="session")
def pgbouncer_server(postgres_server: Postgres | External) -> Iterator[PgBouncer | External]:
    """A PgBouncer in transaction mode before the shared PostgreSQL, shared as well."""
    yield from shared("pgbouncer", partial(PgBouncer, postgres_server))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority for tests, and a certificate for servers on the loopback."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def postgres_tls_server(certificates: Certificates) -> Iterator[Postgres]:
    """A PostgreSQL that takes TLS connections only; shared by the tests of this process.

    ``.certificates.client_context()`` is what a client needs to trust it.
    """
    yield from own("postgres", partial(Postgres, certificates=certificates, only_tls=True))


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[MySQL | External]:
    """The MariaDB that the tests of this process share."""
    yield from shared("mysql", MySQL)


@pytest.fixture
def mysql_victim() -> Iterator[MySQL]:
    """A MariaDB of this test's own, to be killed, paused and restarted."""
    yield from own("mysql", MySQL)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis | External]:
    """The Redis that the tests of this process share."""
    yield from shared("redis", Redis)


@pytest.fixture
def redis_victim() -> Iterator[Redis]:
    """A Redis of this test's own, to be killed, paused and restarted."""
    yield from own("redis", Redis)


@pytest.fixture
def chaos_proxy() -> Iterator[Callable[[str | tuple[str, int]], ChaosProxy]]:
    """Make proxies that a test makes slow, silent or fatal: ``chaos_proxy(url)``."""
    with ExitStack() as stack:
        yield lambda upstream: stack.enter_context(ChaosProxy(upstream))


@pytest.fixture
def round_trip_counter() -> Iterator[Callable[..., RoundTripCounter]]:
    """Make proxies that count round trips: ``round_trip_counter(url)``."""
    with ExitStack() as stack:

        def make(upstream: str | tuple[str, int], **options: Any) -> RoundTripCounter:
            return stack.enter_context(RoundTripCounter(upstream, **options))

        yield make
