"""The host of a request and the subdomain resolver."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from support.scopes import connection
from tenancy_core._resolvers.host import is_trusted, parse_host, requested_host
from tenancy_core._resolvers.subdomain import SubdomainResolver
from tenancy_core.contract import TenantClaim
from tenancy_core.errors import InvalidIdentifier, TenantNotFound

pytestmark = pytest.mark.anyio

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))
PROXY = ("10.1.2.3", 443)
STRANGER = ("203.0.113.9", 443)


def host(value: bytes) -> tuple[bytes, bytes]:
    return (b"host", value)


def forwarded(value: bytes) -> tuple[bytes, bytes]:
    return (b"x-forwarded-host", value)


# -- parsing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        ("acme.ex.com", "acme.ex.com"),
        ("ACME.Ex.Com", "acme.ex.com"),
        ("acme.ex.com.", "acme.ex.com"),
        ("ACME.Ex.Com.:8080", "acme.ex.com"),
        ("acme.ex.com:0", "acme.ex.com"),
        ("acme.ex.com:65535", "acme.ex.com"),
        ("localhost", "localhost"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("[2001:db8::1]:8000", "[2001:db8::1]"),
    ],
)
def test_R9_a_host_is_lower_cased_and_loses_its_port_and_one_dot(
    value: str, canonical: str
) -> None:
    assert parse_host(value) == canonical


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "acme.ex.com..",
        ".acme.ex.com",
        "acme..ex.com",
        "acme.ex.com:",
        "acme.ex.com:65536",
        "acme.ex.com:99999",
        "acme.ex.com:080808",
        "acme.ex.com:-1",
        "acme.ex.com:+80",
        "acme.ex.com:8o",
        "acme.ex.com:80:80",
        "acme.ex.com:٨٠",
        "acme.ex.com:80\n",
        "acme.ex.com\n",
        "acme.ex.com\r",
        "acme.ex.com ",
        " acme.ex.com",
        "acme.ex.com\x00",
        "acme\tex.com",
        "acme@beta.ex.com",
        "user:password@acme.ex.com",
        "beta.ex.com/acme.ex.com",
        "acme.ex.com?x",
        "acme.ex.com#x",
        "http://acme.ex.com",
        "acme.ex.com\\@beta.ex.com",
        "acme.ex.com,beta.ex.com",
        "acme.ex.com, beta.ex.com",
        "acme%2eex.com",
        "acme;ex.com",
        "[2001:db8::1",
        "2001:db8::1",
        "[2001:db8::1].",
        "[fe80::1%25eth0]",
        "[acme.ex.com]",
        "\u212aelvin.ex.com",
        "\u017flack.ex.com",
        "ａｃｍｅ.ex.com",
        "acme。ex.com",
        "acme\u200d.ex.com",
        "a" * 261,
    ],
)
def test_R7_R9_R12_what_is_no_host_is_refused_and_not_repaired(value: str) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_host(value)


# -- whom to believe -------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [STRANGER, None, ("", 0), ("unix:/run/x", 0)])
def test_R1_forwarded_host_is_ignored_when_the_peer_is_no_trusted_proxy(
    client: tuple[str, int] | None,
) -> None:
    asked = connection(
        host(b"acme.ex.com"),
        forwarded(b"beta.ex.com"),
        (b"forwarded", b"host=beta.ex.com;for=10.0.0.1"),
        (b"x-real-ip", b"10.0.0.1"),
        (b"x-forwarded-for", b"10.0.0.1"),
        client=client,
    )
    assert requested_host(asked, PROXIES) == "acme.ex.com"


def test_R1_by_default_nobody_is_a_trusted_proxy() -> None:
    asked = connection(host(b"acme.ex.com"), forwarded(b"beta.ex.com"), client=PROXY)
    assert requested_host(asked, ()) == "acme.ex.com"


def test_R1_forwarded_is_not_read_even_from_a_trusted_proxy() -> None:
    asked = connection(host(b"acme.ex.com"), (b"forwarded", b"host=beta.ex.com"), client=PROXY)
    assert requested_host(asked, PROXIES) == "acme.ex.com"


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([b"beta.ex.com"], "beta.ex.com"),
        ([b"evil.ex.com, beta.ex.com"], "beta.ex.com"),
        ([b"evil.ex.com,beta.ex.com:8443 "], "beta.ex.com"),
        ([b"evil.ex.com", b"beta.ex.com"], "beta.ex.com"),
        ([b"evil.ex.com, worse.ex.com", b"\tevil.ex.com ,\tbeta.ex.com\t"], "beta.ex.com"),
        ([b"http://malformed/, beta.ex.com"], "beta.ex.com"),
    ],
)
def test_R2_from_a_trusted_proxy_the_last_forwarded_host_counts(
    values: list[bytes], wanted: str
) -> None:
    headers = [forwarded(value) for value in values]
    asked = connection(host(b"internal"), *headers, client=PROXY)
    assert requested_host(asked, PROXIES) == wanted


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"  ",
        b"beta.ex.com,",
        b"beta.ex.com, ",
        b"beta.ex.com, acme@evil.com",
        b"beta.ex.com, \xffacme.ex.com",
        b"beta.ex.com acme.ex.com",
        b'"beta.ex.com"',
    ],
)
def test_R2_a_malformed_last_hop_is_refused_and_the_host_is_no_fallback(value: bytes) -> None:
    asked = connection(host(b"acme.ex.com"), forwarded(value), client=PROXY)
    with pytest.raises(InvalidIdentifier):
        requested_host(asked, PROXIES)


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("10.255.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("2001:db8::9", True),
        ("11.0.0.1", False),
        ("::ffff:11.0.0.1", False),
        ("::10.0.0.1", False),
        ("2001:db9::9", False),
        ("0x0a000001", False),
        ("10.1", False),
        ("010.0.0.1", False),
        ("localhost", False),
    ],
)
def test_R1_only_an_address_within_the_networks_is_trusted(address: str, *, trusted: bool) -> None:
    assert is_trusted(connection(client=(address, 1)), PROXIES) is trusted


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [host(b"")],
        [host(b"acme.ex.com"), host(b"beta.ex.com")],
        [host(b"acme.ex.com"), host(b"acme.ex.com")],
        [host(b"acme.ex.com"), host(b"")],
    ],
    ids=["none", "empty", "two", "the same twice", "one and an empty one"],
)
@pytest.mark.parametrize("version", ["1.0", "1.1", "2", "3"])
def test_R6_R7_R26_a_request_has_exactly_one_host(
    headers: list[tuple[bytes, bytes]], version: str
) -> None:
    # A server that speaks HTTP/2 turns :authority into a host header, beside one that is there.
    with pytest.raises(InvalidIdentifier):
        requested_host(connection(*headers, http_version=version), ())


def test_R7_the_address_of_the_server_is_never_the_host() -> None:
    with pytest.raises(InvalidIdentifier):
        requested_host(connection(server=("acme.ex.com", 80), http_version="1.0"), ())


# -- the label in front of the base domain ---------------------------------------------------------


async def claim(value: bytes, domain: str = "ex.com") -> TenantClaim | None:
    return await SubdomainResolver(domain).resolve(connection(host(value)))


@pytest.mark.parametrize("value", [b"acme.ex.com", b"ACME.Ex.Com.:8080", b"acme.ex.com:443"])
async def test_R9_the_one_label_names_the_tenant(value: bytes) -> None:
    assert await claim(value) == TenantClaim("acme", "subdomain", verified=False)


@pytest.mark.parametrize(
    "value",
    [
        b"acme.evil.ex.com",
        b"acme.ex.com.evil.org",
        b"evilex.com",
        b"acme.evilex.com",
        b"acme-ex.com",
        b"ex.com",
        b"www.ex.com",
        b"WWW.EX.COM",
        b"192.0.2.1",
        b"192.0.2.1:8080",
        b"[2001:db8::1]",
        b"[::ffff:192.0.2.1]:80",
        b"localhost",
        b"com",
    ],
)
async def test_R10_R11_any_other_host_names_no_tenant(value: bytes) -> None:
    assert await claim(value) is None
    assert SubdomainResolver.missing is TenantNotFound


@pytest.mark.parametrize(
    "value",
    [
        b"a_b.ex.com",
        b"-acme.ex.com",
        b"acme-.ex.com",
        b"a--b.ex.com",
        b"xn--bcher-kva.ex.com",
        b"xn--80ak6aa92e.ex.com",
        b"b\xc3\xbccher.ex.com",
        b"ac%6de.ex.com",
        b"a" * 49 + b".ex.com",
        b"a" * 64 + b".ex.com",
        "ſlack.ex.com".encode(),
        "\u212aelvin.ex.com".encode(),
        "ａｃｍｅ.ex.com".encode(),
        "acme\u200d.ex.com".encode(),
    ],
)
async def test_R12_R13_R18_a_label_that_is_no_identifier_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        await claim(value)


async def test_R10_a_base_domain_of_its_own_depth_needs_exactly_one_label_more() -> None:
    assert await claim(b"acme.eu.ex.com", "eu.ex.com") == TenantClaim("acme", "subdomain")
    assert await claim(b"eu.ex.com", "eu.ex.com") is None
    assert await claim(b"acme.ex.com", "eu.ex.com") is None
    # A base domain of one label: what is in front of it must still be one label.
    assert await claim(b"acme.localhost:8000", "localhost") == TenantClaim("acme", "subdomain")
    assert await claim(b"a.b.localhost", "localhost") is None


async def test_R1_with_trusted_proxies_no_raw_header_decides_alone() -> None:
    """Else the cache would find a tenant by a Host that a forwarded host overrules."""
    assert SubdomainResolver("ex.com").raw_header == b"host"
    assert SubdomainResolver("ex.com", PROXIES).raw_header is None
