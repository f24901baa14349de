"""The name of the setting that row policies compare with: a name of one's own, in two parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig


@pytest.mark.parametrize("name", ["app.tenant_id", "_.x", "shop2.customer_1", "a" * 63 + "." + "b"])
def test_a_name_of_ones_own_is_taken(make_config: Callable[..., TenancyConfig], name: str) -> None:
    assert make_config(rls_setting=name).rls_setting == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "app", "app.", ".tenant", "app.tenant.id", "App.tenant", "app.tenant-id"),
        *("app.1st", "1app.tenant", "app tenant.id", "app.tenant\n", "app.ténant", "app.a'b"),
        *("search_path", "a" * 64 + ".b", "a." + "b" * 64),
    ],
)
def test_anything_else_is_refused(make_config: Callable[..., TenancyConfig], name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"RLS_SETTING is no name.*like app\.tenant_id"):
        make_config(rls_setting=name)


@pytest.mark.parametrize(
    "name", ["pg_catalog.x", "pg_stat_statements.track", "plpgsql.x", "tenancy.committed"]
)
def test_names_that_are_somebody_elses_are_refused(
    make_config: Callable[..., TenancyConfig], name: str
) -> None:
    with pytest.raises(ConfigurationError, match="which is reserved; start with a word of your"):
        make_config(rls_setting=name)
