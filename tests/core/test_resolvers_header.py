"""The header resolver."""

from __future__ import annotations

import pytest

from support.scopes import connection
from tenancy_core._resolvers.header import HeaderResolver
from tenancy_core.contract import TenantClaim
from tenancy_core.errors import InvalidIdentifier, TenantNotIdentified

pytestmark = pytest.mark.anyio


async def claim(*values: bytes, name: bytes = b"x-tenant-id") -> TenantClaim | None:
    resolver = HeaderResolver("X-Tenant-ID")
    return await resolver.resolve(connection(*((name, value) for value in values)))


@pytest.mark.parametrize("value", [b"acme", b" acme", b"acme\t", b"\t acme \t"])
async def test_one_header_names_the_tenant_and_says_that_nothing_proves_it(value: bytes) -> None:
    # Spaces and tabs around a value are no part of it (RFC 9110, 5.5); httptools keeps them.
    assert await claim(value) == TenantClaim("acme", "header", verified=False)


async def test_without_the_header_nothing_is_said() -> None:
    assert await claim() is None
    assert HeaderResolver.missing is TenantNotIdentified


@pytest.mark.parametrize(
    "values",
    [(b"acme", b"beta"), (b"acme", b"acme"), (b"acme", b""), (b"", b""), (b"acme",) * 3],
)
async def test_R3_a_doubled_header_is_refused_even_with_equal_values(
    values: tuple[bytes, ...],
) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(*values)


@pytest.mark.parametrize("value", [b"acme, beta", b"acme,beta", b"acme,", b",acme", b"acme;beta"])
async def test_R4_a_list_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(value)


@pytest.mark.parametrize("name", [b"x_tenant_id", b"x-tenant_id", b"xtenantid", b"x-tenant-id "])
async def test_R5_a_header_of_a_similar_name_is_ignored(name: bytes) -> None:
    assert await claim(b"acme", name=name) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"Acme",
        b"ACME",
        b"a_b",
        b"a.b",
        b"a b",
        b"a/b",
        b"-a",
        b"a-",
        b"a--b",
        b"*",
        b"%61cme",
        b'"acme"',
        b"acm\xe9",
        b"\xff\xfe",
        "ⓐcme".encode(),
        "ａｃｍｅ".encode(),
        "acme\u200d".encode(),
        "ſlack".encode(),
        "\u212aelvin".encode(),
    ],
)
async def test_R12_what_is_no_identifier_is_refused_and_not_repaired(value: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(value)


@pytest.mark.parametrize(
    "value",
    [
        b"acme\n",
        b"acme\r",
        b"acme\r\n",
        b"\nacme",
        b"acme\x00",
        b"\x00",
        b"ac\tme",
        b"acme\x0b",
        b"acme\x0c",
        b"acme\x1f",
        b"acme\x7f",
        b"acme\x85",
        b"acme\xa0",
        b"acme\nx-tenant-id: beta",
    ],
)
async def test_R16_control_characters_are_refused_also_at_the_end(value: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(value)


@pytest.mark.parametrize("length", [49, 64, 65, 70_000, 1_000_000])
async def test_R18_what_is_too_long_is_refused_and_not_repeated(length: int) -> None:
    with pytest.raises(InvalidIdentifier) as refused:
        await claim(b"a" * length)
    assert "aaa" not in str(refused.value)
    assert len(str(refused.value)) < 200


async def test_R18_the_longest_identifier_has_48_bytes() -> None:
    assert await claim(b"a" * 48) == TenantClaim("a" * 48, "header")
