"""Multi-tenancy by API key."""
