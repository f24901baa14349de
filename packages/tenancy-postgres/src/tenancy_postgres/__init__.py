"""Multi-tenancy on PostgreSQL: a schema for each tenant, or row-level security."""
