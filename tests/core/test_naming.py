"""Derived names: two tenants never meet, and no name is one that a server keeps for itself."""

from __future__ import annotations

import re
from uuid import UUID, uuid4

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from support.collision import FIRST_ID, FIRST_IDENTIFIER, SECOND_ID, SECOND_IDENTIFIER
from tenancy_core.errors import ConfigurationError, InvalidIdentifier
from tenancy_core.sql import NAME_MAX_BYTES, derive_name
from tenancy_core.tenant import IDENTIFIER_MAX_BYTES

identifiers = st.from_regex(r"[a-z0-9](-?[a-z0-9]){0,47}", fullmatch=True).filter(
    lambda identifier: len(identifier) <= IDENTIFIER_MAX_BYTES
)
prefixes = st.from_regex(r"[a-z][a-z0-9_]{0,48}", fullmatch=True).filter(
    lambda prefix: not prefix.startswith("pg_")
)

RESERVED = {
    "$user",
    "con",
    "information_schema",
    "master",
    "msdb",
    "mysql",
    "performance_schema",
    "postgres",
    "public",
    "sqlite_master",
    "sys",
    "template0",
    "template1",
}


@given(prefixes, identifiers, st.uuids())
@example("tenant_", "a" * 48, UUID(int=0))
@example("t" * 49, "a-" * 23 + "a", UUID(int=2**128 - 1))
def test_I1_a_derived_name_is_short_enough_for_every_server(
    prefix: str, identifier: str, tenant_id: UUID
) -> None:
    name = derive_name(prefix, identifier, tenant_id)
    assert len(name.encode()) <= NAME_MAX_BYTES == 63
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert name.startswith(prefix)


@given(prefixes, identifiers, identifiers, st.uuids(), st.uuids())
@example("tenant_", "a" * 43 + "b", "a" * 43 + "c", UUID(int=1), UUID(int=2))
@example("tenant_", "acme", "acme", UUID(int=1), UUID(int=2))
def test_I3_two_tenants_never_get_one_name(
    prefix: str, one: str, other: str, one_id: UUID, other_id: UUID
) -> None:
    assume(one_id != other_id)
    assert derive_name(prefix, one, one_id) != derive_name(prefix, other, other_id)


@given(identifiers, st.uuids())
def test_I3_the_name_of_a_tenant_is_always_the_same(identifier: str, tenant_id: UUID) -> None:
    name = derive_name("tenant_", identifier, tenant_id)
    assert derive_name("tenant_", identifier, UUID(str(tenant_id))) == name
    # Whole as long as it fits: people find the tenant by it.
    assert name.removeprefix("tenant_").startswith(identifier.replace("-", "_")[:43])


def test_I1_names_can_be_made_to_collide_and_then_only_the_store_tells_the_tenants_apart() -> None:
    """The pair that other tests use to see the store refuse the second."""
    assert FIRST_ID != SECOND_ID
    assert FIRST_IDENTIFIER != SECOND_IDENTIFIER
    assert derive_name("tenant_", FIRST_IDENTIFIER, FIRST_ID) == derive_name(
        "tenant_", SECOND_IDENTIFIER, SECOND_ID
    )


def test_I2_an_identifier_of_32_accented_letters_is_refused() -> None:
    with pytest.raises(InvalidIdentifier):
        derive_name("tenant_", "é" * 32, uuid4())


@pytest.mark.parametrize(
    "identifier",
    ["a_b", "Acme", "ACME", "a.b", "", "-a", "a-", "a--b", "a" * 49, "a/b", "a b", "\u0131"],
)
def test_I3_what_could_map_to_another_identifiers_name_is_no_identifier(identifier: str) -> None:
    with pytest.raises(InvalidIdentifier):
        derive_name("tenant_", identifier, uuid4())


@given(prefixes, identifiers, st.uuids())
@example("p", "ublic", UUID(int=0))
@example("sys", "sys", UUID(int=0))
@example("template", "1", UUID(int=0))
def test_I4_no_derived_name_is_one_that_a_server_keeps_for_itself(
    prefix: str, identifier: str, tenant_id: UUID
) -> None:
    name = derive_name(prefix, identifier, tenant_id)
    assert name not in RESERVED
    assert not name.startswith("pg_")


@pytest.mark.parametrize(
    "prefix",
    ["", "pg_", "pg_x", "_x", "1x", "Tenant_", "té", "x-", "x y", "x$", "a" * 50, "ⓐ", "x\n"],
)
def test_I4_a_prefix_that_would_reach_reserved_names_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        derive_name(prefix, "acme", uuid4())


@pytest.mark.parametrize(
    "identifier",
    [
        'a"; drop schema b cascade; --',
        "a`",
        "a%s",
        "a:x",
        "a{}",
        "a\n",
        "a\x00",
        "a'",
        "a\\",
        "$user",
    ],
)
def test_I5_nothing_that_means_something_in_sql_gets_into_a_name(identifier: str) -> None:
    with pytest.raises(InvalidIdentifier):
        derive_name("tenant_", identifier, uuid4())
