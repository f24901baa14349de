"""``TenancyConfig``: one field for each flat setting, with its rule and its default."""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path  # noqa: TC003 - pydantic resolves the annotations of the class
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NoReturn,
    Self,
    TypeVar,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tenancy_core.config._environment import PREFIX, Environment, near_miss
from tenancy_core.config._isolation import check_isolation
from tenancy_core.config._jwt import JwtIssuer, check_jwt, parse_issuers
from tenancy_core.config._keys import (
    INSTANCE_KEY,
    check_apart,
    check_encryption,
    check_filled,
    check_keys,
)
from tenancy_core.config._later import LATER
from tenancy_core.config._rls import check_rls_setting
from tenancy_core.config._urls import dialect_of, is_in_memory, require_async_url
from tenancy_core.contract import RateLimit
from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydantic_settings import PydanticBaseSettingsSource

    from tenancy_core.tenant import Tenant

__all__ = ["Plan", "TenancyConfig"]

SectionT = TypeVar("SectionT", bound=BaseModel)

_LOG_LEVELS: Final = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")


def _listed(value: object) -> object:
    """Turn ``a,b`` or ``["a", "b"]`` into a tuple; leave everything else to pydantic."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError('is no list; write a,b or ["a", "b"]') from None
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(
            'is no JSON object; write for instance {"pro": {"rate_limit_per_minute": 1000}}'
        ) from None


def _network(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError("names something that is no IP address and no network") from None


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]


# PostgreSQL counts milliseconds, in 31 bits; 0 would mean "for ever".
Seconds = Annotated[float, Field(ge=0.001, le=2_147_483)]


class Plan(BaseModel):
    """What a plan allows; each value is optional and falls back to the flat setting.

    Attributes:
        rate_limit_per_minute: Accepted requests per window.
        rate_limit_burst: Requests that may come at once.
        statement_timeout: Seconds that a statement may take.
        lock_timeout: Seconds that a statement may wait for a lock.
        idle_timeout: Seconds that a transaction may stay idle.
        weight: How much of the database connections a tenant gets beside others: twice as much
            with twice the weight.
        concurrency: Database connections that a tenant may have at once in each process.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    rate_limit_per_minute: int | None = Field(default=None, ge=1)
    rate_limit_burst: int | None = Field(default=None, ge=1)
    statement_timeout: Seconds | None = None
    lock_timeout: Seconds | None = None
    idle_timeout: Seconds | None = None
    weight: float = Field(default=1.0, gt=0)
    concurrency: int | None = Field(default=None, ge=1)


class TenancyConfig(BaseSettings):
    """The settings of a ``Tenancy``. Frozen; the constructor reads only its arguments.

    ``TenancyConfig.from_env()`` reads the environment. Whatever is wrong raises one
    :class:`~tenancy_core.errors.ConfigurationError` that names each setting and never its value.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        case_sensitive=False,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        dotenv_filtering="only_existing",
    )

    # -- core
    database_url: SecretStr = Field(description="The application's database.")
    control_database_url: SecretStr | None = Field(
        default=None,
        description="Where the tenant store lives. Default: `database_url`.",
    )
    resolution_strategy: Names = Field(
        default=("header",),
        description="How a request names its tenant: one name, or an ordered list.",
    )
    isolation_strategy: str | None = Field(
        default=None,
        description="How tenants are kept apart. Default: `database` on SQLite, else `schema`.",
    )
    excluded_paths: Names = Field(
        default=(), description="Paths that are served without a tenant, by whole segments."
    )

    # -- pool
    database_pool_size: int = Field(
        default=20, ge=1, description="Idle connections kept open per database."
    )
    database_max_overflow: int = Field(
        default=40, ge=0, description="Connections beyond the pool size, closed after use."
    )
    database_pool_timeout: float = Field(
        default=30.0, gt=0, description="Seconds to wait for a connection, then 503."
    )
    database_connect_timeout: float = Field(
        default=10.0,
        gt=0,
        description="Seconds to wait for a new connection, then 503; never more than the pool "
        "time-out.",
    )
    database_tenant_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="What one tenant may have of the connections while nobody else wants any; "
        "1: all.",
    )
    database_max_waiting: int = Field(
        default=1000, ge=1, description="Requests of one tenant that may wait for a connection."
    )
    database_pool_recycle: int = Field(
        default=3600, ge=-1, description="Seconds after which a connection is replaced; -1: never."
    )
    database_pool_pre_ping: bool = Field(
        default=True, description="Replace a connection that is found dead when it is taken."
    )
    database_echo: bool = Field(default=False, description="Log every statement.")
    max_cached_engines: int = Field(
        default=100, ge=1, description="Engines kept for tenants that are not in use."
    )
    database_url_template: SecretStr | None = Field(
        default=None,
        description="Under `database`: URL of a tenant's own database, with {database}, {user} and "
        "{password} in it. Default: as `database_url`.",
    )
    max_database_connections: int | None = Field(
        default=None,
        ge=2,
        description="Ceiling on all connections of the process. Default: pool size + overflow.",
    )

    # -- resolution
    tenant_header_name: str = Field(
        default="X-Tenant-ID", description="The header that the `header` resolver reads."
    )
    domain_suffix: str | None = Field(
        default=None, description="Base domain of the `subdomain` resolver: `example.com`."
    )
    path_prefix: str = Field(
        default="/tenants", description="What stands before the tenant in a path."
    )
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_listed)] = Field(
        default=(), description="Peers whose `X-Forwarded-Host` and `-For` are believed."
    )
    require_verified_tenant: bool = Field(
        default=False, description="Refuse a tenant that the request names but does not prove."
    )
    on_resolver_conflict: Literal["reject", "first"] = Field(
        default="reject",
        description="Two sources disagree: refuse the request, or believe the first.",
    )

    # -- jwt
    jwt_secret: SecretStr | None = Field(default=None, description="Key of HMAC-signed tokens.")
    jwt_algorithms: Names = Field(default=(), description="Algorithms that tokens may use.")
    jwt_tenant_claim: str = Field(default="tenant_id", description="Claim that names the tenant.")
    jwt_audience: Names = Field(default=(), description="Audiences that tokens must name.")
    jwt_issuer: str | None = Field(default=None, description="Issuer that tokens must name.")
    # Some issuers want a key in its query.
    jwt_jwks_url: str | None = Field(
        default=None, repr=False, description="Where the issuer's keys are."
    )
    jwt_issuers: Annotated[tuple[JwtIssuer, ...], NoDecode, BeforeValidator(parse_issuers)] = Field(
        default=(), description="JSON: several issuers, each with its keys and audience."
    )
    jwt_types: Names = Field(default=(), description="Values of `typ` that tokens may have.")
    jwt_max_lifetime: float | None = Field(
        default=None, gt=0, description="Longest life of a token, in seconds from `iat` to `exp`."
    )
    jwt_leeway: float = Field(
        default=30, ge=0, le=300, description="Seconds that clocks may differ, either way."
    )

    # -- isolation
    schema_prefix: str = Field(default="tenant_", description="Start of derived schema names.")
    rls_setting: str = Field(
        default="app.tenant_id",
        description="Under `rls`: name of the setting that row policies compare with.",
    )
    standard_isolation_strategy: str = Field(
        default="rls", description="Under `hybrid`: the strategy of most tenants."
    )
    premium_isolation_strategy: str = Field(
        default="schema", description="Under `hybrid`: the strategy of premium tenants."
    )
    premium_plans: Names = Field(default=(), description="Under `hybrid`: plans that are premium.")
    premium_tenants: Names = Field(
        default=(), description="Under `hybrid`: tenants that are premium whatever their plan."
    )

    # -- cache
    redis_url: SecretStr | None = Field(
        default=None, description="Redis for the cache, the limiter and invalidation."
    )
    cache_backend: str | None = Field(
        default=None, description="Name of the shared cache. Default: `memory`."
    )
    cache_enabled: bool = Field(default=False, description="Ask the shared cache before the store.")
    cache_ttl: float = Field(
        default=3600, gt=0, description="Seconds that the shared cache keeps a tenant."
    )
    l1_cache_max_size: int = Field(
        default=1000, ge=1, description="Tenants kept in the memory of each process."
    )
    l1_cache_ttl_seconds: float = Field(
        default=60, gt=0, description="Seconds that each process keeps a tenant."
    )
    invalidation_poll_seconds: float = Field(
        default=5,
        gt=0,
        description="How often each process asks the store what changed: the bound within which "
        "a suspension reaches every process.",
    )
    invalidation_bus: str | None = Field(
        default=None,
        description="Name of the bus that tells other processes of changes at once, or `none`. "
        "Default: `postgres` where the tenant store is on PostgreSQL.",
    )

    # -- limits
    enable_rate_limiting: bool = Field(default=False, description="Limit requests per tenant.")
    rate_limit_per_minute: int = Field(
        default=100, ge=1, description="Accepted requests per window and tenant."
    )
    rate_limit_window_seconds: float = Field(
        default=60, gt=0, description="Length of the window in seconds."
    )
    rate_limit_burst: int | None = Field(
        default=None, ge=1, description="Requests that may come at once. Default: a fifth."
    )
    rate_limit_fail_closed: bool = Field(
        default=False, description="Refuse requests while the limiter is down."
    )
    rate_limiter: str | None = Field(
        default=None, description="Name of the limiter. Default: `memory`."
    )
    plans: Annotated[dict[str, Plan], NoDecode, BeforeValidator(_object)] = Field(
        default_factory=dict[str, Plan], description="JSON: what each plan allows."
    )

    # -- security
    enable_audit_logging: bool = Field(
        default=True, description="Write every change of a tenant into the audit log."
    )
    enable_encryption: bool = Field(
        default=False, description="Encrypt tenants' secrets and sensitive metadata."
    )
    encryption_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_listed)] = Field(
        default=(), description="The first encrypts, all decrypt."
    )
    signing_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_listed)] = Field(
        default=(),
        description="The first signs, all verify. Default: a key that the tenant store made.",
    )

    # -- lifecycle
    enable_soft_delete: bool = Field(
        default=True, description="Only an archived tenant can be erased."
    )
    archive_retention_days: int | None = Field(
        default=None,
        ge=0,
        le=36_500,
        description="Days that an archived tenant is kept; then `erase_expired` erases it.",
    )
    max_tenants: int | None = Field(
        default=None, ge=1, description="Most tenants that there can be, erased ones aside."
    )

    # -- observability
    enable_metrics: bool = Field(
        default=True, description="Use the metrics plugin if it is installed."
    )
    enable_query_logging: bool = Field(default=False, description="Log statements per tenant.")
    slow_query_threshold_ms: float = Field(
        default=1000, description="Milliseconds from which a statement is slow."
    )
    log_level: str | None = Field(
        default=None, description="Level of the logger `tenancy`. Also read from `LOG_LEVEL`."
    )

    sections: dict[str, dict[str, Any]] = Field(
        default_factory=dict[str, dict[str, Any]],
        exclude=True,
        repr=False,
        description="Plugins' own settings by section, where they do not come from variables.",
    )

    _environment: Environment = PrivateAttr(default_factory=lambda: Environment({}))

    FLAT: ClassVar[tuple[str, ...]]

    def __init__(self, **values: Any) -> None:
        """Validate the settings.

        Raises:
            ConfigurationError: Something is missing, unknown, malformed, contradictory, or needs
                a feature that this version does not have.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            problem = _explain(error, type(self))
        else:
            problem = self._what_comes_later()
        # Error trackers print the local variables of every frame.
        values.clear()
        if problem:
            raise ConfigurationError(problem)

    if not TYPE_CHECKING:  # checkers would take it for a class with any attribute

        def __setattr__(self, name: str, value: object) -> None:
            # pydantic's own refusal prints the new value, which may be a secret.
            if not name.startswith("_"):
                raise AttributeError("A TenancyConfig cannot be changed; make another one.")
            super().__setattr__(name, value)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A TenancyConfig holds secrets and is not pickled; make one in each process, "
            "for instance with TenancyConfig.from_env()."
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings' signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but the arguments; :meth:`from_env` is the one that reads more."""
        return (init_settings,)

    @classmethod
    def from_env(cls, *, env_file: str | Path | None = ".env", **overrides: Any) -> Self:
        """Read ``TENANCY_*`` from the environment, from ``.env`` and from secret files.

        Args:
            env_file: Read if it exists; None reads no file. The process's variables win over it.
            **overrides: Settings that win over both.

        Raises:
            ConfigurationError: As the constructor; a variable that is close to a missing setting
                is named.
        """
        environment = Environment.read(cls, env_file)
        try:
            config = cls(**cls._read(environment, overrides), **overrides)
        except ConfigurationError as error:
            problem = str(error)
        else:
            config._environment = environment
            return config
        given = frozenset(overrides)
        # Error trackers print the local variables of every frame.
        overrides.clear()
        lines = [problem]
        # What is missing was meant rather than something else that looks as similar.
        missing = [name for name in cls.variables() if f"{name} is missing" in problem]
        if f"{PREFIX}DATABASE_URL" in missing and "DATABASE_URL" in os.environ:
            lines.append(f"DATABASE_URL is set, and tenancy reads {PREFIX}DATABASE_URL.")
        for unread, similar in environment.unread(cls.variables()).items():
            meant = near_miss(unread, missing) or similar
            if (
                meant is not None
                and environment.get(meant) is None
                and meant.removeprefix(PREFIX).lower() not in given
            ):
                lines.append(
                    f"{unread} is set and is no setting of tenancy-core; did you mean {meant}?"
                )
        raise ConfigurationError("\n".join(lines))

    @classmethod
    def _read(cls, environment: Environment, given: Collection[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in cls.FLAT:
            if name not in given:
                variable = PREFIX + name.upper()
                values[name] = (
                    environment.secret(variable) if name in _SECRETS else environment.get(variable)
                )
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def variables(cls) -> frozenset[str]:
        """Return every variable that the flat settings read, ``<NAME>_FILE`` included."""
        flat = {PREFIX + name.upper() for name in cls.FLAT}
        return frozenset(flat | {f"{PREFIX}{name.upper()}_FILE" for name in _SECRETS})

    # -- rules ---------------------------------------------------------------------------------

    @field_validator("database_url", "control_database_url")
    @classmethod
    def _check_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            require_async_url(value.get_secret_value())
        return value

    @field_validator("control_database_url")
    @classmethod
    def _check_control_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and is_in_memory(value.get_secret_value()):
            raise ValueError(
                "names no file; the tenant store needs one that outlives a connection "
                "(sqlite+aiosqlite:///./data/control.db)"
            )
        return value

    @field_validator("resolution_strategy")
    @classmethod
    def _check_resolution(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no resolver; write for instance: header")
        if len(set(value)) != len(value):
            raise ValueError("names a resolver twice")
        return value

    @field_validator("excluded_paths")
    @classmethod
    def _check_excluded(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            check_excluded_path(path)
        return value

    @field_validator("tenant_header_name")
    @classmethod
    def _check_header(cls, value: str) -> str:
        # RFC 9110 tokens allow more; an underscore is refused because servers and proxies
        # disagree on whether it is the same header as the one with a hyphen.
        if not value or not all(
            char.isascii() and (char.isalnum() or char == "-") for char in value
        ):
            raise ValueError("is no header name; use letters, digits and hyphens")
        if value.lower() in _FORBIDDEN_HEADERS:
            raise ValueError("is a header with another meaning; choose one of your own")
        return value

    @field_validator("rls_setting")
    @classmethod
    def _check_rls_setting(cls, value: str) -> str:
        return check_rls_setting(value)

    @field_validator("domain_suffix")
    @classmethod
    def _check_domain(cls, value: str | None) -> str | None:
        if value is None:
            return None
        labels = value.split(".")
        if len(value) > 253 or not all(  # noqa: PLR2004 - RFC 1035, section 2.3.4
            label
            and len(label) <= 63  # noqa: PLR2004 - RFC 1035, section 2.3.4
            and all(char in _LABEL for char in label)
            and label[0] != "-" != label[-1]
            for label in labels
        ):
            raise ValueError(
                "is no domain; write it in lower case without dots at its ends: example.com"
            )
        return value

    @field_validator("path_prefix")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        check_excluded_path(value)
        if value == "/":
            raise ValueError("is the root; name a segment: /tenants")
        return value

    @field_validator("encryption_keys", "signing_keys")
    @classmethod
    def _check_keys(
        cls, value: tuple[SecretStr, ...], info: ValidationInfo
    ) -> tuple[SecretStr, ...]:
        check_keys(value, words=(INSTANCE_KEY,) if info.field_name == "signing_keys" else ())
        return value

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, value: str | None) -> str | None:
        if value is not None and value.upper() not in _LOG_LEVELS:
            raise ValueError(f"(or LOG_LEVEL) is none of {', '.join(_LOG_LEVELS)}")
        return None if value is None else value.upper()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if "subdomain" in self.resolution_strategy and self.domain_suffix is None:
            raise ValueError(
                "TENANCY_DOMAIN_SUFFIX is missing: the subdomain resolver needs the base domain"
            )
        check_isolation(self)
        check_jwt(self)
        try:
            for plan in (None, *self.plans):
                self.plan_limit(plan)
        except ValueError as error:
            raise ValueError(
                f"TENANCY_RATE_LIMIT_BURST, or a plan's burst, does not fit its limit: {error}"
            ) from None
        keys = {
            f"{PREFIX}ENCRYPTION_KEYS": self.encryption_keys,
            f"{PREFIX}SIGNING_KEYS": self.signing_keys,
        }
        check_filled(keys, {PREFIX + name.upper() for name in self.model_fields_set})
        check_encryption(enabled=self.enable_encryption, keys=self.encryption_keys)
        tokens = [issuer.secret for issuer in self.jwt_issuers if issuer.secret is not None]
        secret = () if self.jwt_secret is None else (self.jwt_secret,)
        check_apart(keys | {f"{PREFIX}JWT_SECRET": secret, f"{PREFIX}JWT_ISSUERS": tokens})
        return self

    def _what_comes_later(self) -> str:
        return "\n".join(
            f"{PREFIX}{name.upper()} is set, and {LATER[name]} is not part of this version. "
            "Remove the setting."
            for name in self.FLAT
            if name in LATER and name in self.model_fields_set
        )

    # -- what follows from the settings --------------------------------------------------------

    @property
    def dialect(self) -> str:
        """SQLAlchemy dialect of ``database_url``, such as ``sqlite`` or ``postgresql``."""
        return dialect_of(self.database_url.get_secret_value())

    @property
    def control_url(self) -> str:
        """URL of the tenant store, with its password. Never print it."""
        return (self.control_database_url or self.database_url).get_secret_value()

    @property
    def control_setting(self) -> str:
        """The variable that names the tenant store's database."""
        given = "DATABASE" if self.control_database_url is None else "CONTROL_DATABASE"
        return f"TENANCY_{given}_URL"

    @property
    def control_dialect(self) -> str:
        """SQLAlchemy dialect of the tenant store's database."""
        return dialect_of(self.control_url)

    @property
    def isolation_name(self) -> str:
        """Name of the isolation strategy, with the default of the dialect."""
        if self.isolation_strategy is not None:
            return self.isolation_strategy
        return "database" if self.dialect == "sqlite" else "schema"

    @property
    def connection_ceiling(self) -> int:
        """Most connections that the process opens, the tenant store's included."""
        if self.max_database_connections is not None:
            return self.max_database_connections
        return max(2, self.database_pool_size + self.database_max_overflow)

    @property
    def connect_timeout(self) -> float:
        """Seconds to wait for a new connection: nobody waits longer for one than for any."""
        return min(self.database_connect_timeout, self.database_pool_timeout)

    @property
    def token_issuers(self) -> tuple[JwtIssuer, ...]:
        """The issuers of tokens: those of the list, or the one of the flat settings."""
        if self.jwt_issuers:
            return self.jwt_issuers
        return (
            JwtIssuer(
                issuer=self.jwt_issuer or "",
                audience=self.jwt_audience,
                algorithms=self.jwt_algorithms,
                secret=self.jwt_secret,
                jwks_url=self.jwt_jwks_url,
            ),
        )

    def rate_limit(self, tenant: Tenant) -> RateLimit:
        """Return the limit of a tenant: its own, else its plan's, else the flat settings'."""
        own = tenant.limits
        plan = self.plan_limit(tenant.plan)
        if not own:
            return plan
        count = own.get("rate_limit_per_minute", plan.count)
        burst = own.get("rate_limit_burst", 0 if count != plan.count else plan.burst)
        # The plan may have been lowered since the tenant's own burst was accepted.
        return RateLimit(count, self.rate_limit_window_seconds, min(burst, max(1, count - 1)))

    def plan_limit(self, name: str | None) -> RateLimit:
        """Return the limit of a plan, or of no plan: its own, else the flat settings'."""
        plan = self.plans.get(name) if name is not None else None
        count = plan and plan.rate_limit_per_minute
        burst = plan and plan.rate_limit_burst
        if count is None and burst is None:
            burst = self.rate_limit_burst
        return RateLimit(
            count or self.rate_limit_per_minute, self.rate_limit_window_seconds, burst or 0
        )

    # -- the environment it came from ----------------------------------------------------------

    @property
    def plugins_blocked(self) -> frozenset[str]:
        """Distributions that are not loaded.

        The process's variable counts for a constructed configuration as well: it is the way out
        when a plugin keeps the service from starting.
        """
        name = f"{PREFIX}PLUGINS_BLOCKED"
        return self._environment.names(name) | Environment(os.environ).names(name)

    @property
    def environment(self) -> Environment:
        """The variables that :meth:`from_env` read; empty for a constructed configuration."""
        return self._environment

    def section(self, name: str, model: type[SectionT]) -> SectionT:
        """Return a plugin's settings.

        Args:
            name: Of the section: ``sqlite`` reads ``TENANCY_SQLITE_*``.
            model: A pydantic model that forbids what it does not know.

        Raises:
            ConfigurationError: As the constructor.
        """
        prefix = f"{PREFIX}{name.upper()}_"
        # Error trackers print local variables: what was given stays where its repr hides it.
        for key in self.sections.get(name, {}):
            if key not in model.model_fields:
                meant = near_miss(key, model.model_fields)
                raise ConfigurationError(
                    f"The section {name!r} has no setting {key!r}; it has "
                    f"{', '.join(sorted(model.model_fields))}."
                    + (f" Did you mean {meant!r}?" if meant else "")
                )
        try:
            return model(**self._read_section(prefix, name, model), **self.sections.get(name, {}))
        except ValidationError as error:
            problem = _explain(error, model, prefix=prefix)
        raise ConfigurationError(problem)

    def _read_section(self, prefix: str, name: str, model: type[BaseModel]) -> dict[str, str]:
        secret, given = secret_settings(model), frozenset(self.sections.get(name, {}))
        values = {
            field: self._environment.secret(prefix + field.upper())
            if field in secret
            else self._environment.get(prefix + field.upper())
            for field in model.model_fields
            if field not in given
        }
        return {field: value for field, value in values.items() if value is not None}


def check_excluded_path(path: str) -> None:
    """Refuse a path that could never match. ``/`` is allowed and matches itself only.

    Raises:
        ValueError: It does not start with a slash, ends with one, or has empty, dotted or
            percent-encoded segments, a query, a space or something that is not ASCII.
    """
    if path == "/":
        return
    segments = path.split("/")[1:]
    if not path.startswith("/") or not segments or not all(segments):
        raise ValueError("holds something that is no path; write it like /health")
    # Anything but printable ASCII arrives percent-encoded.
    if any(segment in {".", ".."} for segment in segments) or any(
        char in "%?#*\\" or not "!" <= char <= "~" for char in path
    ):
        raise ValueError(
            "holds a path with dots, escapes, wildcards or a query; write plain segments"
        )


def secret_settings(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a model that hold secrets: each is also read from ``<NAME>_FILE``."""
    return frozenset(
        name for name, field in model.model_fields.items() if _holds_secret(field.annotation)
    )


def _holds_secret(annotation: object) -> bool:
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return bool(secret_settings(kind))
    return (isinstance(kind, type) and issubclass(kind, (SecretStr, SecretBytes, Secret))) or any(
        map(_holds_secret, get_args(annotation))
    )


def _explain(error: ValidationError, model: type[BaseModel], *, prefix: str = PREFIX) -> str:
    """Say for each setting what is wrong, what is allowed and what to do, without its value."""
    lines: list[str] = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        location = [str(part) for part in problem["loc"]]
        name = location[0] if location else ""
        if name == "jwt_issuers" and len(location) > 1:
            location[1] = f"entry {int(location[1]) + 1}"
        message = problem["msg"].removeprefix("Value error, ")
        variable = prefix + name.upper()
        if problem["type"] == "missing" and len(location) > 1:
            lines.append(f"{', '.join([variable, *location[1:-1]])} needs {location[-1]!r}.")
        elif problem["type"] == "missing":
            example = " (for instance sqlite+aiosqlite:///./data/control.db)"
            lines.append(
                f"{variable} is missing. Set the variable"
                + (example if name == "database_url" else "")
                + f", or pass the argument {name}."
            )
        elif problem["type"] == "extra_forbidden" and len(location) == 1:
            meant = near_miss(name, model.model_fields)
            lines.append(
                f"There is no setting {name!r}." + (f" Did you mean {meant!r}?" if meant else "")
            )
        elif problem["type"] == "extra_forbidden":
            known = _INNER[name].model_fields if name in _INNER else {}
            meant = near_miss(location[-1], known)
            lines.append(
                f"{', '.join([variable, *location[1:-1]])} has no setting {location[-1]!r}."
                + (f" There is {', '.join(known)}." if known else "")
                + (f" Did you mean {meant!r}?" if meant else "")
            )
        elif not name:
            lines.append(message.removesuffix(".") + ".")
        elif problem["type"] == "value_error":
            inner = "".join(f", {part}" for part in location[1:] if not part.isdigit())
            lines.append(f"{variable}{inner} {message}.")
        else:
            inner = "".join(f", {part}" for part in location[1:])
            lines.append(f"{variable}{inner} is not valid: {message}.")
    return "\n".join(dict.fromkeys(lines))


_INNER: Final[dict[str, type[BaseModel]]] = {"plans": Plan, "jwt_issuers": JwtIssuer}
_LABEL: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_FORBIDDEN_HEADERS: Final = frozenset(
    {"host", "authorization", "cookie", "forwarded", "x-forwarded-host", "x-forwarded-for"}
)
TenancyConfig.FLAT = tuple(name for name in TenancyConfig.model_fields if name != "sections")
_SECRETS: Final = secret_settings(TenancyConfig)
