"""What this package offers. Nothing here imports a driver."""

TENANCY_HOOK_API = 1
