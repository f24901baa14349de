"""For tenancy: tenants named by API keys, and a cache in a file."""
