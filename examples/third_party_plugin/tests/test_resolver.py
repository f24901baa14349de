"""The resolver does what tenancy asks of every resolver, and what a key is for."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from acme_tenancy.resolver import ApiKeyResolver, key_digest
from acme_tenancy.settings import ApiKey
from tenancy_core.errors import InvalidCredentials
from tenancy_core.testing import ResolverSuite, make_connection

if TYPE_CHECKING:
    from tenancy_core import Connection

PEPPER = b"the pepper of these tests, and of nothing else"


def make_key(keys: dict[str, ApiKey], tenant: str) -> str:
    """Make a key for a tenant, and add what is known of it."""
    key_id = f"k{len(keys)}"
    key = f"{key_id}.{secrets.token_urlsafe(32)}"
    keys[key_id] = ApiKey(tenant=tenant, digest=key_digest(PEPPER, key))
    return key


class TestConformance(ResolverSuite):
    """The suite that tenancy-core publishes for resolvers."""

    capabilities = frozenset({"in_header", "verified"})

    @pytest.fixture
    def resolver(self) -> ApiKeyResolver:
        """Give the resolver that is tested."""
        self.keys: dict[str, ApiKey] = {}
        return ApiKeyResolver(header="X-API-Key", pepper=PEPPER, keys=self.keys)

    def connection_for(self, identifier: str) -> Connection:
        """Return a connection with a key of this tenant."""
        return make_connection(headers={"X-API-Key": make_key(self.keys, identifier)})

    def forged_connection_for(self, identifier: str) -> Connection:
        """Return a connection with the id of a key of this tenant, and a guessed secret."""
        key_id = make_key(self.keys, identifier).partition(".")[0]
        return make_connection(headers={"X-API-Key": f"{key_id}.{secrets.token_urlsafe(32)}"})


@pytest.fixture
def keys() -> dict[str, ApiKey]:
    """Give what is known of the keys, by their ids."""
    return {}


@pytest.fixture
def resolver(keys: dict[str, ApiKey]) -> ApiKeyResolver:
    """Give a resolver that knows these keys."""
    return ApiKeyResolver(header="X-API-Key", pepper=PEPPER, keys=keys)


@pytest.mark.anyio
async def test_the_key_of_one_tenant_is_no_key_of_another(
    resolver: ApiKeyResolver, keys: dict[str, ApiKey]
) -> None:
    acme, beta = make_key(keys, "acme"), make_key(keys, "beta")
    acme_id, beta_secret = acme.partition(".")[0], beta.partition(".")[2]
    for forged in (f"{acme_id}.{beta_secret}", acme_id, f"{acme}.", f"{acme[:-1]}", "", "."):
        with pytest.raises(InvalidCredentials):
            await resolver.resolve(make_connection(headers={"X-API-Key": forged}))


@pytest.mark.anyio
async def test_a_key_is_revoked_by_taking_out_what_is_known_of_it(
    resolver: ApiKeyResolver, keys: dict[str, ApiKey]
) -> None:
    old, new = make_key(keys, "acme"), make_key(keys, "acme")
    del keys["k0"]
    with pytest.raises(InvalidCredentials):
        await resolver.resolve(make_connection(headers={"X-API-Key": old}))
    claim = await resolver.resolve(make_connection(headers={"X-API-Key": new}))
    assert claim is not None
    assert claim.identifier == "acme"


def test_a_digest_depends_on_the_pepper() -> None:
    assert key_digest(PEPPER, "k1.secret") != key_digest(PEPPER + b"!", "k1.secret")
    assert len(key_digest(PEPPER, "k1.secret")) == len("9f" * 32)
