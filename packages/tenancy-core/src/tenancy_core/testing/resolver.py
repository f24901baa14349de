"""What every resolver does: it finds what was said, and repairs, guesses and keeps nothing."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import anyio.lowlevel
import pytest
from anyio import move_on_after

from tenancy_core.contract import Connection, TenantClaim
from tenancy_core.errors import RequestRefused
from tenancy_core.tenant import IDENTIFIER_MAX_BYTES
from tenancy_core.testing.fakes import make_connection
from tenancy_core.testing.suite import Suite, requires, run_together

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tenancy_core.contract import Resolver

__all__ = ["ResolverSuite"]

CANONICAL: Final = ("acme", "beta", "a", "0", "a-b", "0-9-z", "x" * IDENTIFIER_MAX_BYTES)

CASES: Final = ("ACME", "Acme", "aCME-1")

# Threats R4, R12, R14, R16, R18. None of them is an identifier, and all of them are one after some
# well-meant repair: lower(), strip(), NFKC, split(","), `re.match` with a `$`.
MALFORMED: Final = {
    "R4, a list": ("acme,beta", "acme, beta", "acme;beta", "acme beta"),
    "R12, not ASCII": (
        "ⓐcme",
        "ａｃｍｅ",
        "acme\u200d",
        "\u017flack",
        "\u212aelvin",
        "acmé",
        "acme\udcff",
    ),
    "R14, a path": ("acme/../beta", "../beta", "acme/", "acme%2fbeta", "acme\\beta"),
    "R16, a control character": ("acme\n", "acme\x00", "acme\r\n", "\x00", "ac\tme", "acme\x7f"),
    "R18, too long": ("a" * (IDENTIFIER_MAX_BYTES + 1), "a" * 64, "a" * 70_000),
    "no identifier": ("", "-", "-acme", "acme-", "a--b", "a_b", "acme'--", "*", "{acme}", "a:b"),
}


class _ReadOnlyScope(dict[str, Any]):
    """A scope that cannot be written to at its first level."""

    def __setitem__(self, key: str, value: Any, /) -> NoReturn:  # noqa: ANN401 - as dict
        _refuse_writing()

    def __delitem__(self, key: str, /) -> NoReturn:
        _refuse_writing()

    def clear(self) -> NoReturn:
        _refuse_writing()

    def pop(self, *_: Any) -> NoReturn:
        _refuse_writing()

    def popitem(self) -> NoReturn:
        _refuse_writing()

    def setdefault(self, *_: Any) -> NoReturn:
        _refuse_writing()

    def update(self, *_: Any, **__: Any) -> NoReturn:
        _refuse_writing()


def _refuse_writing() -> NoReturn:
    raise AssertionError("The resolver wrote to the connection's scope.")


class ResolverSuite(Suite, published=True):
    """Conformance of a :class:`~tenancy_core.contract.Resolver`.

    A subclass gives the fixture ``resolver`` and the method :meth:`connection_for`. The tenants
    ``acme``, ``beta`` and other canonical identifiers are asked for. A resolver that looks a key
    up makes a key for each identifier it is asked to build a connection for.

    Attributes:
        patience: Seconds after which the core gives up on a resolver that it did not write.
    """

    patience: ClassVar[float] = 5.0

    known_capabilities: ClassVar[Mapping[str, str]] = {
        "carries_identifier": "what the client sends is the identifier itself, so that a malformed "
        "one can be sent",
        "case_insensitive": "the source has no case, as host names have none: ACME is acme",
        "in_header": "the source is a header, so that it can be there twice",
        "verified": "the source proves the tenant; give `forged_connection_for` as well",
    }

    @pytest.fixture
    def resolver(self) -> Resolver:
        """Give the resolver that is tested."""
        raise NotImplementedError(f"{type(self).__name__} has to give the fixture `resolver`.")

    def connection_for(self, identifier: str) -> Connection | None:
        """Return a connection whose source says this identifier.

        It may be malformed, in a suite with ``carries_identifier``: say it as a hostile client
        would (:func:`~tenancy_core.testing.make_connection` sends text as UTF-8).

        Returns:
            The connection, or None where no client can say this at all in this source.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define `connection_for`.")

    def forged_connection_for(self, identifier: str) -> Connection:
        """Return a connection that claims to prove this identifier, and does not."""
        raise NotImplementedError(
            f"{type(self).__name__} declares `verified` and has to define `forged_connection_for`."
        )

    def silent_connection(self) -> Connection:
        """Return a connection that says nothing in this source."""
        return make_connection()

    # -- what it finds -----------------------------------------------------------------------------

    async def test_it_finds_the_tenant_that_the_connection_names(self, resolver: Resolver) -> None:
        """A canonical identifier comes back as it was said, to the letter."""
        for identifier in CANONICAL:
            claim = await resolve(resolver, self._said(identifier))
            assert claim is not None, f"It found nothing for {identifier!r}."
            assert claim.identifier == identifier

    async def test_each_connection_gets_its_own_answer(self, resolver: Resolver) -> None:
        """An answer depends on the connection, and on nothing that was asked before."""
        for identifier in ("acme", "beta", "acme", "beta"):
            claim = await resolve(resolver, self._said(identifier))
            assert claim is not None
            assert claim.identifier == identifier
            assert await resolve(resolver, self.silent_connection()) is None

    async def test_silence_is_no_claim(self, resolver: Resolver) -> None:
        """Where nothing is said there is None: no default tenant, and no refusal."""
        assert await resolve(resolver, self.silent_connection()) is None

    async def test_a_claim_is_of_the_types_that_the_contract_says(self, resolver: Resolver) -> None:
        """A claim is a TenantClaim of a str, a source with a name, and a bool."""
        claim = await resolve(resolver, self._said("acme"))
        assert type(claim) is TenantClaim
        assert type(claim.identifier) is str
        assert type(claim.verified) is bool
        assert claim.source
        assert claim.source == claim.source.strip()
        assert claim.source.isascii()
        assert claim.source.isprintable()

    async def test_the_source_has_one_name(self, resolver: Resolver) -> None:
        """The name of the source is the same for every request: metrics are labelled with it."""
        sources = set[str]()
        for identifier in ("acme", "beta", "a-b"):
            claim = await resolve(resolver, self._said(identifier))
            assert claim is not None
            sources.add(claim.source)
        assert len(sources) == 1

    async def test_a_claim_says_whether_it_is_proven(self, resolver: Resolver) -> None:
        """``verified`` is what the capability says: true only where the source proves it."""
        claim = await resolve(resolver, self._said("acme"))
        assert claim is not None
        assert claim.verified is ("verified" in self.capabilities)

    async def test_a_websocket_is_resolved_as_a_request_is(self, resolver: Resolver) -> None:
        """The handshake of a WebSocket names its tenant in the same way."""
        scope = self._said("acme").scope
        scope["type"] = "websocket"
        scope.pop("method", None)
        claim = await resolve(resolver, Connection(scope))
        assert claim is not None
        assert claim.identifier == "acme"

    # -- what it leaves alone ----------------------------------------------------------------------

    async def test_it_never_writes_to_the_scope(self, resolver: Resolver) -> None:
        """A resolver reads the connection and changes nothing in it."""
        connections = [self._said("acme"), self.silent_connection()]
        if "carries_identifier" in self.capabilities:
            connections += [c for c in [self.connection_for("acme,beta")] if c is not None]
        for connection in connections:
            before = copy.deepcopy(dict(connection.scope))
            watched = Connection(_ReadOnlyScope(connection.scope))
            await outcome(resolver, watched)
            assert dict(watched.scope) == before

    async def test_answers_of_concurrent_requests_are_not_mixed(self, resolver: Resolver) -> None:
        """Two hundred requests at once get two hundred answers, each its own."""
        identifiers = [f"tenant-{number % 40}" for number in range(200)]
        connections = [self._said(identifier) for identifier in identifiers]

        async def ask(connection: Connection, number: int) -> str | None:
            for _ in range(number % 3):
                await anyio.lowlevel.checkpoint()
            claim = await resolve(resolver, connection)
            return None if claim is None else claim.identifier

        found = await run_together(
            partial(ask, connection, number) for number, connection in enumerate(connections)
        )
        assert found == identifiers

    async def test_it_answers_in_time(self, resolver: Resolver) -> None:
        """An answer comes within the five seconds that the core waits for a plugin."""
        for connection in (self._said("acme"), self.silent_connection()):
            with move_on_after(self.patience) as time:
                await outcome(resolver, connection)
            assert not time.cancelled_caught, f"It took longer than {self.patience:g} seconds."

    # -- what it refuses ---------------------------------------------------------------------------

    @requires("in_header")
    async def test_R3_a_header_that_is_there_twice_is_refused(self, resolver: Resolver) -> None:
        """Two headers that name a tenant are refused, whichever comes first, also if equal."""
        for first, second in (("acme", "beta"), ("beta", "acme"), ("acme", "acme")):
            doubled = self._said(first)
            other = self._said(second).scope["headers"]
            silent = self.silent_connection().scope["headers"]
            names = {name for name, _ in other if (name, _) not in silent}
            assert names, "connection_for() sets no header, and the suite declares in_header."
            doubled.scope["headers"] = [
                *doubled.scope["headers"],
                *[header for header in other if header[0] in names],
            ]
            found = await outcome(resolver, doubled)
            assert isinstance(found, RequestRefused), f"{first}, then {second}: {found}"

    @requires("carries_identifier")
    async def test_R4_a_list_of_tenants_is_refused(self, resolver: Resolver) -> None:
        """``acme,beta`` is no identifier, and neither of the two is chosen."""
        await self._refused(resolver, MALFORMED["R4, a list"])

    @requires("carries_identifier")
    async def test_R12_letters_that_are_not_ascii_are_refused(self, resolver: Resolver) -> None:
        """Look-alikes, full-width letters and invalid bytes are refused, never folded to ASCII."""
        await self._refused(resolver, MALFORMED["R12, not ASCII"])

    @requires("carries_identifier")
    async def test_R12_capitals_are_refused_where_the_source_has_case(
        self, resolver: Resolver
    ) -> None:
        """``ACME`` is not made ``acme``, save in a source that has no case."""
        if "case_insensitive" not in self.capabilities:
            await self._refused(resolver, CASES)
            return
        for identifier in CASES:
            claim = await resolve(resolver, self._said(identifier))
            assert claim is not None
            assert claim.identifier == identifier.lower()

    @requires("carries_identifier")
    async def test_R14_what_looks_like_a_path_is_refused(self, resolver: Resolver) -> None:
        """Slashes, dots and escapes are not resolved into a tenant."""
        await self._refused(resolver, MALFORMED["R14, a path"])

    @requires("carries_identifier")
    async def test_R16_control_characters_are_refused(self, resolver: Resolver) -> None:
        """A newline at the end, a NUL or a tab inside is refused, not cut off."""
        await self._refused(resolver, MALFORMED["R16, a control character"])

    @requires("carries_identifier")
    async def test_R18_what_is_too_long_is_refused(self, resolver: Resolver) -> None:
        """More than 48 bytes are refused, not truncated."""
        await self._refused(resolver, MALFORMED["R18, too long"])

    @requires("carries_identifier")
    async def test_whatever_else_is_no_identifier_is_refused(self, resolver: Resolver) -> None:
        """Empty values and other characters are refused, and not taken for silence."""
        await self._refused(resolver, MALFORMED["no identifier"])

    @requires("carries_identifier")
    async def test_S1_a_refusal_does_not_repeat_what_was_sent(self, resolver: Resolver) -> None:
        """The error that refuses a value does not carry the attacker's bytes to logs and bodies."""
        for canary in ("Canary_7f3a91", "canary--7f3a91", "canary-7f3a91-" + "x" * 100):
            connection = self.connection_for(canary)
            if connection is None:
                continue
            found = await outcome(resolver, connection)
            if isinstance(found, RequestRefused):
                told = f"{found!s} {found!r} {found.detail}".lower()
                assert "7f3a91" not in told, f"The refusal of {canary!r} repeats it."

    @requires("verified")
    async def test_a_proof_that_does_not_hold_is_refused(self, resolver: Resolver) -> None:
        """A forged proof is refused; it is neither believed nor taken for silence."""
        for identifier in ("acme", "beta"):
            genuine = await resolve(resolver, self._said(identifier))
            assert genuine is not None
            found = await outcome(resolver, self.forged_connection_for(identifier))
            assert isinstance(found, RequestRefused), f"{identifier}: {found}"

    # -- helpers -----------------------------------------------------------------------------------

    def _said(self, identifier: str) -> Connection:
        connection = self.connection_for(identifier)
        assert connection is not None, f"connection_for({identifier!r}) has to give a connection."
        return connection

    async def _refused(self, resolver: Resolver, values: Iterable[str]) -> None:
        said = 0
        for value in values:
            connection = self.connection_for(value)
            if connection is None:
                continue
            said += 1
            found = await outcome(resolver, connection)
            assert isinstance(found, RequestRefused), f"{value[:80]!r}: {found}"
        assert said, "connection_for() gave None for all of them, and could test nothing."


async def resolve(resolver: Resolver, connection: Connection) -> TenantClaim | None:
    """Ask, without looking at what comes back."""
    return await resolver.resolve(connection)


async def outcome(
    resolver: Resolver, connection: Connection
) -> TenantClaim | RequestRefused | None:
    """Return the claim, None, or the refusal; any other error is one of the resolver."""
    try:
        return await resolver.resolve(connection)
    except RequestRefused as refusal:
        return refusal
