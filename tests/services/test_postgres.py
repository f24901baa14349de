"""PostgreSQL's settings, its passwords and TLS."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from support.services.certificates import make_certificates
from support.services.databases import create_database
from support.services.fixtures import wanted
from support.services.observing import shared_memories, shared_memory
from support.services.postgres import Postgres
from support.services.shared_memory import remove_segment

if TYPE_CHECKING:
    from pathlib import Path

    from support.services.certificates import Certificates
    from support.services.databases import PostgresDatabase

pytestmark = pytest.mark.anyio


async def connect(server: Postgres, **options: Any) -> asyncpg.Connection:
    return await asyncpg.connect(server.url(driver="postgresql"), timeout=60, **options)


async def test_settings_reach_the_server() -> None:
    wanted("postgres")
    settings = {"max_connections": 17, "max_prepared_transactions": 3, "lock_timeout": "7s"}
    with Postgres(config=settings) as server:
        connection = await connect(server)
        found = {name: await connection.fetchval(f"SHOW {name}") for name in settings}
        await connection.close()
    assert found == {
        "max_connections": "17",
        "max_prepared_transactions": "3",
        "lock_timeout": "7s",
    }


async def test_settings_can_be_changed_while_it_runs(postgres_victim: Postgres) -> None:
    connection = await connect(postgres_victim)
    await connection.execute("ALTER SYSTEM SET lock_timeout = '9s'")
    await connection.fetchval("SELECT pg_reload_conf()")
    await connection.close()
    postgres_victim.restart()
    connection = await connect(postgres_victim)
    assert await connection.fetchval("SHOW lock_timeout") == "9s"
    await connection.close()


async def test_what_was_committed_survives_a_crash(postgres_victim: Postgres) -> None:
    connection = await connect(postgres_victim)
    await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    postgres_victim.restart(crash=True)
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await connection.execute("SELECT 1")
    connection.terminate()
    connection = await connect(postgres_victim)
    assert await connection.fetchval("SELECT one FROM kept") == 1
    await connection.close()


async def test_a_kill_is_seen_by_nobody_before_it_is_over(postgres_victim: Postgres) -> None:
    """Neither does a client hear of it, nor does the postmaster begin to recover."""
    connections = [await connect(postgres_victim) for _ in range(20)]
    before = postgres_victim.log
    postgres_victim.kill()
    assert postgres_victim.log == before
    for connection in connections:
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            await connection.execute("SELECT 1")
        connection.terminate()


async def test_passwords_are_asked_for_and_go_by_scram(postgres_victim: Postgres) -> None:
    for password in ("", "wrong"):
        url = postgres_victim.url(user="postgres", password=password, driver="postgresql")
        with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
            await asyncpg.connect(url)
    database = await create_database(postgres_victim)
    stored = await database.fetch(
        "SELECT left(rolpassword, 13) FROM pg_authid WHERE rolcanlogin GROUP BY 1"
    )
    assert stored == [("SCRAM-SHA-256",)]


async def test_contrib_is_there(postgres_database: PostgresDatabase) -> None:
    await postgres_database.admin("CREATE EXTENSION btree_gist")
    # Its library is loaded when one of its functions runs.
    assert await postgres_database.fetchval("SELECT int4_dist(3, 7)") == 4


def test_a_killed_server_leaves_no_shared_memory() -> None:
    wanted("postgres")
    server = Postgres()
    server.start()
    segment = shared_memory(server.folder / "data")
    server.kill()
    assert segment in shared_memories()
    server.close()
    assert segment not in shared_memories()


def test_shared_memory_that_is_in_use_is_not_removed(postgres_victim: Postgres) -> None:
    """A number in an old file may be another server's by now."""
    data = postgres_victim.folder / "data"
    segment = shared_memory(data)
    remove_segment((data / "postmaster.pid").read_text())
    assert segment in shared_memories()


# --- TLS ----------------------------------------------------------------------------------------


async def test_tls_is_checked_against_the_authority(postgres_tls_server: Postgres) -> None:
    assert postgres_tls_server.certificates is not None
    context = postgres_tls_server.certificates.client_context()
    connection = await connect(postgres_tls_server, ssl=context)
    assert await connection.fetchval(
        "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    ) in {"TLSv1.2", "TLSv1.3"}
    await connection.close()


async def test_who_does_not_speak_tls_is_refused(postgres_tls_server: Postgres) -> None:
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="no encryption"):
        await connect(postgres_tls_server, ssl=False)


async def test_another_authority_does_not_vouch_for_the_server(
    postgres_tls_server: Postgres, tmp_path: Path
) -> None:
    stranger = make_certificates(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(postgres_tls_server, ssl=stranger.client_context())


async def test_where_tls_is_offered_both_ways_work(certificates: Certificates) -> None:
    wanted("postgres")
    with Postgres(certificates=certificates) as server:
        for context, encrypted in ((False, False), (certificates.client_context(), True)):
            connection = await connect(server, ssl=context)
            query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await connection.fetchval(query) is encrypted
            await connection.close()


async def test_a_server_without_certificates_speaks_no_tls(
    postgres_server: Postgres, certificates: Certificates
) -> None:
    with pytest.raises(ConnectionError, match="rejected SSL upgrade"):
        await connect(postgres_server, ssl=certificates.client_context())
