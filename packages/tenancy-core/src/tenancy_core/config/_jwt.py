"""The settings of tokens: who issues them, with which keys, and what has to fit together."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from tenancy_core.config._environment import PREFIX, near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tenancy_core.config._model import TenancyConfig

__all__ = ["ANY", "ASYMMETRIC", "SYMMETRIC", "JwtIssuer", "check_jwt", "parse_issuers"]

ANY: Final = "*"
"""Waives a check: any audience, or any issuer."""

SYMMETRIC: Final[dict[str, int]] = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Algorithms with a shared secret, and its least length: that of the hash
(RFC 7518, section 3.2). Counted in characters, which are never more than bytes."""

ASYMMETRIC: Final = (
    *("RS256", "RS384", "RS512"),
    *("PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512"),
    "EdDSA",
)
"""Algorithms with a key pair (RFC 7518, section 3.1; RFC 8037, section 3.1)."""

_URL: Final = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
    r"(?:[/?][!$&-;=?@A-Z_a-z~%]*)?"
)
"""Nothing in which two parsers could see different hosts: no user information, no backslash."""


def _texts(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class JwtIssuer(BaseModel):
    """One issuer of tokens and what it is bound to. It has one of the three kinds of keys.

    Attributes:
        issuer: What its tokens say as ``iss``, to the letter.
        audience: Its tokens name one of these as ``aud``; ``*`` waives that.
        algorithms: What its tokens may be signed with. ``HS256`` where there is a ``secret`` and
            nothing is said.
        secret: Key of HMAC-signed tokens.
        jwks_url: Where its public keys are published.
        public_key: Its one public key, as PEM.
        tenant_claim: The claim that names the tenant; by default ``jwt_tenant_claim``.
        tenants: The only tenants that it may name; by default all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    issuer: str
    audience: _Texts = ()
    algorithms: _Texts = ()
    secret: SecretStr | None = None
    jwks_url: str | None = Field(default=None, repr=False)  # some want a key in its query
    public_key: str | None = Field(default=None, repr=False)
    tenant_claim: str | None = None
    tenants: _Texts = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """The algorithms, with the default."""
        if not self.algorithms and self.secret is not None:
            return ("HS256",)
        return self.algorithms


def parse_issuers(value: object) -> object:
    """Decode the variable; leave everything else to pydantic.

    Raises:
        ValueError: It is no JSON list.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, (list, tuple)):
        message = 'is no JSON list; write [{"issuer": …, "audience": …, …}]'
        raise ValueError(message)  # noqa: TRY004 - pydantic catches ValueErrors only
    return value  # pyright: ignore[reportUnknownVariableType] - pydantic looks into it


_FLAT: Final = {
    "issuer": "jwt_issuer",
    "audience": "jwt_audience",
    "algorithms": "jwt_algorithms",
    "secret": "jwt_secret",
    "jwks_url": "jwt_jwks_url",
}
"""Field of an issuer → the flat setting of the only one."""


def check_jwt(config: TenancyConfig) -> None:
    """Refuse settings of tokens that are unsafe, contradict each other, or are read by nobody.

    Raises:
        ValueError: With one sentence, without any value that may be secret.
    """
    given = sorted(name for name in config.model_fields_set if name.startswith("jwt_"))
    if "jwt" not in config.resolution_strategy:
        if given:
            raise ValueError(
                f"{_variable(given[0])} is set, and TENANCY_RESOLUTION_STRATEGY does not name the "
                "resolver jwt, so that no token would be looked at. Add jwt to it, or remove "
                + ", ".join(map(_variable, given))
            )
        return
    if not config.jwt_tenant_claim:
        raise ValueError("TENANCY_JWT_TENANT_CLAIM is empty; name the claim: tenant_id")
    if not all(config.jwt_types):
        raise ValueError("TENANCY_JWT_TYPES holds an empty type; write for instance: at+jwt")
    if not config.jwt_issuers:
        (issuer,) = config.token_issuers
        _check_issuer(issuer, lambda field: _variable(_FLAT.get(field, field)))
        return
    both = sorted({"jwt_issuers", *_FLAT.values()} & set(given) - {"jwt_issuers"})
    if both:
        raise ValueError(
            f"TENANCY_JWT_ISSUERS and {_variable(both[0])} are both set. Each issuer has its own "
            "keys, algorithms and audience: move what is in the flat setting into the list"
        )
    _check_list(config.jwt_issuers)


def _variable(setting: str) -> str:
    return PREFIX + setting.upper()


def _check_list(issuers: Sequence[JwtIssuer]) -> None:
    rotating: dict[str, bool] = {}
    owners: dict[SecretStr, str] = {}
    for number, issuer in enumerate(issuers, 1):
        where = f"TENANCY_JWT_ISSUERS, entry {number}"
        if issuer.issuer == ANY:
            raise ValueError(
                f"{where}: issuer is '*', and keys are bound to an issuer; name it, as in the "
                "claim iss of its tokens"
            )
        _check_issuer(issuer, f"{where}: {{}}".format)
        if issuer.secret and owners.setdefault(issuer.secret, issuer.issuer) != issuer.issuer:
            raise ValueError(
                f"{where}: secret is another issuer's, too, so that each could sign for the other; "
                "give each its own"
            )
        fetched = issuer.jwks_url is not None
        if issuer.issuer in rotating and (fetched or rotating[issuer.issuer]):
            raise ValueError(
                f"{where}: issuer is there before. Several entries of one issuer are for rotating "
                "a secret or a public_key; one with a jwks_url stands alone"
            )
        rotating[issuer.issuer] = fetched


def _check_issuer(issuer: JwtIssuer, called: Callable[[str], str]) -> None:
    """Check one issuer.

    Args:
        issuer: Of the list, or made of the flat settings.
        called: Field → how a message names it.
    """
    if not issuer.issuer:
        raise ValueError(
            f"{called('issuer')} is missing: without it the tokens of every service that shares "
            "a key would do. Write what the claim iss of your tokens says"
            + (", or * to accept any" if called("issuer") == _variable("jwt_issuer") else "")
        )
    if not issuer.audience or not all(issuer.audience):
        raise ValueError(
            f"{called('audience')} is missing: without it a token that was made for another "
            "service would do. Write what the claim aud of your tokens says, or * to accept any"
        )
    if ANY in issuer.audience and len(issuer.audience) > 1:
        raise ValueError(
            f"{called('audience')} names '*' beside others; '*' accepts any: leave the others out, "
            "or '*'"
        )
    _check_algorithms(issuer.algorithms, called("algorithms"))
    _check_keys(issuer, called)
    if issuer.tenant_claim == "":
        raise ValueError(f"{called('tenant_claim')} is empty; name the claim: tenant_id")


def _check_algorithms(algorithms: Sequence[str], called: str) -> None:
    known = (*SYMMETRIC, *ASYMMETRIC)
    for name in algorithms:
        if name not in known:
            meant = near_miss(name.upper(), known)
            raise ValueError(
                f"{called} names something that is no algorithm of signed tokens here; there is "
                f"{', '.join(known)}" + (f" (did you mean {meant}?)" if meant else "")
            )
    symmetric = SYMMETRIC.keys() & set(algorithms)
    if symmetric and symmetric != set(algorithms):
        raise ValueError(
            f"{called} mixes algorithms with a shared secret (HS…) and with a key pair. A public "
            "key could then pass for the secret: name one of the two kinds"
        )


def _check_keys(issuer: JwtIssuer, called: Callable[[str], str]) -> None:
    given = [
        name for name in ("secret", "jwks_url", "public_key") if getattr(issuer, name) is not None
    ]
    kinds = [called("secret"), called("jwks_url")]
    if called("public_key") != _variable("public_key"):
        kinds.append(called("public_key"))
    if not given:
        raise ValueError(
            "The resolver jwt has no key to check tokens with: set one of " + ", ".join(kinds)
        )
    if len(given) > 1:
        raise ValueError(
            f"{called(given[0])} and {called(given[1])} are both set, and a token is checked with "
            "one kind of key: remove one of them"
        )
    if issuer.secret is not None:
        _check_secret(issuer.secret.get_secret_value(), issuer.accepted, called)
        return
    if not issuer.algorithms:
        raise ValueError(
            f"{called('algorithms')} is missing: only with a secret alone is there a default. "
            "Write what your tokens are signed with: RS256"
        )
    if SYMMETRIC.keys() & set(issuer.algorithms):
        raise ValueError(
            f"{called('algorithms')} names an algorithm with a shared secret, and "
            f"{called(given[0])} is for key pairs. Write what your tokens are signed with: RS256"
        )
    if issuer.jwks_url is not None:
        _check_url(issuer.jwks_url, called("jwks_url"))
    if issuer.public_key is not None and "PRIVATE KEY" in issuer.public_key:
        raise ValueError(
            f"{called('public_key')} is a private key; it belongs to the issuer alone. Write the "
            "public one, and replace the pair: it has been seen here"
        )


def _check_secret(secret: str, algorithms: Sequence[str], called: Callable[[str], str]) -> None:
    other = [name for name in algorithms if name not in SYMMETRIC]
    if other:
        raise ValueError(
            f"{called('algorithms')} names {other[0]}, which needs a key pair, and "
            f"{called('secret')} is a shared secret. Set {called('jwks_url')} instead, or name "
            f"{', '.join(SYMMETRIC)}"
        )
    strongest = max(algorithms, key=lambda name: SYMMETRIC[name])
    size = SYMMETRIC[strongest]
    if len(secret) < size:
        raise ValueError(
            f"{called('secret')} is shorter than {size} characters, the least for {strongest}: it "
            "could be found by trying. Make one with: "
            f'python -c "import secrets; print(secrets.token_urlsafe({size}))"'
        )
    if any("\ud800" <= char <= "\udfff" for char in secret):
        # A byte of the environment that is no UTF-8 arrives like this.
        raise ValueError(f"{called('secret')} is no text; write it in ASCII")


def _check_url(url: str, called: str) -> None:
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(
            f"{called} is no URL of a key set; write https://host/path, without user, password "
            "and fragment"
        )
    if match["scheme"] == "http" and not _is_loopback(match["host"]):
        raise ValueError(
            f"{called} is not encrypted, so that anybody on the way could put in keys of their "
            "own; write https://…, or http:// with a loopback address"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
