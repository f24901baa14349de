"""Row-level security: all tenants in the same tables, and policies that keep them apart.

The functions that make and compare policies are for migrations as well.
"""

from tenancy_postgres.rls.isolation import RlsIsolation
from tenancy_postgres.rls.policies import (
    ACCESS,
    FLOOR,
    access_statements,
    grant_statements,
    policy_expression,
    protection_statements,
    removal_statements,
)
from tenancy_postgres.rls.verification import Verdict, verify

__all__ = [
    "ACCESS",
    "FLOOR",
    "RlsIsolation",
    "Verdict",
    "access_statements",
    "grant_statements",
    "policy_expression",
    "protection_statements",
    "removal_statements",
    "verify",
]
