"""PostgreSQL through asyncpg, for the tenant store and for tenants alike."""

from tenancy_core.sql.postgres.failures import code_of, flaw_of, in_words, tell_flaws
from tenancy_core.sql.postgres.links import (
    WITHOUT_PREPARED,
    end_silent,
    ends_when_silent,
    is_pooled,
    replace_closed,
)
from tenancy_core.sql.postgres.locks import LOCK_LAYOUT, LOCK_PROVISION, LOCK_TENANT
from tenancy_core.sql.postgres.tls import TLS_MODES
from tenancy_core.sql.postgres.urls import connect_args, url_of

__all__ = [
    "LOCK_LAYOUT",
    "LOCK_PROVISION",
    "LOCK_TENANT",
    "TLS_MODES",
    "WITHOUT_PREPARED",
    "code_of",
    "connect_args",
    "end_silent",
    "ends_when_silent",
    "flaw_of",
    "in_words",
    "is_pooled",
    "replace_closed",
    "tell_flaws",
    "url_of",
]
