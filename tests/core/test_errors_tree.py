"""The errors form the tree of design §7; programs go by code and class, never by text."""

from __future__ import annotations

import inspect

import pytest

from tenancy_core import errors
from tenancy_core.errors import (
    ConfigurationError,
    IsolationError,
    NoCurrentTenant,
    RequestRefused,
    TenancyError,
)

TREE: dict[type[Exception], set[str]] = {
    TenancyError: {
        "ConfigurationError",
        "RequestRefused",
        "NoCurrentTenant",
        "IsolationError",
        "DecryptionError",
        "ResolverError",
        "BackendUnavailable",
    },
    ConfigurationError: {
        "PluginLoadError",
        "DuplicateProviderError",
        "UnknownProviderError",
        "UnsupportedCombinationError",
        "UnsafeRoleError",
    },
    RequestRefused: {
        "TenantNotIdentified",
        "InvalidIdentifier",
        "InvalidCredentials",
        "TenantMismatch",
        "TenantInactive",
        "TenantNotFound",
        "RateLimitExceeded",
    },
    IsolationError: {
        "CrossTenantWrite",
        "TenantContextLocked",
        "CommitUnknown",
        "IdentifierCollision",
        "AlreadyProvisioning",
    },
}
ALL = [item for _, item in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("parent", TREE)
def test_the_errors_of_the_design_stand_where_it_puts_them(parent: type[Exception]) -> None:
    children = {item.__name__ for item in ALL if parent in item.__bases__}
    assert children >= TREE[parent]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("TenantNotIdentified", 400),
        ("InvalidIdentifier", 400),
        ("InvalidCredentials", 401),
        ("TenantMismatch", 403),
        ("TenantInactive", 403),
        ("TenantNotFound", 404),
        ("RateLimitExceeded", 429),
    ],
)
def test_a_refusal_has_the_status_of_the_design(name: str, status: int) -> None:
    assert getattr(errors, name).status == status


def test_every_error_is_a_tenancy_error_with_a_code_of_its_own() -> None:
    codes = [item.code for item in ALL]
    assert all(issubclass(item, TenancyError) for item in ALL)
    assert len(set(codes)) == len(codes)
    assert all("code" in vars(item) for item in ALL)


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(NoCurrentTenant, RuntimeError)
    assert issubclass(errors.TenantNotFound, LookupError)
    assert issubclass(errors.InvalidIdentifier, ValueError)


def test_what_is_public_is_all_there_is() -> None:
    assert {item.__name__ for item in ALL} == set(errors.__all__)


def test_a_refusal_tells_its_title_unless_it_has_something_to_say() -> None:
    assert str(errors.TenantNotFound()) == "There is no such tenant."
    told = errors.RateLimitExceeded("slow down", retry_after=2.5, limit=10, window=60.0)
    assert (str(told), told.detail, told.retry_after) == ("slow down", "slow down", 2.5)
    assert (told.limit, told.window) == (10, 60.0)
