"""Changes of tenants are heard of in other processes by LISTEN, and by the poll where that fails.

No test but those that say so would pass by the poll: it comes once an hour.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url, select, text

from support.invalidation import Ears, connected, never
from support.postgres import Base, Note
from support.waiting import until
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core._directory import ChangeAnnouncer
from tenancy_core.contract import Severity
from tenancy_core.errors import BackendUnavailable, ConfigurationError, TenantInactive
from tenancy_postgres import server
from tenancy_postgres.invalidation import subscription

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres
    from support.services.round_trips import RoundTripCounter
    from tenancy_core.contract import Finding

pytestmark = pytest.mark.anyio

HOUR = 3600.0

LISTENERS = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'
"""


def settings(
    database: PostgresDatabase, *, listen_url: str | None = None, **more: Any
) -> TenancyConfig:
    return TenancyConfig(
        **{
            "database_url": database.app_url,
            "control_database_url": database.control_url,
            "invalidation_poll_seconds": HOUR,
            "sections": {} if listen_url is None else {"postgres": {"listen_url": listen_url}},
            **more,
        }
    )


def process(config: TenancyConfig) -> Tenancy:
    return Tenancy(config, metadata=Base.metadata, clock=never)


async def is_served(tenancy: Tenancy, tenant: str = "acme") -> bool:
    try:
        async with tenancy.scope(tenant):
            return True
    except TenantInactive:
        return False


async def suspends(maker: Tenancy, *others: Tenancy) -> None:
    """Suspend acme in one process, and resume it: the others hear of both."""
    acme = await maker.tenants.get("acme")
    ears = [Ears(other) for other in others]
    for suspend in (True, False):
        for other in others:
            assert await is_served(other) is suspend
        await (maker.tenants.suspend if suspend else maker.tenants.resume)("acme")
        for other, ear in zip(others, ears, strict=True):
            # A message from before may come late. The poll comes in an hour.
            while await is_served(other) is suspend:
                await ear.hears(acme.id)


async def findings(tenancy: Tenancy) -> list[Finding]:
    return [found for found in await tenancy.check() if found.check == "postgres.invalidation"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "other processes' changes" in record.getMessage()
    ]


# -- two processes ---------------------------------------------------------------------------------


async def test_K1_a_suspension_by_another_process_is_heard_at_once(
    postgres_database: PostgresDatabase,
) -> None:
    config = settings(postgres_database)
    async with process(config) as one, process(config) as two, process(config) as three:
        await one.tenants.create("acme")
        for tenancy in (one, two, three):
            await connected(tenancy)
            assert await findings(tenancy) == []
        await suspends(one, two, three)
        await suspends(three, one, two)


async def test_K1_without_the_bus_it_would_not_be_heard(
    postgres_database: PostgresDatabase,
) -> None:
    """Shows that the test above sees the bus at work, and not something else."""
    config = settings(postgres_database, invalidation_bus="none")
    async with process(config) as one, process(config) as two:
        assert (one.parts.bus, one.parts.listener) == (None, None)
        await one.tenants.create("acme")
        assert await is_served(two)
        await one.tenants.suspend("acme")
        assert await is_served(two)
        assert await findings(two) == []


async def test_K1_every_change_of_a_tenants_life_is_heard(
    postgres_database: PostgresDatabase,
) -> None:
    config = settings(postgres_database)
    async with process(config) as one, process(config) as two:
        await connected(two)
        ears = Ears(two)
        assert await two.parts.directory.find("acme") is None
        acme = await one.tenants.create("acme")
        await ears.hears(acme.id)
        await until(lambda: len(ears.heard) == 1)  # made, and made active
        assert await is_served(two)
        changes: list[Callable[[], Any]] = [
            lambda: one.tenants.suspend("acme"),
            lambda: one.tenants.suspend("acme"),  # nothing to change: it may be a second try
            lambda: one.tenants.resume("acme"),
            lambda: one.tenants.archive("acme"),
            lambda: one.tenants.erase("acme", reason="asked for"),
        ]
        for change in changes:
            ears.heard.clear()
            await change()
            await ears.hears(acme.id)
        assert await two.parts.directory.find("acme") is None


async def test_a_process_is_not_told_of_its_own_changes(
    postgres_database: PostgresDatabase,
) -> None:
    config = settings(postgres_database)
    async with process(config) as one, process(config) as two:
        await connected(one)
        await connected(two)
        acme = await one.tenants.create("acme")
        here, there = Ears(one), Ears(two)
        await one.tenants.suspend("acme")
        await there.hears(acme.id)
        await two.tenants.resume("acme")
        await here.hears(acme.id)  # once for the suspension, once for what came behind it
        await here.hears(acme.id)
        assert here.heard == []


async def test_everybody_is_forgotten_after_a_star(postgres_database: PostgresDatabase) -> None:
    config = settings(postgres_database)
    async with process(config) as one:
        await connected(one)
        await one.tenants.create("acme")
        assert await is_served(one)
        ears = Ears(one)
        assert one.parts.bus is not None
        await one.parts.bus.publish("*")
        await ears.hears(None)
        assert len(one.parts.directory.l1) == 0


async def test_two_stores_in_two_databases_or_one_server_do_not_disturb_each_other(
    postgres_database: PostgresDatabase,
) -> None:
    async with process(settings(postgres_database)) as one:
        bus: Any = one.parts.bus
        name = await bus.channel()
        assert len(name.encode()) <= 63
        key = await one.parts.store.instance_key()
        assert key.hex()[:8] not in name
        async with postgres_database.connection() as superuser:
            await superuser.execute(
                "UPDATE tenancy.tenancy_keys SET value = decode(repeat('ab', 32), 'hex') "
                "WHERE name = 'instance'"
            )
    async with process(settings(postgres_database)) as other:
        bus = other.parts.bus
        assert await bus.channel() != name


async def test_the_channel_is_not_shown_to_tenants(
    postgres_database: PostgresDatabase,
) -> None:
    """A tenant's session can listen to any channel that it knows the name of."""
    config = settings(postgres_database)
    async with process(config) as one:
        await one.tenants.create("acme")
        await connected(one)
        bus: Any = one.parts.bus
        async with one.scope("acme"), one.session() as session:
            shown = await session.scalars(text("SELECT query FROM pg_stat_activity"))
            name = await bus.channel()
            assert not any(name in (query or "") for query in shown)


# -- what comes over it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        " ",
        "x",
        "**",
        "* " * 2000,
        "acme",
        "00000000-0000-0000-0000-00000000000g",
        "{00000000-0000-0000-0000-000000000000}",
        "urn:uuid:00000000-0000-0000-0000-000000000000",
        "00000000000000000000000000000000",
        "\x01\x02é",
        "'; DROP TABLE tenancy_tenants; --",
    ],
)
async def test_garbage_is_counted_and_forgets_nobody(
    postgres_database: PostgresDatabase, garbage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tenancy")
    config = settings(postgres_database)
    async with process(config) as one, process(config) as two:
        await connected(two)
        await one.tenants.create("acme")
        ears = Ears(two)
        assert one.parts.bus is not None
        assert two.parts.listener is not None
        await one.parts.bus.publish(garbage)
        acme = await one.tenants.suspend("acme")
        await ears.hears(acme.id)
        told = garbage.startswith("* ")
        assert two.parts.listener.malformed == (0 if told else 1)
        assert (None in ears.heard) is told
        assert not garbage.strip() or len(garbage) < 3 or garbage not in caplog.text


async def test_K1_who_falls_behind_asks_the_store(
    postgres_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "_MOST", 5)
    config = settings(postgres_database)
    async with process(config) as one, process(config) as two:
        await connected(two)
        await one.tenants.create("acme")
        assert await is_served(two)
        directory, follower = two.parts.directory, two.parts.follower
        going, held, asked = asyncio.Event(), asyncio.Event(), asyncio.Event()
        poll = follower.poll

        async def wait(_: object) -> None:
            held.set()
            await going.wait()

        async def ask() -> None:
            await poll()
            asked.set()

        monkeypatch.setattr(type(follower), "poll", lambda _: ask())
        directory.on_change(wait)
        assert one.parts.bus is not None
        await one.parts.bus.publish("*")
        await held.wait()
        for _ in range(20):
            await one.parts.bus.publish("ballast")
        await one.tenants.suspend("acme")
        bus: Any = two.parts.bus
        async with bus.subscribe() as messages:  # what is published now comes behind all that
            await bus.publish("last")
            await anext(messages)
        going.set()
        async with asyncio.timeout(60):
            await asked.wait()
        assert not await is_served(two)


# -- a link that breaks ----------------------------------------------------------------------------


async def test_K1_a_listener_that_was_killed_comes_back_and_asks_what_it_missed(
    postgres_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(postgres_database)
    async with process(config) as one, process(config) as two:
        await connected(one)
        await connected(two)
        await one.tenants.create("acme")
        assert await is_served(two)
        acme = await one.tenants.get("acme")
        away = asyncio.Event()
        kind: Any = type(two.parts.bus)
        real = kind.subscribe

        def closed(self: Any) -> Any:
            if self is two.parts.bus and not away.is_set():
                raise BackendUnavailable("not now")
            return real(self)

        monkeypatch.setattr(kind, "subscribe", closed)
        ears = Ears(two)
        async with postgres_database.connection() as superuser:
            for row in await superuser.fetch(LISTENERS):
                await superuser.execute("SELECT pg_terminate_backend($1)", row["pid"])
        await until(lambda: not getattr(two.parts.listener, "connected", True))
        assert await is_served(two)  # kept again, if the last message came behind the first time
        await one.tenants.suspend("acme")
        assert await is_served(two), "nobody has told it"
        away.set()
        await ears.hears(acme.id)
        assert not await is_served(two)
        await connected(two)
        await one.tenants.resume("acme")
        await ears.hears(acme.id)
        assert await is_served(two)


async def test_K1_a_link_that_falls_silent_is_noticed(
    postgres_database: PostgresDatabase,
    chaos_proxy: Callable[[str], ChaosProxy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy = chaos_proxy(postgres_database.control_url)
    config = settings(postgres_database)
    through = settings(postgres_database, listen_url=proxy.url, database_connect_timeout=0.5)
    async with process(config) as one, process(through) as two:
        await connected(two)
        await one.tenants.create("acme")
        bus: Any = two.parts.bus
        assert await is_served(two)
        ears = Ears(two)
        # Where it listens already it tries the link once an hour.
        bus.interval = 0.1
        await bus.publish("wake up")
        await until(lambda: bool(getattr(two.parts.listener, "malformed", 0)))
        proxy.half_open()
        await until(lambda: not getattr(two.parts.listener, "connected", True))
        await connected(two)
        assert "is not heard (TENANCY_POSTGRES_LISTEN_URL: TimeoutError)" in caplog.text
        acme = await one.tenants.suspend("acme")
        await ears.hears(acme.id)
        assert not await is_served(two)


async def test_K1_a_link_that_is_well_is_tried_and_kept(
    postgres_database: PostgresDatabase,
) -> None:
    config = settings(postgres_database, invalidation_poll_seconds=0.02)
    async with process(config) as one:
        await connected(one)

        async def state() -> tuple[int, object]:
            async with postgres_database.connection() as superuser:
                row = await superuser.fetchrow(
                    "SELECT pid, state_change FROM pg_stat_activity "
                    "WHERE datname = current_database() AND query LIKE 'LISTEN %'"
                )
                assert row is not None
                return row["pid"], row["state_change"]

        first = now = await state()
        while now[1] == first[1]:
            now = await state()
        assert now[0] == first[0]


async def test_K1_the_server_is_gone_and_comes_back(postgres_victim: Postgres) -> None:
    config = TenancyConfig(
        database_url=postgres_victim.url(), invalidation_poll_seconds=HOUR, database_pool_size=3
    )
    async with process(config) as one, process(config) as two:
        await one.tenants.create("acme")
        await connected(one)
        await connected(two)
        await asyncio.to_thread(postgres_victim.kill)
        await until(lambda: not getattr(two.parts.listener, "connected", True))
        await asyncio.to_thread(postgres_victim.start)
        await connected(one)
        await connected(two)
        await suspends(one, two)


async def test_a_listener_that_cannot_connect_stops_nobody_from_opening(
    postgres_database: PostgresDatabase,
    chaos_proxy: Callable[[str], ChaosProxy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy = chaos_proxy(postgres_database.control_url)
    proxy.refuse = True
    config = settings(postgres_database, listen_url=proxy.url)
    async with process(config) as one, process(settings(postgres_database)) as two:
        await one.tenants.create("acme")
        assert await is_served(one)
        (finding,) = await findings(one)
        assert finding.severity is Severity.WARNING
        assert finding.message.startswith(
            "Changes that other processes make are seen within 3600 s, and not at once. Nothing is "
            "heard over TENANCY_POSTGRES_LISTEN_URL: Connection"
        )
        assert "TENANCY_POSTGRES_LISTEN_URL" in finding.remedy
        await until(lambda: "is not heard" in caplog.text)
        await two.tenants.suspend("acme")
        await one.parts.follower.poll()
        assert not await is_served(one)
        proxy.refuse = False
        await connected(one)
        assert await findings(one) == []
        assert caplog.text.count("is not heard") == 1
        assert postgres_database.password not in caplog.text


async def test_a_url_that_leads_to_another_database_is_told(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(postgres_database.superuser_url).set(database="postgres")
    config = settings(postgres_database, listen_url=url.render_as_string(hide_password=False))
    async with process(config) as one:
        (finding,) = await findings(one)
        assert (
            "TENANCY_POSTGRES_LISTEN_URL and the tenant store's URL lead to different databases "
            f"('postgres' and '{postgres_database.name}')"
        ) in finding.message
        await until(lambda: "lead to different databases" in caplog.text)


async def test_the_role_that_listens_needs_no_right_but_to_connect(
    postgres_database: PostgresDatabase,
) -> None:
    role = f"{postgres_database.name}_ear"
    await postgres_database.admin(
        f"CREATE ROLE {role} LOGIN PASSWORD '{postgres_database.password}'"
    )
    try:
        config = settings(postgres_database, listen_url=postgres_database.url(role))
        async with process(config) as one:
            (finding,) = await findings(one)
            assert "GRANT CONNECT ON DATABASE" in finding.message
            await postgres_database.admin(
                f'GRANT CONNECT ON DATABASE "{postgres_database.name}" TO {role}'
            )
            await connected(one)
            async with process(settings(postgres_database)) as two:
                await two.tenants.create("acme")
                await suspends(two, one)
    finally:
        await postgres_database.admin(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_K1_a_process_that_dies_before_it_told_anybody_is_made_up_for_by_the_poll(
    postgres_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object) -> None:
        raise BackendUnavailable("killed here")

    config = settings(postgres_database)
    often = settings(postgres_database, invalidation_poll_seconds=0.05)
    async with process(config) as one, process(often) as two:
        await one.tenants.create("acme")
        await connected(two)
        assert await is_served(two)
        with monkeypatch.context() as patch, pytest.raises(BackendUnavailable):
            patch.setattr(ChangeAnnouncer, "announce", die)
            await one.tenants.suspend("acme")
        ears = Ears(two)
        await ears.hears((await one.tenants.get("acme")).id)
        assert not await is_served(two)


async def test_a_change_stands_where_nobody_could_be_told(
    postgres_database: PostgresDatabase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = settings(postgres_database)
    async with process(config) as one:
        await one.tenants.create("acme")

        async def fail(*_: object) -> None:
            raise OSError("a password")

        monkeypatch.setattr(type(one.parts.bus), "publish", fail)
        await one.tenants.suspend("acme")
        await one.tenants.resume("acme")
        assert await is_served(one)
        assert caplog.text.count("the invalidation bus takes no messages (OSError)") == 1
        assert "a password" not in caplog.text


async def test_K1_a_link_that_falls_silent_while_it_subscribes_is_given_up(
    postgres_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(postgres_database, database_connect_timeout=0.5)
    async with process(config) as one:
        await connected(one)
        stuck = asyncio.Event()
        real = server.facts_of

        async def silent(connection: Any) -> Any:
            if not stuck.is_set():
                stuck.set()
                await asyncio.Event().wait()
            return await real(connection)

        monkeypatch.setattr(subscription, "facts_of", silent)
        async with postgres_database.connection() as superuser:
            for row in await superuser.fetch(LISTENERS):
                await superuser.execute("SELECT pg_terminate_backend($1)", row["pid"])
        await until(stuck.is_set)
        await connected(one)


# -- what it costs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooled", "trips"), [(False, 1), (True, 4)])
async def test_telling_takes_one_round_trip_and_no_connection(
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
    round_trip_counter: Callable[..., RoundTripCounter],
    *,
    pooled: bool,
    trips: int,
) -> None:
    database = postgres_database
    url = database.control_url
    if pooled:
        url = database.url(database.control, via=pgbouncer(default_pool_size=2))
    counter = round_trip_counter(url)
    config = settings(database, control_database_url=counter.url, listen_url=database.control_url)
    async with process(config) as one:
        await connected(one)
        assert one.parts.bus is not None
        await one.parts.bus.publish("*")
        before = one.parts.connections.open
        counter.reset()
        for _ in range(10):
            await one.parts.bus.publish("*")
        assert counter.round_trips == 10 * trips, counter.counts
        assert one.parts.connections.open == before


# -- poolers ---------------------------------------------------------------------------------------


async def test_K1_behind_a_pooler_the_poll_takes_over_and_a_check_says_so(
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bouncer = pgbouncer(default_pool_size=2)
    pooled = settings(
        postgres_database,
        control_database_url=postgres_database.url(postgres_database.control, via=bouncer),
    )
    direct = settings(postgres_database)
    async with process(pooled) as one, process(direct) as two:
        await one.tenants.create("acme")
        (finding,) = await findings(one)
        assert finding.severity is Severity.WARNING
        assert finding.message == (
            "Changes that other processes make are seen within 3600 s, and not at once. "
            "TENANCY_CONTROL_DATABASE_URL leads through a pooler, where nobody can listen."
        )
        assert finding.remedy == (
            "Set TENANCY_POSTGRES_LISTEN_URL to a URL that leads past it, or "
            "TENANCY_INVALIDATION_BUS=none."
        )
        (warning,) = warnings(caplog)
        assert warning == (
            "other processes' changes are not heard of at once, but when the store is asked: "
            "TENANCY_CONTROL_DATABASE_URL leads through a pooler, where nobody can listen. "
            f"{finding.remedy}"
        )
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert "tenancy:change-follower" in names
        # It tells the others all the same, and asks the store.
        await connected(two)
        await suspends(one, two)
        assert await is_served(one)
        await two.tenants.suspend("acme")
        assert await is_served(one)
        await one.parts.follower.poll()
        assert not await is_served(one)
        # And what will not be used is tenants'.
        assert one.parts.connections._most_tenants == one.parts.connections.ceiling - 1


async def test_K1_a_direct_url_beside_the_pooler_is_listened_on(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer(default_pool_size=2)
    config = settings(
        postgres_database,
        database_url=postgres_database.url(postgres_database.app, via=bouncer),
        control_database_url=postgres_database.url(postgres_database.control, via=bouncer),
        listen_url=postgres_database.app_url,
    )
    async with process(config) as one, process(config) as two:
        await connected(one)
        await connected(two)
        assert await findings(two) == []
        await one.tenants.create("acme")
        await suspends(one, two)


# -- connections -----------------------------------------------------------------------------------


async def most_connections(database: PostgresDatabase, ends: asyncio.Event) -> int:
    most = 0
    async with database.connection() as superuser:
        while not ends.is_set():
            most = max(
                most,
                await superuser.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                ),
            )
    return most


async def test_the_ceiling_holds_with_a_listener_and_nobody_starves(
    postgres_database: PostgresDatabase,
) -> None:
    """Three connections: one listens, one is the store's, one is for tenants."""
    config = settings(postgres_database, max_database_connections=3, database_pool_timeout=60)
    ends = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(most_connections(postgres_database, ends))
        async with process(config) as one:
            await connected(one)
            names = ("acme", "beta", "gamma")
            for name in names:
                await one.tenants.create(name)

            async def work(name: str) -> None:
                async with one.scope(name), one.session() as session:
                    await session.execute(select(Note))
                    # Whoever holds the tenants' last connection may ask the store.
                    await one.tenants.get(name)

            async with asyncio.TaskGroup() as requests:
                for _ in range(10):
                    for name in names:
                        requests.create_task(work(name))
            await one.tenants.suspend("acme")
            assert one.parts.listener is not None
            assert one.parts.listener.connected
            assert one.parts.connections.open <= 3
        ends.set()
    assert watch.result() <= 3


async def test_with_two_connections_nobody_listens_and_others_are_told(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(postgres_database, max_database_connections=2)
    async with process(config) as small, process(settings(postgres_database)) as large:
        await small.tenants.create("acme")
        await connected(large)
        await suspends(small, large)
        (finding,) = await findings(small)
        assert "Of the 2 database connections of this process none can be spared" in finding.message
        assert finding.remedy == (
            "Set TENANCY_MAX_DATABASE_CONNECTIONS to 3 or more, or TENANCY_INVALIDATION_BUS=none."
        )
        assert len(warnings(caplog)) == 1
        async with small.scope("acme"), small.session() as session:
            assert (await session.scalars(select(Note))).all() == []


async def test_a_bus_that_was_asked_for_has_its_connection_or_is_refused(
    postgres_database: PostgresDatabase,
) -> None:
    config = settings(postgres_database, max_database_connections=2, invalidation_bus="postgres")
    with pytest.raises(ConfigurationError) as caught:
        process(config)
    assert str(caught.value) == (
        "Of the 2 database connections of this process none can be spared for listening. Set "
        "TENANCY_MAX_DATABASE_CONNECTIONS to 3 or more, or TENANCY_INVALIDATION_BUS=none."
    )


async def test_it_leaves_nothing_when_it_is_closed(postgres_database: PostgresDatabase) -> None:
    before = asyncio.all_tasks()
    tenancy = process(settings(postgres_database))
    for _ in range(3):
        async with tenancy:
            await connected(tenancy)
        assert asyncio.all_tasks() == before
        assert tenancy._built.connections.open == 0
        async with postgres_database.connection() as superuser:
            assert await superuser.fetch(LISTENERS) == []


async def test_it_may_be_closed_at_any_moment_of_the_first_subscription(
    postgres_database: PostgresDatabase,
) -> None:
    tenancy = process(settings(postgres_database))
    for turns in range(0, 120, 7):
        async with tenancy:
            for _ in range(turns):
                await asyncio.sleep(0)
        assert tenancy._built.connections.open == 0


# -- settings --------------------------------------------------------------------------------------


def test_a_store_elsewhere_has_no_such_bus(
    make_config: Callable[..., TenancyConfig], postgres_database: PostgresDatabase
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(make_config(invalidation_bus="postgres"))
    assert str(caught.value) == (
        "TENANCY_INVALIDATION_BUS is 'postgres', and the tenant store is not on PostgreSQL. "
        "Remove the setting, or set it to 'none'."
    )
    config = settings(postgres_database, listen_url="postgresql://user:secret@host/name")
    with pytest.raises(ConfigurationError, match="TENANCY_POSTGRES_LISTEN_URL names no driver"):
        process(config)
