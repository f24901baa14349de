"""Isolation ``hybrid``: most tenants together, those who pay for it apart."""

from tenancy_postgres.hybrid.isolation import HybridIsolation

__all__ = ["HybridIsolation"]
