"""Several resolvers in order."""

from __future__ import annotations

import pytest

from support.scopes import connection
from tenancy_core._resolvers.chain import ChainResolver
from tenancy_core._resolvers.header import HeaderResolver
from tenancy_core._resolvers.subdomain import SubdomainResolver
from tenancy_core.contract import Connection, TenantClaim
from tenancy_core.errors import (
    BackendUnavailable,
    InvalidIdentifier,
    ResolverError,
    TenancyError,
    TenantMismatch,
    TenantNotIdentified,
)

pytestmark = pytest.mark.anyio


class Says:
    """A resolver with a fixed answer, which notes that it was asked."""

    def __init__(self, answer: TenantClaim | Exception | None) -> None:
        self._answer = answer
        self.asked = 0

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        self.asked += 1
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def says(identifier: str, *, verified: bool = False) -> Says:
    return Says(TenantClaim(identifier, "test", verified=verified))


def chain(*resolvers: Says, reject: bool = True) -> ChainResolver:
    return ChainResolver(resolvers, reject_conflicts=reject)


def header_and_host(header: bytes, host: bytes) -> Connection:
    return connection((b"x-tenant-id", header), (b"host", host))


BUILT_IN = (HeaderResolver("X-Tenant-ID"), SubdomainResolver("ex.com"))


async def test_R19_header_and_subdomain_that_disagree_are_refused_in_either_order() -> None:
    asked = header_and_host(b"acme", b"beta.ex.com")
    for order in (BUILT_IN, BUILT_IN[::-1]):
        with pytest.raises(TenantMismatch):
            await ChainResolver(order, reject_conflicts=True).resolve(asked)


async def test_R19_header_and_subdomain_that_agree_are_one_claim() -> None:
    both = ChainResolver(BUILT_IN, reject_conflicts=True)
    assert await both.resolve(header_and_host(b"acme", b"ACME.ex.com:80")) == TenantClaim(
        "acme", "header"
    )


async def test_R19_a_proven_claim_is_not_outvoted_and_not_replaced() -> None:
    proven = says("acme", verified=True)
    for order in ([proven, says("beta")], [says("beta"), proven]):
        with pytest.raises(TenantMismatch):
            await chain(*order).resolve(connection())


@pytest.mark.parametrize("order", [1, -1])
async def test_R19_of_equal_claims_the_proven_one_is_taken(order: int) -> None:
    resolvers = [says("acme"), says("acme", verified=True), says("acme")][::order]
    found = await chain(*resolvers).resolve(connection())
    assert found == TenantClaim("acme", "test", verified=True)


async def test_R19_the_third_of_three_is_asked_as_well() -> None:
    with pytest.raises(TenantMismatch):
        await chain(says("acme"), Says(None), says("beta")).resolve(connection())


async def test_with_first_the_first_claim_wins_and_the_others_are_not_asked() -> None:
    later = says("beta")
    first = chain(Says(None), says("acme"), later, reject=False)
    assert await first.resolve(connection()) == TenantClaim("acme", "test")
    assert later.asked == 0


@pytest.mark.parametrize("reject", [True, False])
@pytest.mark.parametrize(
    "error",
    [ResolverError("down"), BackendUnavailable("down"), InvalidIdentifier("odd"), OSError()],
    ids=lambda error: type(error).__name__,
)
async def test_R20_R21_a_resolver_that_fails_or_refuses_never_falls_through(
    error: Exception, *, reject: bool
) -> None:
    weaker = says("acme")
    with pytest.raises(type(error)):
        await chain(Says(error), weaker, reject=reject).resolve(connection())
    assert weaker.asked == 0


@pytest.mark.parametrize("error", [ResolverError("down"), InvalidIdentifier("odd")])
async def test_R20_a_later_resolver_that_fails_is_not_overlooked(error: TenancyError) -> None:
    with pytest.raises(type(error)):
        await chain(says("acme"), Says(error)).resolve(connection())


@pytest.mark.parametrize("reject", [True, False])
async def test_R21_a_resolver_that_finds_nothing_is_passed_over(*, reject: bool) -> None:
    found = await chain(Says(None), says("acme"), Says(None), reject=reject).resolve(connection())
    assert found == TenantClaim("acme", "test")


@pytest.mark.parametrize("reject", [True, False])
async def test_R21_a_malformed_first_answer_is_refused_and_the_second_not_believed(
    *, reject: bool
) -> None:
    both = ChainResolver(BUILT_IN, reject_conflicts=reject)
    for header in (b"Acme", b"", b"acme, acme"):
        with pytest.raises(InvalidIdentifier):
            await both.resolve(header_and_host(header, b"acme.ex.com"))


async def test_R3_a_doubled_header_is_refused_within_a_chain_although_the_host_is_clear() -> None:
    asked = connection(
        (b"host", b"acme.ex.com"), (b"x-tenant-id", b"acme"), (b"x-tenant-id", b"acme")
    )
    for order in (BUILT_IN, BUILT_IN[::-1]):
        with pytest.raises(InvalidIdentifier):
            await ChainResolver(order, reject_conflicts=True).resolve(asked)


@pytest.mark.parametrize("reject", [True, False])
async def test_R21_where_nobody_finds_anything_the_tenant_is_missing(*, reject: bool) -> None:
    nobody = chain(Says(None), Says(None), reject=reject)
    assert await nobody.resolve(connection()) is None
    assert nobody.missing is TenantNotIdentified


def test_a_chain_is_never_decided_by_the_bytes_of_one_header() -> None:
    """Else the cache would answer what only the agreement of all of them may answer."""
    for reject in (True, False):
        assert not hasattr(ChainResolver(BUILT_IN, reject_conflicts=reject), "raw_header")
