"""Everything that tenancy raises, in one tree.

Each error carries a stable, machine-readable ``code``; the HTTP ones also carry the ``status``
they are answered with. No message of this module, and none that is built from it, contains a
URL, a password or a key.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AlreadyProvisioning",
    "BackendUnavailable",
    "CommitUnknown",
    "ConfigurationError",
    "CrossTenantWrite",
    "DecryptionError",
    "DuplicateProviderError",
    "IdentifierCollision",
    "InvalidCredentials",
    "InvalidIdentifier",
    "InvalidTransition",
    "IsolationError",
    "NoCurrentTenant",
    "PluginLoadError",
    "RateLimitExceeded",
    "RequestRefused",
    "ResolverError",
    "TenancyError",
    "TenantContextLocked",
    "TenantExists",
    "TenantInactive",
    "TenantLimitReached",
    "TenantMismatch",
    "TenantNotFound",
    "TenantNotIdentified",
    "TenantUnready",
    "UnknownProviderError",
    "UnsafeRoleError",
    "UnsupportedCombinationError",
    "VersionConflict",
]


class TenancyError(Exception):
    """Base of everything that tenancy raises.

    Attributes:
        code: Stable identifier for programs; texts may change, codes do not.
    """

    code: ClassVar[str] = "tenancy_error"


# -- start-up ----------------------------------------------------------------------------------


class ConfigurationError(TenancyError):
    """The settings, or what is installed, cannot work. Raised at start-up only."""

    code = "configuration_invalid"


class PluginLoadError(ConfigurationError):
    """A plugin's distribution could not be imported, or does not fit this version of tenancy."""

    code = "plugin_load_failed"


class DuplicateProviderError(ConfigurationError):
    """Two distributions offer the same name; a name has one owner."""

    code = "provider_duplicate"


class UnknownProviderError(ConfigurationError):
    """Nothing that is installed offers the name that the settings ask for."""

    code = "provider_unknown"


class UnsupportedCombinationError(ConfigurationError):
    """The parts exist, but not together: a strategy that this database does not have."""

    code = "combination_unsupported"


class UnsafeRoleError(ConfigurationError):
    """The database role of the application could reach past the isolation."""

    code = "role_unsafe"


# -- requests ----------------------------------------------------------------------------------


class RequestRefused(TenancyError):
    """A request that is answered by tenancy and never reaches the application.

    Attributes:
        status: HTTP status of the answer.
        title: Short text for people, the same for every occurrence of the code.
        retry_after: Seconds until another try makes sense, or None.
    """

    code = "request_refused"
    status: ClassVar[int] = 400
    title: ClassVar[str] = "The request was refused."

    def __init__(self, detail: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.retry_after = retry_after


class TenantNotIdentified(RequestRefused):
    """Nothing in the request says which tenant it is for."""

    code = "tenant_missing"
    title = "The request does not say which tenant it is for."


class InvalidIdentifier(RequestRefused, ValueError):
    """What names the tenant is malformed or ambiguous. It is never repaired."""

    code = "tenant_invalid"
    title = "The tenant is not named in a valid way."


class InvalidCredentials(RequestRefused):
    """The credentials that should prove the tenant are missing or do not hold.

    Attributes:
        presented: Whether there were any: without, a client is told to send some, and not that
            something is wrong with them (RFC 6750, section 3.1).
    """

    code = "token_invalid"
    status = 401
    title = "The request does not prove its tenant."
    presented = True


class TenantMismatch(RequestRefused):
    """Two sources of the same request name different tenants."""

    code = "tenant_mismatch"
    status = 403
    title = "The request names more than one tenant."


class TenantInactive(RequestRefused):
    """The tenant exists and is not served now; told to its proven members only."""

    code = "tenant_suspended"
    status = 403
    title = "This tenant is suspended."


class TenantUnready(TenantInactive):
    """The tenant is still being provisioned; told to its proven members only."""

    code = "tenant_provisioning"
    status = 503
    title = "This tenant is being prepared."


class TenantNotFound(RequestRefused, LookupError):
    """No such tenant, as far as strangers may know: unknown, suspended, archived or unready."""

    code = "tenant_not_found"
    status = 404
    title = "There is no such tenant."


class RateLimitExceeded(RequestRefused):
    """The tenant, or an address that asks for unknown tenants, has used up its share.

    Attributes:
        limit: Accepted hits per window, or None where the limit is not told.
        window: Length of the window in seconds, or None.
    """

    code = "rate_limited"
    status = 429
    title = "Too many requests."

    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after: float | None = None,
        limit: int | None = None,
        window: float | None = None,
    ) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.limit = limit
        self.window = window


# -- the scope of a tenant ---------------------------------------------------------------------


class NoCurrentTenant(TenancyError, RuntimeError):
    """Code that needs a tenant ran outside of any scope. There is no default tenant."""

    code = "tenant_none_current"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(
            detail
            or "No tenant is current here. In a request this means an excluded path or a thread "
            "that did not inherit the context; elsewhere open a scope: "
            "`async with tenancy.scope('acme'):`."
        )


# -- isolation ---------------------------------------------------------------------------------


class IsolationError(TenancyError):
    """The isolation of a tenant would be broken, or cannot be guaranteed."""

    code = "isolation_violated"


class CrossTenantWrite(IsolationError):
    """A write named another tenant; the transaction was rolled back and nothing was written."""

    code = "cross_tenant_write"


class TenantContextLocked(IsolationError):
    """A scope of another tenant was opened inside a scope; see ``scope(switch=True)``."""

    code = "tenant_context_locked"


class CommitUnknown(IsolationError):
    """The answer to a COMMIT was lost and could not be read back."""

    code = "commit_unknown"


class IdentifierCollision(IsolationError):
    """A database name derived for a tenant is already another tenant's; nothing was created."""

    code = "identifier_collision"


class AlreadyProvisioning(IsolationError):
    """Somebody else is provisioning this tenant right now."""

    code = "already_provisioning"


# -- the control plane -------------------------------------------------------------------------


class TenantExists(TenancyError):
    """The identifier belongs to another tenant already."""

    code = "tenant_exists"


class TenantLimitReached(TenancyError):
    """There are as many tenants as ``max_tenants`` allows; none was created."""

    code = "tenant_limit_reached"


class VersionConflict(TenancyError):
    """The tenant was changed by somebody else since it was read; read it again."""

    code = "version_conflict"


class InvalidTransition(TenancyError):
    """The tenant's status does not allow what was asked."""

    code = "transition_invalid"


# -- infrastructure ----------------------------------------------------------------------------


class DecryptionError(TenancyError):
    """A stored secret could not be decrypted; nothing of it was used."""

    code = "decryption_failed"


class ResolverError(TenancyError):
    """A resolver, or a hook on the way of a request, failed; answered with 503."""

    code = "resolver_failed"


class BackendUnavailable(TenancyError):
    """A store, database or cache could not be reached in time; answered with 503.

    The driver's own exception is ``__cause__``.

    Attributes:
        retry_after: Seconds until another try makes sense, or None where nobody knows.
    """

    code = "backend_unavailable"

    def __init__(self, *args: object, retry_after: float | None = None) -> None:
        super().__init__(*args)
        self.retry_after = retry_after
