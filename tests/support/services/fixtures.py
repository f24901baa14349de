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


def serve(server: Callable[[], AnyServer]) -> Iterator[AnyServer]:
    """Run a server for a fixture."""
    with ExitStack() as stack:
        try:
            running = server()
            stack.callback(running.close)
            running.start()
        except ServiceUnavailableError as error:
            pytest.fail(str(error), pytrace=False)
        yield running


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
    wanted("postgres")
    if found := elsewhere("postgres"):
        yield found
    else:
        yield from serve(Postgres)


@pytest.fixture
def postgres_victim() -> Iterator[Postgres]:
    """A PostgreSQL of this test's own, to be killed, paused and restarted."""
    wanted("postgres")
    yield from serve(Postgres)


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
    wanted("pgbouncer")
    if found := elsewhere("pgbouncer"):
        yield found
    else:
        yield from serve(partial(PgBouncer, postgres_server))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority for tests, and a certificate for servers on the loopback."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def postgres_tls_server(certificates: Certificates) -> Iterator[Postgres]:
    """A PostgreSQL that takes TLS connections only; shared by the tests of this process.

    ``.certificates.client_context()`` is what a client needs to trust it.
    """
    wanted("postgres")
    yield from serve(partial(Postgres, certificates=certificates, only_tls=True))


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[MySQL | External]:
    """The MariaDB that the tests of this process share."""
    wanted("mysql")
    if found := elsewhere("mysql"):
        yield found
    else:
        yield from serve(MySQL)


@pytest.fixture
def mysql_victim() -> Iterator[MySQL]:
    """A MariaDB of this test's own, to be killed, paused and restarted."""
    wanted("mysql")
    yield from serve(MySQL)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis | External]:
    """The Redis that the tests of this process share."""
    wanted("redis")
    if found := elsewhere("redis"):
        yield found
    else:
        yield from serve(Redis)


@pytest.fixture
def redis_victim() -> Iterator[Redis]:
    """A Redis of this test's own, to be killed, paused and restarted."""
    wanted("redis")
    yield from serve(Redis)


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
