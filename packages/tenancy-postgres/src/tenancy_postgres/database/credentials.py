"""A tenant's login: a random password, kept encrypted, that can be replaced while it is in use."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from tenancy_core.crypto import RESERVED

if TYPE_CHECKING:
    from uuid import UUID

    from tenancy_core.crypto import TenantSecrets

__all__ = ["Credentials", "Login", "scram_verifier"]

_NAME: Final = f"{RESERVED}postgres-login"
_BYTES: Final = 32
_ITERATIONS: Final = 1
"""More of them slow down the guessing of passwords that people make up (RFC 5802, section 9).
Nobody guesses 256 random bits, and the server works through all of them when the role is made, and
the client at each login: PostgreSQL's own 4096 take 1 to 3 ms each time."""


@dataclass(frozen=True, slots=True, repr=False)
class Login:
    """What a tenant logs in with. It is not printed.

    Attributes:
        password: The one that holds, or is about to.
        previous: While it is being replaced, the one that may hold still.
    """

    password: str
    previous: str | None = None

    @classmethod
    def new(cls, previous: str | None = None) -> Login:
        """Return a random one."""
        return cls(secrets.token_urlsafe(_BYTES), previous)


class Credentials:
    """Tenants' logins, in the tenant store.

    Args:
        secrets: Keeps them.
    """

    __slots__ = ("_secrets",)

    def __init__(self, secrets: TenantSecrets) -> None:
        self._secrets = secrets

    async def get(self, tenant_id: UUID) -> Login | None:
        """Return a tenant's login, or None.

        Raises:
            DecryptionError: None of ``encryption_keys`` opens it.
        """
        kept = await self._secrets.get(tenant_id, _NAME)
        return None if kept is None else Login(**json.loads(kept.get_secret_value()))

    async def keep(self, tenant_id: UUID, login: Login, *, instead_of: Login | None) -> Login:
        """Keep a tenant's login.

        Args:
            tenant_id: Whose.
            login: What they log in with from now on.
            instead_of: What is kept now, as far as the caller knows; None if nothing is.

        Raises:
            VersionConflict: Something else is kept by now, and stays.
        """
        expected = None if instead_of is None else _written(instead_of)
        await self._secrets.keep(tenant_id, _NAME, _written(login), expected=expected)
        return login


def _written(login: Login) -> SecretStr:
    # Not in a frame through which an error goes: error trackers print their local variables.
    values = {"password": login.password}
    if login.previous is not None:
        values["previous"] = login.previous
    return SecretStr(json.dumps(values))


def scram_verifier(password: str) -> str:
    """Return what the server keeps of a password, so that it never sees, or logs, the password.

    It is the form of ``pg_authid.rolpassword``
    (https://www.postgresql.org/docs/current/catalog-pg-authid.html) with the keys of RFC 5802,
    section 3.

    Args:
        password: ASCII, which SASLprep leaves as it is.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${_ITERATIONS}:{_base64(salt)}${_base64(stored)}:{_base64(server)}"


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
