"""Isolation ``database``: a database for each tenant, and a login that opens no other."""

from tenancy_postgres.database.isolation import DatabaseIsolation

__all__ = ["DatabaseIsolation"]
