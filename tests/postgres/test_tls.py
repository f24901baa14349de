"""The TLS modes of a URL, against a server that has TLS and one that has not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url, select, text

from support.postgres import Base, Note, opened, provisioned
from support.postgres_store import store_on
from support.services.databases import fresh_database
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql.postgres import TLS_MODES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres

pytestmark = pytest.mark.anyio

ENCRYPTED = text("SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()")


@pytest.fixture
def tls_database(postgres_tls_server: Postgres) -> Iterator[PostgresDatabase]:
    with fresh_database(postgres_tls_server) as database:
        yield database


def with_query(url: str, **query: str) -> str:
    return make_url(url).update_query_dict(query).render_as_string(hide_password=False)


@pytest.mark.parametrize("name", ["ssl", "sslmode"])
@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
async def test_modes_that_encrypt_do(
    tls_database: PostgresDatabase, postgres_tls_server: Postgres, mode: str, name: str
) -> None:
    query = {name: mode}
    if mode.startswith("verify"):
        query["sslrootcert"] = str(postgres_tls_server.certificates.authority)
    async with opened(
        tls_database,
        url=with_query(tls_database.app_url, **query),
        control_database_url=with_query(tls_database.control_url, **query),
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            assert await session.scalar(ENCRYPTED) is True
            assert (await session.scalars(select(Note))).all() == []


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
async def test_an_authority_that_did_not_sign_is_not_believed(
    tls_database: PostgresDatabase, mode: str
) -> None:
    url = with_query(tls_database.app_url, ssl=mode, sslrootcert="system")
    with pytest.raises(BackendUnavailable, match="SSLCertVerificationError") as caught:
        async with opened(tls_database, url=url):
            pass
    assert tls_database.password not in str(caught.value)


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
@pytest.mark.parametrize("which", ["url", "control_database_url"])
async def test_without_an_authority_the_way_out_is_told(
    tls_database: PostgresDatabase, mode: str, which: str
) -> None:
    urls = {"url": tls_database.app_url, "control_database_url": tls_database.control_url}
    urls[which] = with_query(urls[which], ssl=mode)
    with pytest.raises(ConfigurationError, match="sslrootcert=system"):
        async with opened(tls_database, **urls):
            pass


async def test_the_authorities_of_the_machine_can_be_named(
    tls_database: PostgresDatabase,
    postgres_tls_server: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What OpenSSL takes for the machine's.
    monkeypatch.setenv("SSL_CERT_FILE", str(postgres_tls_server.certificates.authority))
    for mode in ("verify-ca", "verify-full"):
        url = with_query(tls_database.app_url, ssl=mode, sslrootcert="system")
        async with opened(tls_database, url=url) as isolation:
            (acme,) = await provisioned(isolation, mode)
            async with isolation.session(acme) as session:
                assert await session.scalar(ENCRYPTED) is True


async def test_without_encryption_a_server_that_demands_it_refuses(
    tls_database: PostgresDatabase,
) -> None:
    with pytest.raises(BackendUnavailable, match="28000"):
        async with opened(tls_database, url=with_query(tls_database.app_url, ssl="disable")):
            pass


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_tls_is_refused_where_it_is_required(
    postgres_database: PostgresDatabase, mode: str
) -> None:
    query = {"ssl": mode} | ({"sslrootcert": "system"} if mode != "require" else {})
    with pytest.raises(BackendUnavailable, match="ConnectionError"):
        async with opened(postgres_database, url=with_query(postgres_database.app_url, **query)):
            pass


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
async def test_a_server_without_tls_is_taken_where_it_may_be(
    postgres_database: PostgresDatabase, mode: str
) -> None:
    url = with_query(postgres_database.app_url, ssl=mode)
    async with opened(postgres_database, url=url) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            assert await session.scalar(ENCRYPTED) is False


@pytest.mark.parametrize("query", [{"ssl": "true"}, {"ssl": "on"}, {"sslmode": "REQUIRE"}])
async def test_a_mode_that_does_not_exist_is_told_with_those_that_do(
    postgres_database: PostgresDatabase, query: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with opened(postgres_database, url=with_query(postgres_database.app_url, **query)):
            pass
    assert ", ".join(TLS_MODES) in str(caught.value)
    assert "TENANCY_DATABASE_URL" in str(caught.value)
    assert postgres_database.password not in str(caught.value)


async def test_two_modes_that_disagree_are_refused(postgres_database: PostgresDatabase) -> None:
    url = with_query(postgres_database.app_url, ssl="require", sslmode="disable")
    with pytest.raises(ConfigurationError, match="does not exist, or two"):
        async with opened(postgres_database, url=url):
            pass


async def test_a_service_whose_databases_are_all_encrypted(
    tls_database: PostgresDatabase, postgres_tls_server: Postgres
) -> None:
    """The tenant store takes the same modes."""
    query = {
        "ssl": "verify-full",
        "sslrootcert": str(postgres_tls_server.certificates.authority),
    }
    config = TenancyConfig(
        database_url=with_query(tls_database.app_url, **query),
        control_database_url=with_query(tls_database.control_url, **query),
    )
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"), tenancy.session() as session:
            assert await session.scalar(ENCRYPTED) is True
        links = await tls_database.fetch(
            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1",
            tls_database.control,
        )
        assert set(links) == {(True,)}


async def test_the_store_tells_the_way_out_as_well(tls_database: PostgresDatabase) -> None:
    config = TenancyConfig(
        database_url=tls_database.app_url,
        control_database_url=with_query(tls_database.control_url, ssl="verify-full"),
    )
    with pytest.raises(ConfigurationError, match="sslrootcert=system"):
        async with Tenancy(config, metadata=Base.metadata):
            pass


async def test_a_store_that_is_opened_again_demands_no_less_than_before(
    postgres_database: PostgresDatabase,
) -> None:
    store = store_on(with_query(postgres_database.control_url, ssl="require"))
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            async with store:
                pass
