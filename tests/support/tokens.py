"""Tokens as issuers make them, and as attackers do: every byte of one can be chosen."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

ISSUER: Final = "https://id.example"
AUDIENCE: Final = "notes"
SECRET: Final = "not-the-secret-of-anybody-but-long-enough-for-each-of-the-three-hashes"

FLAT: Final[dict[str, Any]] = {
    "resolution_strategy": "jwt",
    "jwt_secret": SECRET,
    "jwt_issuer": ISSUER,
    "jwt_audience": AUDIENCE,
}
"""Settings of a service whose tokens are signed with a secret."""


def listed(*issuers: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Return the settings of a service with a list of issuers."""
    whole = [{"issuer": ISSUER, "audience": AUDIENCE, **issuer} for issuer in issuers]
    return {"resolution_strategy": "jwt", "jwt_issuers": whole, **settings}


@cache
def rsa_key(name: str = "a", bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the private key of that name; made once per process."""
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(name: str = "a", curve: type[ec.EllipticCurve] = ec.SECP256R1) -> Any:
    """As :func:`rsa_key`."""
    return ec.generate_private_key(curve())


@cache
def ed_key(name: str = "a") -> ed25519.Ed25519PrivateKey:
    """As :func:`rsa_key`."""
    return ed25519.Ed25519PrivateKey.generate()


def pem(private: Any) -> str:
    """Return the public half as PEM."""
    return (
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def jwk(private: Any, kid: str | None = None, **members: Any) -> dict[str, Any]:
    """Return the public half as a JWK."""
    name = {rsa.RSAPrivateKey: "RS256", ed25519.Ed25519PrivateKey: "EdDSA"}
    family = next((name[kind] for kind in name if isinstance(private, kind)), "ES256")
    found: dict[str, Any] = get_default_algorithms()[family].to_jwk(
        private.public_key(), as_dict=True
    )
    return {**found, **({} if kid is None else {"kid": kid}), **members}


def segment(value: Any) -> bytes:
    """Return one part of a token: of bytes as they are, of anything else as JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).rstrip(b"=")


def sign(message: bytes, key: Any, algorithm: str) -> bytes:
    """Return a signature."""
    if algorithm.startswith("HS"):
        # Not PyJWT's, which refuses what an attacker would take for a secret.
        data = key if isinstance(key, bytes) else str(key).encode()
        return hmac.new(data, message, getattr(hashlib, f"sha{algorithm[2:]}")).digest()
    maker = get_default_algorithms()[algorithm]
    return maker.sign(message, maker.prepare_key(key))


def claims(**changes: Any) -> dict[str, Any]:
    """Return good claims, changed; what is ``...`` is left out."""
    now = int(time.time())
    good: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + 600,
        "tenant_id": "acme",
        **changes,
    }
    return {name: value for name, value in good.items() if value is not ...}


def token(
    payload: Any = None,
    *,
    key: Any = SECRET,
    algorithm: str = "HS256",
    header: Any = None,
    **changes: Any,
) -> bytes:
    """Return a signed token.

    Args:
        payload: Instead of good claims; bytes are taken as they are.
        key: A secret or a private key.
        algorithm: What it is really signed with.
        header: Instead of the honest header (bytes), or added to it (a dict; ``...`` leaves out).
        **changes: Of the claims.
    """
    if not isinstance(header, bytes):
        honest = {"alg": algorithm, "typ": "JWT", **(header or {})}
        header = {name: value for name, value in honest.items() if value is not ...}
    body = claims(**changes) if payload is None else payload
    message = segment(header) + b"." + segment(body)
    return message + b"." + segment(sign(message, key, algorithm))


def bearer(value: bytes) -> tuple[bytes, bytes]:
    """Return the header that sends a token."""
    return (b"authorization", b"Bearer " + value)
