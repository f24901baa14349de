"""Names → objects: the settings and the plugins' tables become the parts of a ``Tenancy``."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from tenancy_core._directory import (
    ChangeAnnouncer,
    ChangeFollower,
    ChangeListener,
    Directory,
    L1Cache,
    TenantCodec,
)
from tenancy_core._plugins import registry as kinds
from tenancy_core._plugins.catalogue import DATABASES, EXTRAS
from tenancy_core._plugins.signatures import accepts, flaw_of_function, flaw_of_method
from tenancy_core._resolvers.chain import ChainResolver
from tenancy_core._resolvers.guarded import GuardedResolver
from tenancy_core.audit import AuditLog, AuditTrail, AuditWorker, RefusalBuffer
from tenancy_core.config import TenancyConfig, near_miss
from tenancy_core.contract import (
    AuditSink,
    CacheBackend,
    InvalidationBus,
    IsolationStrategy,
    Observer,
    RateLimiter,
    Resolver,
    TenantStore,
)
from tenancy_core.crypto import SigningKeys, TenantCipher, TenantSecrets
from tenancy_core.errors import ConfigurationError, TenancyError
from tenancy_core.observe import Observers
from tenancy_core.providers import BuildContext
from tenancy_core.sql.budget import ConnectionBudget
from tenancy_core.tenants import TenantService

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import MetaData

    from tenancy_core._plugins import Offer, Registry

__all__ = ["Given", "Parts", "build"]

_log = logging.getLogger("tenancy")

_PROTOCOLS: Final[dict[str, type]] = {
    kinds.RESOLVER: Resolver,
    kinds.ISOLATION: IsolationStrategy,
    kinds.CACHE: CacheBackend,
    kinds.BUS: InvalidationBus,
    kinds.LIMITER: RateLimiter,
    kinds.STORE: TenantStore,
    kinds.OBSERVER: Observer,
    kinds.AUDIT_SINK: AuditSink,
}

CUSTOM: Final = "custom"
NO_BUS: Final = "none"
_BUSES: Final = {"postgresql": "postgres"}
"""Dialect of the tenant store → the bus that is used where none is named and it is installed."""


@dataclass(frozen=True, slots=True)
class Given:
    """Objects that were passed to ``Tenancy`` instead of being selected by name."""

    resolver: Resolver | None = None
    isolation: IsolationStrategy | None = None
    store: TenantStore | None = None
    cache_backend: CacheBackend | None = None
    invalidation_bus: InvalidationBus | None = None
    rate_limiter: RateLimiter | None = None
    observers: Sequence[Observer] = ()
    audit_sinks: Sequence[AuditSink] = ()
    metadata: MetaData | None = None
    clock: Callable[[], float] = monotonic

    def objects(self) -> list[tuple[str, object]]:
        """Return each object with the argument by which it was passed."""
        named: list[tuple[str, object]] = [
            ("resolver", self.resolver),
            ("isolation", self.isolation),
            ("store", self.store),
            ("cache_backend", self.cache_backend),
            ("invalidation_bus", self.invalidation_bus),
            ("rate_limiter", self.rate_limiter),
        ]
        named += [("observers", part) for part in self.observers]
        named += [("audit_sinks", part) for part in self.audit_sinks]
        return [(argument, part) for argument, part in named if part is not None]


@dataclass(frozen=True, slots=True)
class Parts:
    """The objects of one open ``Tenancy``.

    Attributes:
        resources: What is entered on opening, in this order, and left in reverse.
    """

    resolver: Resolver
    raw_header: bytes | None
    store: TenantStore
    directory: Directory
    follower: ChangeFollower
    bus: InvalidationBus | None
    listener: ChangeListener | None
    isolation: IsolationStrategy
    limiter: RateLimiter | None
    observers: Observers
    observed: bool
    audit: AuditLog
    trail: AuditTrail
    audit_worker: AuditWorker
    tenants: TenantService
    connections: ConnectionBudget
    signing: SigningKeys
    cipher: TenantCipher | None
    resources: tuple[Any, ...]


def build(config: TenancyConfig, given: Given, registry: Registry, owner: Any) -> Parts:  # noqa: ANN401 - Tenancy is above
    """Make the parts. No I/O.

    Raises:
        ConfigurationError: Something is missing, unknown or does not fit.
    """
    _report_unread(config, registry)
    _require_protocols(given)
    if given.isolation is None:
        # Asked for first: what a service without its database package lacks is that package, not
        # the driver that the store would miss.
        registry.find_isolation(config.isolation_name, config.dialect)
    budget = ConnectionBudget.from_config(config)
    context = BuildContext(config, given.metadata, budget)
    # Never `given.… or …`: a limiter that has counted nothing yet may well be falsy.
    store: TenantStore = (
        given.store
        if given.store is not None
        else _product(kinds.STORE, registry.find(kinds.STORE, "sql", "The tenant store"), context)
    )
    cipher = TenantCipher(config.encryption_keys) if config.enable_encryption else None
    secrets = None if cipher is None else TenantSecrets(store, cipher)
    context = BuildContext(config, given.metadata, budget, store, given.clock, secrets)
    isolation: IsolationStrategy = (
        given.isolation
        if given.isolation is not None
        else _product(
            kinds.ISOLATION, registry.find_isolation(config.isolation_name, config.dialect), context
        )
    )
    resolver = _resolver(config, given, registry, context)
    shared: CacheBackend | None = None
    if config.cache_enabled:
        shared = given.cache_backend
        if shared is None:
            name = config.cache_backend or "memory"
            offer = registry.find(kinds.CACHE, name, "TENANCY_CACHE_BACKEND")
            shared = _product(kinds.CACHE, offer, context)
    elif given.cache_backend is not None or config.cache_backend is not None:
        raise ConfigurationError(
            "A cache backend is chosen, and TENANCY_CACHE_ENABLED is false. Set it to true, or "
            "leave the backend out."
        )
    bus = _bus(config, given, registry, context)
    announcer = None if bus is None else ChangeAnnouncer(bus)
    limiter: RateLimiter | None = None
    if config.enable_rate_limiting:
        limiter = given.rate_limiter
        if limiter is None:
            name = config.rate_limiter or "memory"
            offer = registry.find(kinds.LIMITER, name, "TENANCY_RATE_LIMITER")
            limiter = _product(kinds.LIMITER, offer, context)
    elif given.rate_limiter is not None or config.rate_limiter is not None:
        raise ConfigurationError(
            "A rate limiter is chosen, and TENANCY_ENABLE_RATE_LIMITING is false. Set it to true, "
            "or leave the limiter out."
        )
    installed = [
        _product(kinds.OBSERVER, offer, context) for offer in registry.offers(kinds.OBSERVER)
    ]
    installed += given.observers
    refusals = RefusalBuffer(store)
    observers = Observers([refusals, *installed] if config.enable_audit_logging else installed)
    sinks = [
        _product(kinds.AUDIT_SINK, offer, context) for offer in registry.offers(kinds.AUDIT_SINK)
    ]
    sinks += given.audit_sinks
    signing_keys = SigningKeys(config.signing_keys, store)
    signer = signing_keys.signer("audit")
    audit = AuditLog(enabled=config.enable_audit_logging, sinks=sinks, store=store, signer=signer)
    l1 = L1Cache(config.l1_cache_max_size, config.l1_cache_ttl_seconds, given.clock)
    directory = Directory(
        store,
        l1,
        shared=shared,
        shared_ttl=config.cache_ttl,
        codec=TenantCodec(signing_keys),
        owner=owner,
        announcer=announcer,
    )
    follower = ChangeFollower(store, directory, config.invalidation_poll_seconds)
    listener = None
    if bus is not None and announcer is not None:
        listener = ChangeListener(bus, directory, follower, origin=announcer.origin)
    products = [store, signing_keys, shared, bus, isolation, limiter, *_members(resolver)]
    products += [*installed, *sinks]
    return Parts(
        resolver=resolver,
        raw_header=getattr(resolver, "raw_header", None),
        store=store,
        directory=directory,
        follower=follower,
        bus=bus,
        listener=listener,
        isolation=isolation,
        limiter=limiter,
        observers=observers,
        observed=bool(installed),
        audit=audit,
        trail=AuditTrail(owner=owner, store=store, log=audit, refusals=refusals, signer=signer),
        audit_worker=AuditWorker(audit.outbox, refusals, config.invalidation_poll_seconds),
        tenants=TenantService(
            config=config,
            store=store,
            isolation=isolation,
            directory=directory,
            audit=audit,
            observers=observers,
            cipher=cipher,
        ),
        connections=budget,
        signing=signing_keys,
        cipher=cipher,
        # Once, also where one object is two things.
        resources=tuple(
            {id(part): part for part in products if hasattr(part, "__aenter__")}.values()
        ),
    )


def require_arguments(config: object, metadata: object, membership: object) -> None:
    """Refuse what ``Tenancy`` cannot work with, before anything is built.

    Raises:
        ConfigurationError: The settings are none, the tables are none, or the hook cannot be
            awaited.
    """
    if not isinstance(config, TenancyConfig):
        raise ConfigurationError(
            f"Tenancy takes a TenancyConfig, and this is a {type(config).__name__}. Write "
            "Tenancy(TenancyConfig.from_env()), or Tenancy(TenancyConfig(database_url=…))."
        )
    if metadata is not None and not _is_metadata(metadata):
        raise ConfigurationError(f"metadata= is {_instead_of_metadata(metadata)}.")
    if membership is None:
        return
    flaw = flaw_of_function(membership, "connection", "tenant", "claim")
    if flaw is not None:
        raise ConfigurationError(
            f"What is passed to Tenancy(membership=…) {flaw}. It is: "
            "async def is_member(connection, tenant, claim) -> bool."
        )


def _is_metadata(given: object) -> bool:
    # By what it can do: SQLAlchemy is imported where it is used. Of its class, because it would
    # sort the tables, with warnings, to answer for itself.
    return hasattr(type(given), "sorted_tables")


def _instead_of_metadata(given: object) -> str:
    """Return what was given where a MetaData is meant, and what to pass."""
    within = _is_metadata(getattr(given, "metadata", None))
    if isinstance(given, type):
        # Not called a DeclarativeBase: a model, or a base made in the older way, may be meant.
        way_out = f"{given.__name__}.metadata" if within else "a sqlalchemy.MetaData"
        return f"the class {given.__name__}; pass {way_out}"
    way_out = "its .metadata" if within else "a sqlalchemy.MetaData, such as Base.metadata"
    return f"a {type(given).__name__}; pass {way_out}"


def _product(kind: str, offer: Offer, context: BuildContext) -> Any:  # noqa: ANN401 - of that kind
    provider = offer.provider
    what = f"The {kind} {provider.name!r} of {offer.owner}"
    way_out = f"Upgrade {offer.owner}, or report it to its authors."
    settings = _settings(offer, context, what, way_out)
    if not accepts(provider.build, context, settings):
        raise ConfigurationError(
            f"{what} has a build that cannot be called as build(context, section). {way_out}"
        )
    try:
        product = provider.build(context, settings)
    except TenancyError:
        raise
    except ModuleNotFoundError as error:
        package = EXTRAS.get((kind, provider.name), f"--upgrade {offer.owner}")
        if kind == kinds.STORE and offer.owner == kinds.CORE:
            # It runs on whatever driver the URL names; a database package brings that.
            config = context.config
            what = f"{config.control_setting} is a {config.control_dialect} database and"
            package = f"--upgrade {DATABASES.get(config.control_dialect, offer.owner)}"
        missing = "a package that" if error.name is None else f"the package {error.name!r}, which"
        raise ConfigurationError(
            f"{what} needs {missing} is not installed. Run: pip install {package}"
        ) from error
    except ImportError as error:
        other = "a package" if error.name is None else f"the package {error.name!r}"
        raise ConfigurationError(
            f"{what} needs another version of {other}: what it imports is not in this one. "
            f"Run: pip install --upgrade {offer.owner}"
        ) from error
    except Exception as error:
        # Its text is left to the traceback: a driver may have put a URL into it.
        raise ConfigurationError(
            f"{what} could not be built: it raised {type(error).__name__}, which the traceback "
            f"shows. Correct what it names, or upgrade {offer.owner}."
        ) from error
    if inspect.iscoroutine(product):
        product.close()
        raise ConfigurationError(
            f"{what} has a build that is async def; it is a plain def, which is called at "
            f"start-up, without a loop. {way_out}"
        )
    if product is None:
        raise ConfigurationError(f"{what} is None: its build returned nothing. {way_out}")
    _require_protocol(kind, product, what, way_out)
    return product


def _settings(offer: Offer, context: BuildContext, what: str, way_out: str) -> Any:  # noqa: ANN401 - of its model
    section = offer.provider.section
    try:
        return None if section is None else context.config.section(section.name, section.model)
    except TenancyError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"{what} could not read its settings: its model raised {type(error).__name__}, and a "
            f"validator raises ValueError. {way_out}"
        ) from error


def _require_protocols(given: Given) -> None:
    objects: list[tuple[str, object, str]] = [
        (kinds.RESOLVER, given.resolver, "resolver"),
        (kinds.ISOLATION, given.isolation, "isolation"),
        (kinds.STORE, given.store, "store"),
        (kinds.CACHE, given.cache_backend, "cache_backend"),
        (kinds.BUS, given.invalidation_bus, "invalidation_bus"),
        (kinds.LIMITER, given.rate_limiter, "rate_limiter"),
        *((kinds.OBSERVER, observer, "observers") for observer in given.observers),
        *((kinds.AUDIT_SINK, sink, "audit_sinks") for sink in given.audit_sinks),
    ]
    for kind, part, argument in objects:
        if part is not None:
            _require_protocol(
                kind,
                part,
                f"What is passed to Tenancy({argument}=…)",
                f"Pass an object like tenancy_core.contract.{_PROTOCOLS[kind].__name__}.",
            )


def _require_protocol(kind: str, product: object, what: str, way_out: str) -> None:
    """Refuse what would fail at the first request. Methods only, which isinstance knows less of."""
    if isinstance(product, type):
        raise ConfigurationError(
            f"{what} is the class {product.__name__}, not an object. {way_out}"
        )
    for name, method in vars(_PROTOCOLS[kind]).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        flaw = flaw_of_method(getattr(product, name, None), name, method)
        if flaw is not None:
            raise ConfigurationError(f"{what} is a {type(product).__name__} {flaw}. {way_out}")


def _bus(
    config: TenancyConfig, given: Given, registry: Registry, context: BuildContext
) -> InvalidationBus | None:
    name = config.invalidation_bus
    if given.invalidation_bus is not None:
        if name == NO_BUS:
            raise ConfigurationError(
                "An invalidation bus is passed, and TENANCY_INVALIDATION_BUS is 'none'. Leave one "
                "of the two out."
            )
        return given.invalidation_bus
    if name is None and given.store is None:
        name = _BUSES.get(config.control_dialect, NO_BUS)
        if name not in registry.names(kinds.BUS):
            return None
    if name is None or name == NO_BUS:
        return None
    offer = registry.find(kinds.BUS, name, "TENANCY_INVALIDATION_BUS")
    bus: InvalidationBus = _product(kinds.BUS, offer, context)
    return bus


def _resolver(
    config: TenancyConfig, given: Given, registry: Registry, context: BuildContext
) -> Resolver:
    names = config.resolution_strategy
    if given.resolver is not None and CUSTOM not in names:
        if "resolution_strategy" in config.model_fields_set:
            raise ConfigurationError(
                "A resolver object is passed, and TENANCY_RESOLUTION_STRATEGY is "
                f"{','.join(names)!r}. Add 'custom' to it where the object belongs, or leave one "
                "of the two out."
            )
        names = (CUSTOM,)
    resolvers = [_one_resolver(name, given, registry, context) for name in names]
    if len(resolvers) == 1:
        return resolvers[0]
    return ChainResolver(resolvers, reject_conflicts=config.on_resolver_conflict == "reject")


def _one_resolver(name: str, given: Given, registry: Registry, context: BuildContext) -> Resolver:
    if name == CUSTOM and given.resolver is not None and CUSTOM in registry.names(kinds.RESOLVER):
        raise ConfigurationError(
            "A resolver object is passed, and "
            f"{registry.find(kinds.RESOLVER, CUSTOM, '').owner} registers a resolver 'custom' too. "
            "Leave one of the two out."
        )
    if name == CUSTOM and CUSTOM not in registry.names(kinds.RESOLVER):
        if given.resolver is None:
            raise ConfigurationError(
                "TENANCY_RESOLUTION_STRATEGY asks for the resolver 'custom', and there is none: "
                "pass an object, Tenancy(config, resolver=…), or install a package that registers "
                "one. There is "
                f"{', '.join(map(repr, registry.names(kinds.RESOLVER)))}."
            )
        return GuardedResolver(type(given.resolver).__name__, given.resolver)
    offer = registry.find(kinds.RESOLVER, name, "TENANCY_RESOLUTION_STRATEGY")
    resolver: Resolver = _product(kinds.RESOLVER, offer, context)
    return resolver if offer.owner == kinds.CORE else GuardedResolver(name, resolver)


def _members(resolver: Any) -> list[Any]:  # noqa: ANN401 - a resolver, a chain or a guard
    if isinstance(resolver, ChainResolver):
        return [inner for part in resolver.resolvers for inner in _members(part)]
    return [resolver.inner if isinstance(resolver, GuardedResolver) else resolver]


def _report_unread(config: TenancyConfig, registry: Registry) -> None:
    for name in config.sections:
        if name not in registry.sections:
            meant = near_miss(name, registry.sections)
            raise ConfigurationError(
                f"sections= has settings for {name!r}, which no installed plugin reads. There is "
                f"{', '.join(registry.sections) or 'none'}."
                + (f" Did you mean {meant!r}?" if meant else "")
            )
    environment = config.environment
    flat = config.variables()
    known = flat | set(registry.section_variables(flat))
    lines = [
        f"{name} is set and read by nothing."
        + (f" Did you mean {meant}?" if meant else " Remove it, or install what reads it.")
        for name, meant in environment.unread(known).items()
    ]
    if environment.flag("TENANCY_STRICT_ENV") and lines:
        raise ConfigurationError("\n".join(lines))
    for line in lines:
        _log.warning("%s", line)
