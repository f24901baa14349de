"""The reference says what the code says, both ways."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from support.server import ROOT
from tenancy_core import TenancyConfig, errors, hookspecs
from tenancy_core._plugins import load_plugins
from tenancy_core.asgi import ANSWERED, render
from tenancy_core.config import Plan
from tenancy_core.config._environment import _RESERVED, _RESERVED_PREFIX
from tenancy_core.config._later import LATER
from tenancy_core.contract import Severity
from tenancy_core.errors import ConfigurationError, RequestRefused, TenancyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

REFERENCE = ROOT / "docs" / "reference"
NOTHING = "—"


def page(name: str) -> str:
    return (REFERENCE / name).read_text()


def section(text: str, title: str) -> str:
    """Return what stands under a heading, its deeper headings included."""
    heading = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert heading is not None, f"there is no heading {title!r}"
    rest = text[heading.end() :]
    following = re.search(rf"^#{{1,{len(heading[1])}}} ", rest, re.MULTILINE)
    return rest[: following.start()] if following else rest


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables in a text, without their headings."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if set(line) <= set("|-: "):
            found.pop()  # the heading above the rule
        else:
            found.append([cell.strip("| ") for cell in cells])
    return found


def code(cell: str) -> str:
    match = re.fullmatch(r"`([^`]*)`", cell)
    assert match is not None, f"{cell!r} is not one piece of code"
    return match[1]


# -- settings --------------------------------------------------------------------------------------

DESIGNED = frozenset(
    re.findall(
        r"\w+",
        """
database_url control_database_url resolution_strategy isolation_strategy excluded_paths
database_pool_size database_max_overflow database_pool_timeout database_pool_recycle
database_pool_pre_ping database_echo max_cached_engines database_url_template
max_database_connections
tenant_header_name domain_suffix path_prefix trusted_proxies require_verified_tenant
on_resolver_conflict
jwt_secret jwt_algorithms jwt_tenant_claim jwt_audience jwt_issuer jwt_jwks_url jwt_issuers
jwt_types jwt_max_lifetime jwt_leeway
schema_prefix rls_setting standard_isolation_strategy premium_isolation_strategy premium_plans
premium_tenants
redis_url cache_backend cache_enabled cache_ttl l1_cache_max_size l1_cache_ttl_seconds
invalidation_poll_seconds invalidation_bus
enable_rate_limiting rate_limit_per_minute rate_limit_window_seconds rate_limit_burst
rate_limit_fail_closed rate_limiter plans
enable_audit_logging enable_encryption encryption_keys signing_keys
enable_soft_delete archive_retention_days max_tenants
enable_metrics enable_query_logging slow_query_threshold_ms log_level
""",
    )
)
"""The flat settings of the house plan. They are an interface: none may go away unnoticed."""


def settings() -> list[list[str]]:
    text = page("settings.md")
    return rows(text[: text.index("## Sections")])


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return NOTHING
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_the_page_and_the_code_have_the_same_settings_in_the_same_order() -> None:
    assert [code(row[0]) for row in settings()] == list(TenancyConfig.FLAT)


def test_every_designed_setting_is_on_the_page() -> None:
    assert DESIGNED - {code(row[0]) for row in settings()} == set()


@pytest.mark.parametrize("row", settings(), ids=lambda row: code(row[0]))
def test_a_setting_is_described_as_it_is(row: list[str]) -> None:
    name, variable, default, meaning = row
    field = TenancyConfig.model_fields[code(name)]
    assert code(variable) == f"TENANCY_{code(name).upper()}"
    assert default == default_of(field)
    assert meaning.endswith(".")
    assert ("**Not in this version.**" in meaning) == (code(name) in LATER)


@pytest.mark.parametrize("name", sorted(LATER))
def test_a_setting_that_is_not_in_this_version_is_refused(name: str) -> None:
    value = TenancyConfig.model_fields[name].get_default(call_default_factory=True)
    with pytest.raises(ConfigurationError, match=f"TENANCY_{name.upper()} is set"):
        TenancyConfig(**{"database_url": "sqlite+aiosqlite:///a.db", name: value})


def test_the_page_lists_the_secrets() -> None:
    variables = {
        f"TENANCY_{name.upper()}_FILE"
        for line in page("settings.md").splitlines()
        if line.startswith("- A secret can be in a file")
        for name in re.findall(r"`([a-z_]+)`", line)
    }
    flat = {f"TENANCY_{name.upper()}" for name in TenancyConfig.FLAT}
    assert variables == TenancyConfig.variables() - flat


def test_the_page_names_all_that_a_plan_can_say() -> None:
    (meaning,) = [row[3] for row in settings() if code(row[0]) == "plans"]
    (example,) = re.findall(r"`(\{.*?\}\})`", meaning)
    config = TenancyConfig(database_url="sqlite+aiosqlite:///a.db", plans=example)
    assert config.plans["pro"].model_fields_set == set(Plan.model_fields)


def test_the_page_has_every_section() -> None:
    text = section(page("settings.md"), "Sections")
    sections = {known.name: (known, owner) for known, owner in load_plugins()._sections.values()}
    headings = dict(re.findall(r"^### (\S+) \((\S+)\)$", text, re.MULTILINE))
    assert headings == {name: owner for name, (_, owner) in sections.items()}
    for name, owner in headings.items():
        model = sections[name][0].model
        described = rows(section(text, f"{name} ({owner})"))
        assert [code(row[0]) for row in described] == list(model.model_fields)
        for field, variable, default, _ in described:
            assert code(variable) == f"TENANCY_{name.upper()}_{code(field).upper()}"
            assert default == default_of(model.model_fields[code(field)])


def test_the_page_has_every_reserved_variable() -> None:
    reserved = {code(row[0]) for row in rows(section(page("settings.md"), "Reserved"))}
    assert reserved == {*_RESERVED, f"{_RESERVED_PREFIX}*"}


# -- errors ----------------------------------------------------------------------------------------


def all_errors() -> dict[str, type[TenancyError]]:
    found: dict[str, type[TenancyError]] = {}

    def walk(kind: type[TenancyError]) -> Iterator[type[TenancyError]]:
        yield kind
        for part in kind.__subclasses__():
            if part.__module__ == errors.__name__:
                yield from walk(part)

    for kind in walk(TenancyError):
        found[kind.__name__] = kind
    return found


ERRORS = all_errors()


def documented_errors() -> list[list[str]]:
    return rows(page("errors.md"))


def test_every_error_is_on_the_page_and_nothing_else() -> None:
    assert {code(row[0]) for row in documented_errors()} == set(ERRORS)
    assert len(documented_errors()) == len(ERRORS)
    assert set(errors.__all__) <= set(ERRORS)


@pytest.mark.parametrize("row", documented_errors(), ids=lambda row: code(row[0]))
def test_an_error_is_described_as_it_is(row: list[str]) -> None:
    name, base, its_code, status, _ = row
    kind = ERRORS[code(name)]
    assert code(its_code) == kind.code
    assert re.findall(r"`(\w+)`", base) == [b.__name__ for b in kind.__bases__]
    assert status == http_status(kind)


def http_status(kind: type[TenancyError]) -> str:
    """What a client sees when the middleware, or a path operation of FastAPI, raises it."""
    if issubclass(kind, ConfigurationError):
        return NOTHING
    return str(render(kind()).status) if issubclass(kind, ANSWERED) else "500"


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in ERRORS.values()}) == len(ERRORS)


# -- HTTP ------------------------------------------------------------------------------------------


def refusals() -> dict[str, str]:
    """Code → status of everything that is answered."""
    found: dict[str, str] = {}
    for kind in ERRORS.values():
        if kind is RequestRefused or not issubclass(kind, ANSWERED):
            continue
        answer = render(kind())
        match = re.search(rb'"code":"([a-z_]+)"', answer.body)
        assert match is not None
        found[match[1].decode()] = str(answer.status)
    return found


def test_the_page_has_every_outcome() -> None:
    table = rows(section(page("http.md"), "Refusals"))
    assert {code(row[1]): row[0] for row in table} == refusals()


def test_the_page_shows_a_refusal_as_it_is() -> None:
    shown = re.search(r"```json\n(.*?)\n```", page("http.md"), re.DOTALL)
    assert shown is not None
    assert shown[1].encode() == render(errors.TenantNotFound()).body


@pytest.mark.parametrize(
    "row", rows(section(page("http.md"), "Headers")), ids=lambda row: code(row[0])
)
def test_a_header_is_there_when_the_page_says_so(row: list[str]) -> None:
    name, when, value = row
    limited = errors.RateLimitExceeded(retry_after=7.2, limit=100, window=60)
    given = {
        "all": errors.TenantNotFound(),
        "401": errors.InvalidCredentials(),
        "429": limited,
        "429, 503": limited,
    }
    assert set(when.split(", ")) <= {"all", "401", "429", "503"}
    headers = {key.decode(): value.decode() for key, value in render(given[when]).headers}
    assert headers[code(name).lower()] == code(value)
    if when != "all":
        others = render(errors.TenantNotFound()).headers
        assert code(name).lower().encode() not in dict(others)


# -- hooks -----------------------------------------------------------------------------------------


def test_the_page_has_every_hook() -> None:
    specified = [name for name, value in vars(hookspecs).items() if hasattr(value, "tenancy_spec")]
    assert specified
    assert [code(row[0]) for row in rows(section(page("hooks.md"), "Hooks"))] == specified


def test_the_page_names_the_hook_api() -> None:
    assert f"`TENANCY_HOOK_API = {hookspecs.HOOK_API}`" in page("hooks.md")


def test_the_page_lists_what_is_built_in() -> None:
    offered = {
        kind: {offer.provider.name for offer in table.values()}
        for kind, table in load_plugins()._offers.items()
    }
    shown = {
        row[0]: set(re.findall(r"`([a-z-]+)`", row[1]))
        for row in rows(section(page("hooks.md"), "What is there already"))
    }
    assert shown == offered


# -- checks ----------------------------------------------------------------------------------------


def test_the_page_has_every_check() -> None:
    installed = [check.name for check, _ in load_plugins().checks]
    table = rows(page("checks.md"))
    assert sorted(code(row[0]) for row in table) == sorted(installed)
    for _, severity, _ in table:
        assert set(severity.split(", ")) <= {*Severity}
