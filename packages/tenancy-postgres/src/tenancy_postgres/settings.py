"""The section ``TENANCY_POSTGRES_*``."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator

__all__ = ["PostgresSettings", "ServerSettings"]

_ALIAS: Final = re.compile(r"[a-z0-9](-?[a-z0-9])*")
_MOST_ALIAS: Final = 48

_MOST: Final = 63
"""Bytes of a name that PostgreSQL keeps: NAMEDATALEN less one."""


class ServerSettings(BaseModel):
    """One more server for tenants' databases.

    Attributes:
        url: As ``TENANCY_DATABASE_URL_TEMPLATE``.
        admin_url: As ``TENANCY_POSTGRES_ADMIN_URL``: a role that makes databases there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: SecretStr
    admin_url: SecretStr


def _object(value: Any) -> Any:  # noqa: ANN401 - whatever was given
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        # From None: the cause holds the value, and that has passwords.
        raise ValueError(
            'is no JSON object; write {"eu2": {"url": "postgresql+asyncpg://…", '
            '"admin_url": "postgresql+asyncpg://…"}}'
        ) from None


class PostgresSettings(BaseModel):
    """Settings of this package.

    Attributes:
        admin_url: Role that makes and removes what tenants have, in the same database as
            ``TENANCY_DATABASE_URL``. Default: that of the tenant store.
        allow_unsafe_role: Serve under ``rls`` although the role of the sessions can bypass the
            policies. It is logged at each start.
        application_name: What ``pg_stat_activity`` shows, with the tenant behind a slash; empty
            leaves it alone.
        database_template: Under ``database``: what tenants' databases begin as, for instance with
            extensions; the application's tables are added to a copy of it.
        listen_url: Where one connection of each process hears of changes that others make: past
            any pooler, in the tenant store's database, as any role that may connect. Default: the
            URL of the tenant store.
        prepared_statements: ``auto`` keeps statements prepared unless a pooler is there; ``on``
            is for a pooler that tracks them (PgBouncer 1.21 with ``max_prepared_statements``).
        schema_mode: Under ``schema``: ``search_path`` leads names to the tenant's schema;
            ``qualified`` writes the schema into the SQL that SQLAlchemy makes.
        schema_roles: Under ``schema``: a role for each tenant, so that raw SQL which names
            another tenant's schema is refused.
        servers: Under ``database``: JSON, further servers by alias.
        statement_tag: Which statements carry a comment with the tenant's schema, so that the
            driver does not reuse a prepared one where tenants' types differ: ``auto`` those of
            tenants that have types of their own, ``always``, ``never``.
        workers: Processes of this service that are open at once, on all machines: what the
            production checklist multiplies the ceiling of connections with. Default:
            ``WEB_CONCURRENCY``, which gunicorn and uvicorn read as well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    admin_url: SecretStr | None = None
    allow_unsafe_role: bool = False
    application_name: str = Field(default="tenancy", max_length=_MOST)
    database_template: str = Field(default="template0", min_length=1, max_length=_MOST)
    listen_url: SecretStr | None = None
    prepared_statements: Literal["auto", "on", "off"] = "auto"
    schema_mode: Literal["search_path", "qualified"] = "search_path"
    schema_roles: bool = False
    servers: Annotated[dict[str, ServerSettings], BeforeValidator(_object)] = Field(
        default_factory=dict[str, ServerSettings], repr=False
    )
    statement_tag: Literal["auto", "always", "never"] = "auto"
    workers: int | None = Field(default=None, ge=1)

    @field_validator("application_name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable():
            raise ValueError("is no application name; use printable ASCII")
        return value

    @field_validator("servers")
    @classmethod
    def _check_aliases(cls, value: dict[str, ServerSettings]) -> dict[str, ServerSettings]:
        for alias in value:
            if _ALIAS.fullmatch(alias) is None or len(alias) > _MOST_ALIAS:
                raise ValueError(
                    "has an alias that is none: use lower-case letters, digits and '-', at most "
                    f"{_MOST_ALIAS} of them"
                )
        if "default" in value:
            raise ValueError(
                "has the alias 'default', which is the server of TENANCY_DATABASE_URL_TEMPLATE or "
                "TENANCY_DATABASE_URL"
            )
        return value
