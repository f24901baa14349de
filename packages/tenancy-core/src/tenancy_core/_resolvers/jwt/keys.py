"""Keys: which algorithms each is good for, and whether it verifies a signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import PyJWTError

from tenancy_core._resolvers.jwt.compact import KID_MAX_LENGTH

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Key", "KeySet", "KeySource", "OneKey", "jwk_key", "pem_key", "secret_key"]

_RSA_BITS: Final = range(2048, 16384 + 1)
"""NIST SP 800-131A wants at least 2048; OpenSSL verifies nothing above 16384."""

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
"""Each algorithm has one curve (RFC 7518, section 3.4)."""

_KINDS: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
"""``kty`` → any algorithm of that family, whose class reads the JWK. ``oct``, a shared secret, is
none: nobody publishes one."""

_ALGORITHMS: Final = {
    name: algorithm
    for name, algorithm in get_default_algorithms().items()
    if name.lower() != "none"
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is fit for use.

    Attributes:
        material: As PyJWT's algorithms take it.
        algorithms: What it may verify.
        kid: What its issuer calls it, or None.
    """

    material: Any = field(repr=False)
    algorithms: frozenset[str]
    kid: str | None = None

    def verifies(self, algorithm: str, message: bytes, signature: bytes) -> bool:
        """Whether the signature is one of this key. ``algorithm`` is one of its own."""
        return _ALGORITHMS[algorithm].verify(message, self.material, signature)


class KeySource(Protocol):
    """Where the keys of an issuer come from."""

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the one key that a token may be signed with, or None.

        Raises:
            BackendUnavailable: The keys cannot be had, so that nobody knows.
        """
        ...


class OneKey:
    """The key is in the settings. What a token calls it makes no difference."""

    __slots__ = ("_key",)

    def __init__(self, key: Key) -> None:
        self._key = key

    async def find(self, kid: str | None, algorithm: str) -> Key | None:  # noqa: ARG002 - the protocol's
        """See :class:`KeySource`."""
        return self._key if algorithm in self._key.algorithms else None


class KeySet:
    """Published keys."""

    __slots__ = ("_all", "_named")

    def __init__(self, keys: Iterable[Key]) -> None:
        self._all = tuple(keys)
        self._named: dict[str, list[Key]] = {}
        for key in self._all:
            if key.kid is not None:
                self._named.setdefault(key.kid, []).append(key)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, kid: object) -> bool:
        return kid in self._named

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key of that name that is good for the algorithm; without a name, the only one.

        Where there are several nobody says which is meant. They are not tried out: that would let
        a token choose how much work it makes.
        """
        keys = self._all if kid is None else self._named.get(kid, ())
        fit = [key for key in keys if algorithm in key.algorithms]
        return fit[0] if len(fit) == 1 else None


def secret_key(secret: str, algorithms: Collection[str]) -> Key:
    """Return the key of HMAC-signed tokens.

    Raises:
        ValueError: It is a public key or a JWK: known to everybody.
    """
    try:
        material = _ALGORITHMS["HS256"].prepare_key(secret)
    except PyJWTError:
        raise ValueError(
            "is a public key, a certificate or a JWK, and not a secret; make one with: "
            'python -c "import secrets; print(secrets.token_urlsafe(64))"'
        ) from None
    return Key(material, frozenset(algorithms))


def pem_key(pem: str, algorithms: Collection[str]) -> Key:
    """Return a public key.

    Raises:
        ValueError: It is none, or not fit for each of the algorithms.
    """
    try:
        material = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "is no public key in PEM (-----BEGIN PUBLIC KEY-----, with its line breaks)"
        ) from None
    if isinstance(material, RSAPublicKey) and material.key_size not in _RSA_BITS:
        raise ValueError(
            f"is an RSA key of {material.key_size} bits; {_RSA_BITS[0]} to {_RSA_BITS[-1]} are "
            "allowed. Let its issuer make a new one"
        )
    fit = _fits(material)
    unfit = sorted(set(algorithms) - fit)
    if unfit:
        raise ValueError(
            f"does not fit {', '.join(unfit)}: "
            + (f"it is for {', '.join(sorted(fit))}" if fit else "it is of no kind that is used")
            + ". Write what its tokens are signed with"
        )
    return Key(material, frozenset(algorithms))


def jwk_key(jwk: object, algorithms: Collection[str]) -> Key | None:
    """Return a key of a published set, or None where it is not for this use, or not fit for it.

    Honours ``use``, ``key_ops`` and ``alg`` (RFC 7517, section 4). A set may hold keys of other
    kinds, so such a key is passed over; it is never repaired.
    """
    if not isinstance(jwk, dict):
        return None
    members = cast("dict[str, Any]", jwk)
    kid: object = members.get("kid")
    family = _ALGORITHMS.get(_KINDS.get(str(members.get("kty")), ""))
    operations: object = members.get("key_ops", ["verify"])
    if (
        family is None
        or "d" in members  # private: it would be of no kind that fits, and is slow to read
        or members.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
        or not (kid is None or (isinstance(kid, str) and len(kid) <= KID_MAX_LENGTH))
    ):
        return None
    try:
        material: object = family.from_jwk(members)
    except (PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        return None
    fit = _fits(material) & set(algorithms)
    if "alg" in members:
        fit &= {members["alg"]} if isinstance(members["alg"], str) else set[str]()
    return Key(material, frozenset(fit), kid) if fit else None


def _fits(material: object) -> set[str]:
    """Return the algorithms that a public key is good for; none if it is too weak."""
    if isinstance(material, RSAPublicKey) and material.key_size in _RSA_BITS:
        return {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    if isinstance(material, EllipticCurvePublicKey) and material.curve.name in _CURVES:
        return {_CURVES[material.curve.name]}
    if isinstance(material, (Ed25519PublicKey, Ed448PublicKey)):
        return {"EdDSA"}
    return set()
