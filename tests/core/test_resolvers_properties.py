"""Whatever bytes come: a claim names what was said, in canonical form, or there is none."""

from __future__ import annotations

import os
from ipaddress import ip_network
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.scopes import http_scope
from tenancy_core._resolvers.chain import ChainResolver
from tenancy_core._resolvers.guarded import GuardedResolver
from tenancy_core._resolvers.header import HeaderResolver
from tenancy_core._resolvers.host import parse_host
from tenancy_core._resolvers.path import PathResolver
from tenancy_core._resolvers.subdomain import SubdomainResolver
from tenancy_core.contract import Connection, TenantClaim
from tenancy_core.errors import InvalidIdentifier, ResolverError, TenantMismatch

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tenancy_core.contract import Resolver

pytestmark = pytest.mark.storm

T = TypeVar("T")

EXAMPLES = settings(
    max_examples=20_000 if os.environ.get("TENANCY_TEST_FULL") else 400,
    database=None,
)

PIECES = [
    *(b"acme", b"beta", b"ACME", b"a", b"0", b"-", b"--", b"_", b".", b"..", b"ex.com", b"Ex.Com"),
    *(
        b"/",
        b"//",
        b"/t/",
        b"t",
        b"\\",
        b"%2f",
        b"%2F",
        b"%2e",
        b"%61",
        b"%00",
        b"%0a",
        b"%",
        b"%zz",
    ),
    *(b":", b":80", b":99999", b"@", b"[", b"]", b"::1", b"127.0.0.1", b"www", b"xn--"),
    *(
        b" ",
        b"\t",
        b"\r",
        b"\n",
        b"\x00",
        b"\x0b",
        b"\x7f",
        b"\x85",
        b"\xa0",
        b"\xff",
        b",",
        b";",
        b"?",
    ),
    *("ſ\u212aｅ⓪٣\u200d。é".encode(), b"a" * 48, b"a" * 49),
]
"""What near misses are made of; pure noise alone would hardly ever come close to a tenant."""

near_misses = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)
values = st.one_of(near_misses, st.binary(max_size=80))
canonical_identifiers = st.from_regex(r"[a-z0-9](-?[a-z0-9]){0,20}", fullmatch=True)


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what waits for nothing; the resolvers of the core do not."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        value: T = returned.value
        return value
    raise AssertionError("it waited")


def is_canonical(text: object) -> bool:
    """The rule of the design, written without a regular expression."""
    return (
        isinstance(text, str)
        and 1 <= len(text) <= 48
        and set(text) <= set(ascii_lowercase + digits + "-")
        and text[0] != "-" != text[-1]
        and "--" not in text
    )


def resolve(resolver: Resolver, scope: dict[str, Any]) -> TenantClaim | None:
    """Return the claim; None where there is none or it is refused. Nothing else may be raised."""
    try:
        claim = now(resolver.resolve(Connection(scope)))
    except (InvalidIdentifier, TenantMismatch):
        return None
    assert claim is None or is_canonical(claim.identifier), claim
    assert claim is None or claim.verified is False
    return claim


@EXAMPLES
@given(st.lists(values, max_size=3))
@example([b" acme "])
def test_R3_R12_R16_a_header_names_what_it_says_or_nothing(headers: list[bytes]) -> None:
    scope = http_scope(b"/", *((b"x-tenant-id", value) for value in headers))
    claim = resolve(HeaderResolver("X-Tenant-ID"), scope)
    if claim is not None:
        assert [value.strip(b" \t") for value in headers] == [claim.identifier.encode()]


@EXAMPLES
@given(st.one_of(st.tuples(near_misses, st.just(b".ex.com")).map(b"".join), values))
@example(b"ACME.Ex.Com.:8080")
def test_R7_R10_R12_a_host_names_its_one_label_or_nothing(value: bytes) -> None:
    claim = resolve(SubdomainResolver("ex.com"), http_scope(b"/", (b"host", value)))
    if claim is not None:
        said = value.strip(b" \t").decode("ascii").lower().partition(":")[0]
        assert said.removesuffix(".") == f"{claim.identifier}.ex.com"


@EXAMPLES
@given(values, st.lists(values, max_size=2))
def test_R1_R2_a_forwarded_host_is_parsed_like_any_other(
    host: bytes, forwarded: list[bytes]
) -> None:
    headers = [(b"host", host), *((b"x-forwarded-host", value) for value in forwarded)]
    behind_proxy = SubdomainResolver("ex.com", [ip_network("10.0.0.0/8")])
    trusted = resolve(behind_proxy, http_scope(b"/", *headers, client=("10.0.0.1", 1)))
    if forwarded:
        last = forwarded[-1].split(b",")[-1]
        assert trusted == resolve(SubdomainResolver("ex.com"), http_scope(b"/", (b"host", last)))
    untrusted = resolve(behind_proxy, http_scope(b"/", *headers))
    assert untrusted == resolve(SubdomainResolver("ex.com"), http_scope(b"/", (b"host", host)))


@EXAMPLES
@given(st.one_of(st.text(max_size=60), values.map(lambda value: value.decode("latin-1"))))
def test_R7_R9_parsing_a_host_twice_is_parsing_it_once(text: str) -> None:
    try:
        host = parse_host(text)
    except InvalidIdentifier:
        return
    assert parse_host(host) == host == host.lower()
    assert host.isascii()
    assert not set(host) & set("@/\\?#%,; \t\r\n\x00")
    assert text.lower().startswith(host)


paths = st.one_of(st.tuples(st.just(b"/t/"), near_misses).map(b"".join), values)


@EXAMPLES
@given(paths)
@example(b"/t/%61cme")
def test_R14_R15_R16_a_path_names_its_one_segment_or_nothing(raw_path: bytes) -> None:
    claim = resolve(PathResolver("/t"), http_scope(raw_path))
    if claim is not None:
        segments = raw_path.partition(b"?")[0].split(b"/")
        assert segments[:2] == [b"", b"t"]
        assert unquote_to_bytes(segments[2]) == claim.identifier.encode()


@EXAMPLES
@given(st.one_of(st.text(st.characters(), max_size=60), paths.map(lambda p: p.decode("latin-1"))))
@example("/t/\ud800")
@example("/t/%61cme")
def test_R14_without_raw_path_a_path_names_its_one_segment_or_nothing(path: str) -> None:
    scope = http_scope(b"/")
    scope.update(path=path, raw_path=None)
    claim = resolve(PathResolver("/t"), scope)
    if claim is not None:
        assert path.split("/")[:3] == ["", "t", claim.identifier]


@EXAMPLES
@given(values, st.text("ab/%.", max_size=6))
def test_R14_root_path_only_ever_shortens_a_path(raw_path: bytes, root_path: str) -> None:
    relative = Connection(http_scope(raw_path, root_path=root_path)).raw_path
    whole = raw_path.partition(b"?")[0]
    assert whole.endswith(relative) or relative == b"/"


@EXAMPLES
@given(st.lists(values, max_size=2), values, paths)
def test_R19_a_chain_names_what_each_of_its_sources_names_or_nothing(
    headers: list[bytes], host: bytes, raw_path: bytes
) -> None:
    parts = (HeaderResolver("X-Tenant-ID"), SubdomainResolver("ex.com"), PathResolver("/t"))
    scope = http_scope(raw_path, (b"host", host), *((b"x-tenant-id", value) for value in headers))
    claim = resolve(ChainResolver(parts, reject_conflicts=True), scope)
    found = [part for part in (resolve(part, scope) for part in parts) if part is not None]
    if claim is not None:
        assert {part.identifier for part in found} == {claim.identifier}


class _Says:
    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def resolve(self, connection: Connection, /) -> Any:
        return self._answer


answers = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.builds(
        TenantClaim,
        st.one_of(canonical_identifiers, st.text(max_size=60), st.binary(max_size=5), st.none()),
        st.just("theirs"),
        verified=st.one_of(st.booleans(), st.none(), st.integers(), st.text(max_size=3)),
    ),
)


@pytest.mark.anyio
@EXAMPLES
@given(answers)
async def test_R22_a_guard_lets_only_canonical_claims_through(answer: object) -> None:
    try:
        claim = await GuardedResolver("theirs", _Says(answer)).resolve(Connection(http_scope(b"/")))
    except (InvalidIdentifier, ResolverError):
        return
    if claim is not None:
        assert claim is answer
        assert is_canonical(claim.identifier)
        assert type(claim.verified) is bool
