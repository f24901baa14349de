"""Resolvers that make one mistake each."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, ClassVar, Final

import anyio.lowlevel
import pytest

from tenancy_core.contract import TenantClaim
from tenancy_core.errors import InvalidCredentials, InvalidIdentifier, TenantNotIdentified
from tenancy_core.tenant import IDENTIFIER_MAX_BYTES, validate_identifier
from tenancy_core.testing.fakes import make_connection
from tenancy_core.testing.mutants.mutant import mutant
from tenancy_core.testing.resolver import ResolverSuite

if TYPE_CHECKING:
    from tenancy_core.contract import Connection

__all__ = ["HONEST_RESOLVERS", "RESOLVER_MUTANTS"]

_HEADER: Final = b"x-tenant-id"


class HonestHeader:
    """Reads ``X-Tenant-ID``, in steps that the mutants replace."""

    verified = False

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See the contract."""
        value = self.read(connection)
        return None if value is None else self.claim(self.check(value))

    def read(self, connection: Connection) -> str | None:
        """Return what the header says."""
        return connection.header(_HEADER)

    def check(self, value: str) -> str:
        """Return it, or refuse it."""
        return validate_identifier(value)

    def claim(self, identifier: str) -> TenantClaim:
        """Return the claim."""
        return TenantClaim(identifier, "header", verified=self.verified)


class HonestKey:
    """Looks up the key of an API, which proves the tenant."""

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See the contract."""
        key = connection.header(b"x-api-key")
        if key is None:
            return None
        owner, _, proof = key.partition("/")
        if proof != f"proof-of-{owner}":
            return self.refuse(owner)
        return TenantClaim(validate_identifier(owner), "api-key", verified=True)

    def refuse(self, owner: str) -> TenantClaim | None:
        """Deal with a key that is nobody's."""
        del owner
        raise InvalidCredentials


class HeaderCase(ResolverSuite):
    """The suite on a header."""

    capabilities = frozenset({"carries_identifier", "in_header"})
    product: ClassVar[type[Any]] = HonestHeader

    @pytest.fixture
    def resolver(self) -> Any:  # noqa: ANN401 - an implementation that may be broken
        """Make the resolver."""
        return self.product()

    def connection_for(self, identifier: str) -> Connection:
        """See the suite."""
        return make_connection(headers={"X-Tenant-ID": identifier})


class KeyCase(ResolverSuite):
    """The suite on the key of an API."""

    capabilities = frozenset({"in_header", "verified"})
    product: ClassVar[type[Any]] = HonestKey

    @pytest.fixture
    def resolver(self) -> Any:  # noqa: ANN401 - an implementation that may be broken
        """Make the resolver."""
        return self.product()

    def connection_for(self, identifier: str) -> Connection:
        """See the suite."""
        return make_connection(headers={"X-API-Key": f"{identifier}/proof-of-{identifier}"})

    def forged_connection_for(self, identifier: str) -> Connection:
        """See the suite."""
        return make_connection(headers={"X-API-Key": f"{identifier}/guessed"})


class LowersCase(HonestHeader):
    """Makes capitals small, so that two spellings are one tenant."""

    def check(self, value: str) -> str:
        """Repair."""
        return validate_identifier(value.lower())


class KnowsLettersOnly(HonestHeader):
    """Refuses identifiers with digits and hyphens."""

    def check(self, value: str) -> str:
        """Refuse too much."""
        if not value.isalpha():
            raise InvalidIdentifier
        return super().check(value)


class FoldsUnicode(HonestHeader):
    """Takes look-alike letters for the ASCII ones that they look like."""

    def read(self, connection: Connection) -> str | None:
        """Decode whatever comes."""
        values = connection.headers(_HEADER)
        if len(values) > 1:
            raise InvalidIdentifier
        return values[0].decode("utf-8", "ignore") if values else None

    def check(self, value: str) -> str:
        """Repair."""
        folded = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
        return validate_identifier(folded)


class TakesTheFirstHeader(HonestHeader):
    """Believes the first of two headers."""

    def read(self, connection: Connection) -> str | None:
        """Choose."""
        values = connection.headers(_HEADER)
        return values[0].decode("ascii", "surrogateescape") if values else None


class TakesTheFirstOfAList(HonestHeader):
    """Believes the first part of ``acme,beta``."""

    def check(self, value: str) -> str:
        """Choose."""
        return validate_identifier(re.split(r"[,; ]", value)[0])


class MatchesWithADollar(HonestHeader):
    """Validates with ``$``, which a newline may follow."""

    def check(self, value: str) -> str:
        """Match too much."""
        if len(value) > IDENTIFIER_MAX_BYTES or not re.match(r"^[a-z0-9](-?[a-z0-9])*$", value):
            raise InvalidIdentifier
        return value


class CutsOff(HonestHeader):
    """Cuts what is too long, so that long names meet."""

    def check(self, value: str) -> str:
        """Repair."""
        return validate_identifier(value[:IDENTIFIER_MAX_BYTES])


class NormalizesPaths(HonestHeader):
    """Takes the last segment of what looks like a path."""

    def check(self, value: str) -> str:
        """Repair."""
        return validate_identifier(re.split(r"[/\\]|%2f", value.rstrip("/"))[-1])


class TakesTheMalformedForSilence(HonestHeader):
    """Says None to what is malformed, so that a weaker source may answer."""

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """Swallow the refusal."""
        try:
            return await super().resolve(connection)
        except InvalidIdentifier:
            return None


class HasADefault(HonestHeader):
    """Serves a default tenant where nothing is said."""

    def read(self, connection: Connection) -> str | None:
        """Invent."""
        return super().read(connection) or "default"


class RefusesSilence(HonestHeader):
    """Refuses where nothing is said, so that no other source is asked."""

    def read(self, connection: Connection) -> str | None:
        """Refuse."""
        value = super().read(connection)
        if value is None:
            raise TenantNotIdentified
        return value


class RemembersTheFirst(HonestHeader):
    """Gives everybody the answer of the first request."""

    def __init__(self) -> None:
        self._first: TenantClaim | None = None

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """Remember."""
        self._first = self._first or await super().resolve(connection)
        return self._first


class KeepsStateBetweenSteps(HonestHeader):
    """Keeps the request on itself while it waits, so that requests at once are mixed up."""

    def __init__(self) -> None:
        self._value: str | None = None

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """Wait in between."""
        self._value = self.read(connection)
        await anyio.lowlevel.checkpoint()
        return None if self._value is None else self.claim(self.check(self._value))


class WritesToTheScope(HonestHeader):
    """Leaves the tenant in the scope."""

    def read(self, connection: Connection) -> str | None:
        """Write."""
        value = super().read(connection)
        connection.scope["tenant"] = value
        return value


class WritesIntoTheState(HonestHeader):
    """Leaves the tenant in the state that the scope holds."""

    def read(self, connection: Connection) -> str | None:
        """Write."""
        value = super().read(connection)
        connection.scope["state"]["tenant"] = value
        return value


class ClaimsAProof(HonestHeader):
    """Says that a header proves its tenant."""

    verified = True


class RepeatsTheAttack(HonestHeader):
    """Puts what was sent into the message of its refusal."""

    def check(self, value: str) -> str:
        """Tell."""
        try:
            return validate_identifier(value)
        except InvalidIdentifier:
            raise InvalidIdentifier(f"{value[:40]!r} is no tenant.") from None


class NamesItsSourceByTenant(HonestHeader):
    """Puts the tenant into the name of its source, which labels metrics."""

    def claim(self, identifier: str) -> TenantClaim:
        """Mislabel."""
        return TenantClaim(identifier, f"header-{identifier}")


class ReturnsAString(HonestHeader):
    """Returns the identifier instead of a claim."""

    async def resolve(self, connection: Connection, /) -> Any:  # noqa: ANN401 - wrong on purpose
        """Return something else."""
        value = self.read(connection)
        return None if value is None else _Text(self.check(value))


class _Text(str):
    """A text that answers as a claim would."""

    __slots__ = ()
    verified = False
    source = "header"

    @property
    def identifier(self) -> str:
        return str(self)


class KnowsRequestsOnly(HonestHeader):
    """Says nothing for WebSockets."""

    def read(self, connection: Connection) -> str | None:
        """Look at the kind."""
        return super().read(connection) if connection.kind == "http" else None


class NeverAnswers(HonestHeader):
    """Waits for something that does not come."""

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """Wait."""
        await anyio.sleep_forever()
        return await super().resolve(connection)


class BelievesForgeries(HonestKey):
    """Believes a key whose proof does not hold."""

    def refuse(self, owner: str) -> TenantClaim | None:
        """Believe."""
        return TenantClaim(owner, "api-key", verified=True)


class IgnoresForgeries(HonestKey):
    """Takes a key whose proof does not hold for silence."""

    def refuse(self, owner: str) -> TenantClaim | None:
        """Ignore."""
        del owner
        return None


HONEST_RESOLVERS: Final = (HeaderCase, KeyCase)

RESOLVER_MUTANTS: Final = (
    mutant(HeaderCase, LowersCase, "test_R12_capitals_are_refused_where_the_source_has_case"),
    mutant(HeaderCase, KnowsLettersOnly, "test_it_finds_the_tenant_that_the_connection_names"),
    mutant(HeaderCase, FoldsUnicode, "test_R12_letters_that_are_not_ascii_are_refused"),
    mutant(HeaderCase, TakesTheFirstHeader, "test_R3_a_header_that_is_there_twice_is_refused"),
    mutant(HeaderCase, TakesTheFirstOfAList, "test_R4_a_list_of_tenants_is_refused"),
    mutant(HeaderCase, MatchesWithADollar, "test_R16_control_characters_are_refused"),
    mutant(HeaderCase, CutsOff, "test_R18_what_is_too_long_is_refused"),
    mutant(HeaderCase, NormalizesPaths, "test_R14_what_looks_like_a_path_is_refused"),
    mutant(
        HeaderCase,
        TakesTheMalformedForSilence,
        "test_R4_a_list_of_tenants_is_refused",
        "test_whatever_else_is_no_identifier_is_refused",
    ),
    mutant(HeaderCase, HasADefault, "test_silence_is_no_claim"),
    mutant(HeaderCase, RefusesSilence, "test_silence_is_no_claim"),
    mutant(HeaderCase, RemembersTheFirst, "test_each_connection_gets_its_own_answer"),
    mutant(HeaderCase, KeepsStateBetweenSteps, "test_answers_of_concurrent_requests_are_not_mixed"),
    mutant(HeaderCase, WritesToTheScope, "test_it_never_writes_to_the_scope"),
    mutant(HeaderCase, WritesIntoTheState, "test_it_never_writes_to_the_scope"),
    mutant(HeaderCase, ClaimsAProof, "test_a_claim_says_whether_it_is_proven"),
    mutant(HeaderCase, RepeatsTheAttack, "test_S1_a_refusal_does_not_repeat_what_was_sent"),
    mutant(HeaderCase, NamesItsSourceByTenant, "test_the_source_has_one_name"),
    mutant(HeaderCase, ReturnsAString, "test_a_claim_is_of_the_types_that_the_contract_says"),
    mutant(HeaderCase, KnowsRequestsOnly, "test_a_websocket_is_resolved_as_a_request_is"),
    mutant(HeaderCase, NeverAnswers, "test_it_answers_in_time", patience=0.05),
    mutant(KeyCase, BelievesForgeries, "test_a_proof_that_does_not_hold_is_refused"),
    mutant(KeyCase, IgnoresForgeries, "test_a_proof_that_does_not_hold_is_refused"),
)
