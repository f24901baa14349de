"""The path resolver, and what servers make of a path."""

from __future__ import annotations

import pytest

from support.scopes import http_scope
from tenancy_core._resolvers.path import PathResolver
from tenancy_core.contract import Connection, TenantClaim
from tenancy_core.errors import InvalidIdentifier, TenantNotFound

pytestmark = pytest.mark.anyio

ACME = TenantClaim("acme", "path", verified=False)


async def claim(raw_path: bytes, *, prefix: str = "/t", root_path: str = "") -> TenantClaim | None:
    scope = http_scope(raw_path, root_path=root_path)
    return await PathResolver(prefix).resolve(Connection(scope))


@pytest.mark.parametrize(
    "path",
    [b"/t/acme", b"/t/acme/", b"/t/acme/x", b"/t/acme//x", b"/t/%61cme/x", b"/t/acme?t=beta"],
)
async def test_the_segment_behind_the_prefix_names_the_tenant(path: bytes) -> None:
    assert await claim(path) == ACME


async def test_a_prefix_of_several_segments_is_matched_whole() -> None:
    assert await claim(b"/api/v1/acme/x", prefix="/api/v1") == ACME
    assert await claim(b"/api/acme/x", prefix="/api/v1") is None


@pytest.mark.parametrize(
    "path",
    [
        b"/t/acme%2f..%2fbeta/x",
        b"/t/acme%2F..%2Fbeta",
        b"/t/acme%2fx",
        b"/t/acme%5c..%5cbeta",
        b"/t/acme%252f..%252fbeta",
        b"/t/%2e%2e/acme",
        b"/t/%2e/acme",
        b"/t/acme%3Fx",
        b"/t/acme;beta",
        b"/t/acme%3bbeta",
    ],
)
async def test_R14_an_encoded_slash_stays_in_its_segment_and_makes_it_invalid(path: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(path)


@pytest.mark.parametrize(
    "path", [b"/t//acme", b"/t/./acme", b"/t/../acme", b"/t/", b"/t//", b"/t/..", b"/t/.//acme"]
)
async def test_R15_empty_and_dotted_segments_are_no_identifiers(path: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(path)


@pytest.mark.parametrize(
    "path",
    [
        b"//t/acme",
        b"/./t/acme",
        b"/x/../t/acme",
        b"/T/acme",
        b"/t",
        b"/tacme",
        b"/tt/acme",
        b"/x/t/acme",
        b"/",
        b"",
        b"*",
        b"http://t/acme",
        b"/t\\acme",
    ],
)
async def test_R15_any_other_path_names_no_tenant(path: bytes) -> None:
    assert await claim(path) is None
    assert PathResolver.missing is TenantNotFound


@pytest.mark.parametrize("path", [b"/%74/acme", b"/t%2facme", b"/%74%2facme/x"])
async def test_R14_an_escaped_prefix_is_refused_and_not_passed_over(path: bytes) -> None:
    """A framework decodes it and routes it to that tenant, whatever another source says."""
    with pytest.raises(InvalidIdentifier):
        await claim(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/t/acme%00",
        b"/t/%00",
        b"/t/acme%0a",
        b"/t/acme%0d%0a/x",
        b"/t/acme%0A",
        b"/t/acme%09",
        b"/t/acme%20",
        b"/t/acme+",
        b"/t/acme\n",
        b"/t/acme%7f",
        b"/t/acme%",
        b"/t/acme%6",
        b"/t/acme%zz",
        b"/t/acme%u0061",
    ],
)
async def test_R16_control_characters_and_broken_escapes_are_refused(path: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/t/ACME",
        b"/t/%e2%93%90cme",  # ⓐcme
        b"/t/%ef%bd%81%ef%bd%83%ef%bd%8d%ef%bd%85",  # ａｃｍｅ
        b"/t/acme%e2%80%8d",  # zero width joiner
        b"/t/%c5%bflack",  # ſlack
        b"/t/%e2%84%aaelvin",  # Kelvin sign
        b"/t/%c0%aeacme",  # overlong dot
        b"/t/acm\xe9",
        b"/t/" + b"a" * 49,
        b"/t/" + b"%61" * 70_000,
    ],
)
async def test_R12_R18_what_is_no_identifier_is_refused_and_not_repaired(path: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(path)


# -- servers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw_path", "root_path", "relative"),
    [
        (b"/api/t/acme", "/api", b"/t/acme"),  # uvicorn puts root_path in front of what it got
        (b"/t/acme", "/api", b"/t/acme"),  # granian does not
        (b"/api/t/acme", "/api/", b"/t/acme"),
        (b"/apis/t/acme", "/api", b"/apis/t/acme"),
        (b"/api", "/api", b"/"),
        (b"/api/", "/api", b"/"),
        (b"/a/b/t/acme", "/a/b", b"/t/acme"),
        (b"/api/t/acme?x=/t/beta", "/api", b"/t/acme"),
        (b"/t/acme", "/", b"/t/acme"),
    ],
)
async def test_root_path_is_taken_off_where_it_is_a_whole_segment_prefix(
    raw_path: bytes, root_path: str, relative: bytes
) -> None:
    scope = http_scope(raw_path, root_path=root_path)
    assert Connection(scope).raw_path == relative


@pytest.mark.parametrize("raw_path", [b"/api/t/acme/x", b"/t/acme/x"])
async def test_the_tenant_is_found_below_root_path_as_every_server_says_it(raw_path: bytes) -> None:
    assert await claim(raw_path, root_path="/api") == ACME


async def test_a_scope_without_raw_path_is_read_from_its_path() -> None:
    scope = http_scope(b"/t/acme/%C3%A9t%C3%A9")
    del scope["raw_path"]
    assert await PathResolver("/t").resolve(Connection(scope)) == ACME
    assert Connection(scope).raw_path == b"/t/acme/%C3%A9t%C3%A9"


@pytest.mark.parametrize("path", ["/t/%61cme/x", "/t/acme%2fx"])
async def test_R14_a_path_that_the_server_decoded_is_not_decoded_again(path: str) -> None:
    scope = http_scope(b"/", path=path)
    scope["raw_path"] = None
    with pytest.raises(InvalidIdentifier):
        await PathResolver("/t").resolve(Connection(scope))


async def test_a_scope_without_root_path_is_one_with_an_empty_one() -> None:
    scope = http_scope(b"/t/acme")
    del scope["root_path"]
    assert await PathResolver("/t").resolve(Connection(scope)) == ACME
