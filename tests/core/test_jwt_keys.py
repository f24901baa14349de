"""Keys that an issuer publishes: fetched once for all who wait, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.key_server import key_server
from support.tokens import ec_key, ed_key, jwk, pem, rsa_key, sign
from support.waiting import until
from tenancy_core._resolvers.jwt import jwks
from tenancy_core._resolvers.jwt.jwks import COOL_DOWN, MAX_AGE, MAX_BYTES, MAX_STALE, PublishedKeys
from tenancy_core._resolvers.jwt.keys import KeySet, OneKey, jwk_key, pem_key, secret_key
from tenancy_core.errors import BackendUnavailable
from tenancy_core.testing import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from support.key_server import KeyServer

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True)
def start_up() -> None:
    """Import what the first of them imports: they are made at start-up, and not in a request."""
    PublishedKeys("http://127.0.0.1:1/keys", [], name="nobody")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def keys(issuer: KeyServer, clock: FakeClock) -> PublishedKeys:
    return PublishedKeys(issuer.url, ["RS256"], name="the issuer", clock=clock)


async def found(keys: PublishedKeys, kid: str | None = "one", algorithm: str = "RS256") -> bool:
    return await keys.find(kid, algorithm) is not None


# -- one request for all -----------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
async def test_a_hundred_who_come_at_once_make_one_request(
    issuer: KeyServer, keys: PublishedKeys, *, known: bool
) -> None:
    outcomes: list[bool] = []

    async def ask(number: int) -> None:
        outcomes.append(await found(keys, "one" if known else f"unknown-{number}"))

    issuer.gate.clear()
    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(ask, number)
        await until(lambda: issuer.asked == 1)
        assert outcomes == []
        issuer.gate.set()
    assert outcomes == [known] * 100
    assert issuer.asked == 1


async def test_a_hundred_unknown_names_make_one_request_more(
    issuer: KeyServer, keys: PublishedKeys, clock: FakeClock
) -> None:
    assert await found(keys)
    clock.advance(COOL_DOWN)

    async def ask(number: int) -> None:
        assert not await found(keys, f"unknown-{number}")

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(ask, number)
    assert issuer.asked == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_who_leaves_takes_the_answer_from_nobody(
    issuer: KeyServer, keys: PublishedKeys
) -> None:
    outcomes: list[bool] = []

    async def ask() -> None:
        outcomes.append(await found(keys))

    issuer.gate.clear()
    async with anyio.create_task_group() as group:
        leaving = anyio.CancelScope()

        async def leave() -> None:
            with leaving:
                await found(keys)
                await anyio.lowlevel.checkpoint()
                raise AssertionError("it was cancelled")

        group.start_soon(leave)
        await until(lambda: issuer.asked == 1)
        group.start_soon(ask)
        await anyio.lowlevel.checkpoint()
        leaving.cancel()
        await anyio.lowlevel.checkpoint()
        issuer.gate.set()
    assert outcomes == [True]
    assert issuer.asked == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_J14_who_is_cancelled_by_the_loop_does_not_make_an_issuer_be_asked_more_often(
    issuer: KeyServer, keys: PublishedKeys
) -> None:
    assert await found(keys)
    issuer.gate.clear()
    task = asyncio.ensure_future(keys.find("unknown", "RS256"))
    await until(lambda: issuer.asked == 1)  # within the cool-down: not asked
    await task
    keys._asked_at = None
    task = asyncio.ensure_future(keys.find("unknown", "RS256"))
    await until(lambda: issuer.asked == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    issuer.gate.set()
    for _ in range(10):
        assert await keys.find("unknown", "RS256") is None
    assert issuer.asked == 2


async def test_who_knows_its_key_does_not_wait_for_a_slow_issuer(
    issuer: KeyServer, keys: PublishedKeys, clock: FakeClock
) -> None:
    assert await found(keys)
    clock.advance(MAX_AGE)
    issuer.gate.clear()
    outcomes: dict[str, bool] = {}

    async def ask(kid: str) -> None:
        outcomes[kid] = await found(keys, kid)

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "one")  # pays for the request
        await until(lambda: issuer.asked == 2)
        group.start_soon(ask, "two")
        with anyio.fail_after(30):
            assert await found(keys)
            assert await found(keys, None)
        assert outcomes == {}
        issuer.publish(jwk(rsa_key(), "two"))
        issuer.gate.set()
    assert outcomes == {"one": False, "two": True}
    assert issuer.asked == 2


async def test_a_slow_issuer_is_given_up_after_the_time_out(
    issuer: KeyServer, keys: PublishedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT", 0.1)
    issuer.gate.clear()
    with anyio.fail_after(30), pytest.raises(BackendUnavailable):
        await keys.find("one", "RS256")


def test_the_bounds_are_what_the_pages_say() -> None:
    assert (MAX_AGE, MAX_STALE, COOL_DOWN, jwks.TIMEOUT) == (300, 3600, 10, 5)
    assert (MAX_BYTES, jwks.MAX_KEYS) == (524288, 100)


@pytest.mark.parametrize("extra", [0, 1])
async def test_an_answer_of_just_the_longest_length_is_read(
    issuer: KeyServer, keys: PublishedKeys, extra: int
) -> None:
    issuer.body += b" " * (MAX_BYTES + extra - len(issuer.body))
    if extra:
        with pytest.raises(BackendUnavailable):
            await keys.find("one", "RS256")
    else:
        assert await found(keys)


# -- what is sent, and where to ----------------------------------------------------------------


async def test_the_settings_of_the_environment_are_not_followed(
    issuer: KeyServer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with key_server() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        keys = PublishedKeys(issuer.url, ["RS256"], name="the issuer", clock=clock)
        assert await found(keys)
        assert proxy.asked == 0
    assert {"authorization", "cookie"} & set(issuer.seen) == set()
    assert issuer.seen["accept-encoding"] == "identity"


async def test_what_fails_is_in_the_log_without_the_url(
    issuer: KeyServer, keys: PublishedKeys, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.status, issuer.headers["location"] = 302, "http://canary.example/"
    with caplog.at_level(logging.DEBUG, "tenancy"), pytest.raises(BackendUnavailable) as caught:
        await keys.find("one", "RS256")
    (record,) = [entry for entry in caplog.records if entry.name == "tenancy"]
    assert record.getMessage() == (
        "the keys of the issuer cannot be fetched: the status is 302, and 200 is expected"
    )
    assert str(caught.value) == "The keys of the issuer cannot be fetched."


def certificate(folder: Path) -> ssl.SSLContext:
    """Return what a server needs that nobody has reason to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_certificate_that_nobody_vouches_for_is_refused(
    tmp_path: Path, clock: FakeClock, *, trusted: bool
) -> None:
    with key_server(certificate(tmp_path)) as issuer:
        issuer.publish(jwk(rsa_key(), "one"))
        assert issuer.url.startswith("https://")
        # It reads the machine's certificates: when a Tenancy is built, not in a request.
        keys = await anyio.to_thread.run_sync(
            lambda: PublishedKeys(issuer.url, ["RS256"], name="the issuer", clock=clock)
        )
        if trusted:  # as if the machine did
            keys._tls.load_verify_locations(tmp_path / "server.pem")
            assert await found(keys)
            return
        with pytest.raises(BackendUnavailable):
            await keys.find("one", "RS256")
        assert issuer.asked == 0


# -- which key ---------------------------------------------------------------------------------


async def test_without_a_name_the_only_key_that_fits_is_meant(
    issuer: KeyServer, clock: FakeClock
) -> None:
    keys = PublishedKeys(issuer.url, ["RS256", "ES256"], name="the issuer", clock=clock)
    issuer.publish(jwk(rsa_key(), "one"), jwk(ec_key()))
    assert await found(keys, None, "RS256")
    assert await found(keys, None, "ES256")
    issuer.publish(jwk(rsa_key(), "one"), jwk(rsa_key("b"), "two"), jwk(ec_key()))
    clock.advance(MAX_AGE)
    assert not await found(keys, None, "RS256")
    assert await found(keys, None, "ES256")
    assert await found(keys, "two", "RS256")


async def test_two_keys_of_one_name_are_told_apart_by_algorithm_or_not_at_all(
    issuer: KeyServer, clock: FakeClock
) -> None:
    keys = PublishedKeys(issuer.url, ["RS256", "ES256"], name="the issuer", clock=clock)
    issuer.publish(
        jwk(rsa_key(), "one"), jwk(ec_key(), "one"), jwk(rsa_key(), "two"), jwk(rsa_key("b"), "two")
    )
    assert await found(keys, "one", "RS256")
    assert await found(keys, "one", "ES256")
    assert not await found(keys, "two", "RS256")


async def test_a_set_without_keys_takes_all_of_them_back(
    issuer: KeyServer, keys: PublishedKeys, clock: FakeClock
) -> None:
    assert await found(keys)
    issuer.publish()
    clock.advance(MAX_AGE)
    assert not await found(keys)
    assert not await found(keys, None)


GOOD = jwk(rsa_key(), "one")
UNFIT: dict[str, Any] = {
    "no object": "one",
    "no type": {**GOOD, "kty": ...},
    "a type that is no text": {**GOOD, "kty": ["RSA"]},
    "another type": {**GOOD, "kty": "EC"},
    "an unknown type": {**GOOD, "kty": "rsa"},
    "a shared secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "one"},
    "a private key": {**GOOD, "d": "AQAB"},
    "no modulus": {**GOOD, "n": ...},
    "a modulus that is no text": {**GOOD, "n": 7},
    "an empty modulus": {**GOOD, "n": ""},
    "an even exponent": {**GOOD, "e": "Ag"},
    "the exponent one": {**GOOD, "e": "AQ"},
    "a huge modulus": {**GOOD, "n": "_" * 20_000},
    "too short": jwk(rsa_key("weak", 1024), "one"),
    "for encryption": {**GOOD, "use": "enc"},
    "a use that is no text": {**GOOD, "use": ["sig"]},
    "not for verifying": {**GOOD, "key_ops": ["sign", "encrypt"]},
    "operations that are text": {**GOOD, "key_ops": "verify"},
    "operations that are null": {**GOOD, "key_ops": None},
    "another algorithm": {**GOOD, "alg": "RS384"},
    "an algorithm of another family": {**GOOD, "alg": "HS256"},
    "no algorithm at all": {**GOOD, "alg": "none"},
    "an algorithm that is no text": {**GOOD, "alg": ["RS256"]},
    "an algorithm that is null": {**GOOD, "alg": None},
    "a name that is no text": {**GOOD, "kid": 1},
    "a name that is too long": {**GOOD, "kid": "k" * 257},
    "an unknown curve": {**jwk(ec_key(), "one"), "crv": "secp256k1"},
    "a point that is not on its curve": {**jwk(ec_key(), "one"), "y": jwk(ec_key(), "one")["x"]},
    "another curve than it says": {**jwk(ec_key(), "one"), "crv": "P-384"},
    "a key for agreements": {**jwk(ed_key(), "one"), "crv": "X25519"},
    "an Edwards key of a wrong length": {**jwk(ed_key(), "one"), "x": "AAAA"},
}
ALL = ["RS256", "ES256", "EdDSA"]


@pytest.mark.parametrize("what", UNFIT)
async def test_an_unfit_key_is_passed_over_and_the_others_are_used(
    issuer: KeyServer, clock: FakeClock, what: str
) -> None:
    unfit = UNFIT[what]
    if isinstance(unfit, dict):
        unfit = {name: value for name, value in unfit.items() if value is not ...}
    assert jwk_key(unfit, ALL) is None
    issuer.body = json.dumps({"keys": [unfit, jwk(rsa_key("b"), "two")]}).encode()
    keys = PublishedKeys(issuer.url, ALL, name="the issuer", clock=clock)
    assert await found(keys, "two")
    assert not await found(keys, "one")


@pytest.mark.parametrize(
    ("algorithm", "private"),
    [
        ("RS256", rsa_key()), ("RS384", rsa_key()), ("RS512", rsa_key()), ("PS256", rsa_key()),
        ("PS384", rsa_key()), ("PS512", rsa_key()), ("ES256", ec_key()),
        ("ES384", ec_key("c", ec.SECP384R1)), ("ES512", ec_key("d", ec.SECP521R1)),
        ("EdDSA", ed_key()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_algorithm_verifies_its_own_signatures_and_no_other(
    algorithm: str, private: Any, anyio_backend: str
) -> None:
    message = b"a.b"
    signature = sign(message, private, algorithm)
    published = jwk_key(jwk(private, "one"), [algorithm])
    assert published is not None
    for key in (published, pem_key(pem(private), [algorithm])):
        assert key.algorithms == {algorithm}
        assert key.verifies(algorithm, message, signature)
        assert not key.verifies(algorithm, b"a.c", signature)
        assert not key.verifies(algorithm, message, signature[:-1])
        assert not key.verifies(algorithm, message, signature + b"\x00")
        assert not key.verifies(algorithm, message, b"")


async def test_a_key_of_the_settings_is_for_its_algorithms_whatever_its_name_is() -> None:
    keys = OneKey(secret_key("s" * 64, ["HS256"]))
    assert await keys.find(None, "HS256") is await keys.find("any", "HS256")
    assert await keys.find("any", "HS256") is not None
    assert await keys.find(None, "HS512") is None


def test_keys_are_not_printed(anyio_backend: str) -> None:
    key = secret_key("canary" * 8, ["HS256"])
    assert "canary" not in repr(key) + repr(KeySet([key]))


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_public_key_is_refused(text: str, anyio_backend: str) -> None:
    with pytest.raises(ValueError, match="is no public key in PEM"):
        pem_key(text, ["RS256"])
