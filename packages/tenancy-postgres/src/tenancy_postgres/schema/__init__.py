"""A schema for each tenant: its sessions, and how it is made and removed."""

from tenancy_postgres.schema.isolation import SchemaIsolation

__all__ = ["SchemaIsolation"]
