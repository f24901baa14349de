"""The section ``TENANCY_POSTGRES_*``."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

__all__ = ["PostgresSettings"]


_MOST: Final = 63
"""Bytes of a name that PostgreSQL keeps: NAMEDATALEN less one."""


class PostgresSettings(BaseModel):
    """Settings of this package.

    Attributes:
        admin_url: Role that makes and removes what tenants have, in the same database as
            ``TENANCY_DATABASE_URL``. Default: that of the tenant store.
        allow_unsafe_role: Serve under ``rls`` although the role of the sessions can bypass the
            policies. It is logged at each start.
        application_name: What ``pg_stat_activity`` shows, with the tenant behind a slash; empty
            leaves it alone.
        prepared_statements: ``auto`` keeps statements prepared unless a pooler is there; ``on``
            is for a pooler that tracks them (PgBouncer 1.21 with ``max_prepared_statements``).
        schema_mode: Under ``schema``: ``search_path`` leads names to the tenant's schema;
            ``qualified`` writes the schema into the SQL that SQLAlchemy makes.
        schema_roles: Under ``schema``: a role for each tenant, so that raw SQL which names
            another tenant's schema is refused.
        statement_tag: Which statements carry a comment with the tenant's schema, so that the
            driver does not reuse a prepared one where tenants' types differ: ``auto`` those of
            tenants that have types of their own, ``always``, ``never``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    admin_url: SecretStr | None = None
    allow_unsafe_role: bool = False
    application_name: str = Field(default="tenancy", max_length=_MOST)
    prepared_statements: Literal["auto", "on", "off"] = "auto"
    schema_mode: Literal["search_path", "qualified"] = "search_path"
    schema_roles: bool = False
    statement_tag: Literal["auto", "always", "never"] = "auto"

    @field_validator("application_name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable():
            raise ValueError("is no application name; use printable ASCII")
        return value
