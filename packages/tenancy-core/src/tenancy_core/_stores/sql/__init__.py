"""The tenant store on SQLAlchemy: one implementation for every dialect."""

from tenancy_core._stores.sql.store import SqlTenantStore

__all__ = ["SqlTenantStore"]
