"""``TenancyConfig.from_env``: where settings come from, who wins, and what a mistake is told."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, SecretStr

from support.plugins import distribution
from tenancy_core import ConfigurationError, Tenancy, TenancyConfig
from tenancy_core.config import Plan, secret_settings
from tenancy_core.config._later import LATER
from tenancy_core.errors import DuplicateProviderError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

URL = "sqlite+aiosqlite:///./data/control.db"
OTHER = "sqlite+aiosqlite:///./other/control.db"


@pytest.fixture
def setenv(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set ``TENANCY_*`` variables."""

    def set_all(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"TENANCY_{name.upper()}", str(value))

    return set_all


def refusal(**overrides: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig.from_env(**overrides)
    return str(caught.value)


# -- who wins ----------------------------------------------------------------------------------


def test_the_constructor_reads_its_arguments_and_nothing_else(
    setenv: Callable[..., None], tmp_path: Path
) -> None:
    setenv(database_url=OTHER, rate_limit_per_minute=1, log_level="ERROR")
    (tmp_path / ".env").write_text("TENANCY_CACHE_TTL=1\nTENANCY_DATABASE_ECHO=true\n")
    config = TenancyConfig(database_url=URL)
    assert config.model_fields_set == {"database_url"}
    assert config.database_url.get_secret_value() == URL
    assert (config.rate_limit_per_minute, config.cache_ttl) == (100, 3600)
    assert config.environment.get("TENANCY_RATE_LIMIT_PER_MINUTE") is None


def test_an_argument_wins_over_the_environment_and_that_over_the_file(
    setenv: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        f"TENANCY_DATABASE_URL={URL}\nTENANCY_CACHE_TTL=1\nTENANCY_DATABASE_POOL_SIZE=1\n"
        "# a comment\nOTHER_PROGRAM=1\n"
    )
    setenv(database_pool_size=2, max_cached_engines=2)
    config = TenancyConfig.from_env(max_cached_engines=3)
    assert config.database_url.get_secret_value() == URL
    assert config.cache_ttl == 1
    assert config.database_pool_size == 2
    assert config.max_cached_engines == 3


def test_another_file_or_none_is_read_when_the_caller_says_so(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"TENANCY_DATABASE_URL={URL}\n")
    (tmp_path / "prod.env").write_text(f"TENANCY_DATABASE_URL={OTHER}\n")
    found = TenancyConfig.from_env(env_file=tmp_path / "prod.env")
    assert found.database_url.get_secret_value() == OTHER
    assert refusal(env_file=None).startswith("TENANCY_DATABASE_URL is missing.")


def test_names_of_variables_do_not_depend_on_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("tenancy_database_url", URL)
    assert TenancyConfig.from_env().database_url.get_secret_value() == URL


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"TENANCY_DATABASE_URL=\xff\xfe\n")
    assert refusal() == (
        "The file .env with settings cannot be read: it is not UTF-8. "
        "Correct it, or pass env_file=None to ignore it.\n"
    ).removesuffix("\n")


# -- forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["path,header", " path , header ,", '["path", "header"]', '[ "path","header" ]']
)
def test_a_list_is_separated_by_commas_or_is_json(setenv: Callable[..., None], text: str) -> None:
    setenv(database_url=URL, resolution_strategy=text)
    assert TenancyConfig.from_env().resolution_strategy == ("path", "header")


@pytest.mark.parametrize("text", ['["path"', "[path]"])
def test_a_list_that_is_neither_is_named(setenv: Callable[..., None], text: str) -> None:
    setenv(database_url=URL, resolution_strategy=text)
    assert refusal() == 'TENANCY_RESOLUTION_STRATEGY is no list; write a,b or ["a", "b"].'


def test_the_constructor_takes_lists_as_lists_too() -> None:
    config = TenancyConfig(database_url=URL, excluded_paths=["/health"])
    assert config.excluded_paths == ("/health",)


def test_plans_are_json(setenv: Callable[..., None]) -> None:
    setenv(database_url=URL, plans='{"pro": {"rate_limit_per_minute": 9, "rate_limit_burst": 3}}')
    assert TenancyConfig.from_env().plans == {
        "pro": Plan(rate_limit_per_minute=9, rate_limit_burst=3)
    }


@pytest.mark.parametrize(
    ("setting", "text", "sentence"),
    [
        (
            "plans",
            "pro",
            (
                "TENANCY_PLANS is no JSON object; write for instance "
                '{"pro": {"rate_limit_per_minute": 1000}}.'
            ),
        ),
        (
            "plans",
            '{"pro": {"rate_limit_per_minut": 9}}',
            (
                "TENANCY_PLANS, pro has no setting 'rate_limit_per_minut'. There is "
                "rate_limit_per_minute, rate_limit_burst, statement_timeout, lock_timeout, "
                "idle_timeout, weight, concurrency. Did you mean 'rate_limit_per_minute'?"
            ),
        ),
        (
            "plans",
            '{"pro": {"rate_limit_per_minute": 0}}',
            (
                "TENANCY_PLANS, pro, rate_limit_per_minute is not valid: Input should be greater "
                "than or equal to 1."
            ),
        ),
        (
            "plans",
            '{"pro": {"rate_limit_per_minute": 5, "rate_limit_burst": 9}}',
            (
                "TENANCY_RATE_LIMIT_BURST, or a plan's burst, does not fit its limit: A rate "
                "limit's burst is from 1 to count - 1."
            ),
        ),
        (
            "database_pool_size",
            "many",
            (
                "TENANCY_DATABASE_POOL_SIZE is not valid: Input should be a valid integer, unable "
                "to parse string as an integer."
            ),
        ),
        (
            "database_pool_size",
            "0",
            "TENANCY_DATABASE_POOL_SIZE is not valid: Input should be greater than or equal to 1.",
        ),
        (
            "database_pool_timeout",
            "inf",
            "TENANCY_DATABASE_POOL_TIMEOUT is not valid: Input should be a finite number.",
        ),
        (
            "database_echo",
            "maybe",
            (
                "TENANCY_DATABASE_ECHO is not valid: Input should be a valid boolean, unable to "
                "interpret input."
            ),
        ),
        (
            "on_resolver_conflict",
            "ask",
            "TENANCY_ON_RESOLVER_CONFLICT is not valid: Input should be 'reject' or 'first'.",
        ),
        (
            "trusted_proxies",
            "10.0.0.0/8,proxy.local",
            "TENANCY_TRUSTED_PROXIES names something that is no IP address and no network.",
        ),
        (
            "excluded_paths",
            "health",
            "TENANCY_EXCLUDED_PATHS holds something that is no path; write it like /health.",
        ),
        (
            "excluded_paths",
            "/health/../admin",
            (
                "TENANCY_EXCLUDED_PATHS holds a path with dots, escapes, wildcards or a query; "
                "write plain segments."
            ),
        ),
        (
            "tenant_header_name",
            "X_Tenant",
            "TENANCY_TENANT_HEADER_NAME is no header name; use letters, digits and hyphens.",
        ),
        (
            "tenant_header_name",
            "Host",
            "TENANCY_TENANT_HEADER_NAME is a header with another meaning; choose one of your own.",
        ),
        (
            "domain_suffix",
            ".Example.com",
            (
                "TENANCY_DOMAIN_SUFFIX is no domain; write it in lower case without dots at its "
                "ends: example.com."
            ),
        ),
        ("path_prefix", "/", "TENANCY_PATH_PREFIX is the root; name a segment: /tenants."),
        (
            "resolution_strategy",
            " , ",
            "TENANCY_RESOLUTION_STRATEGY names no resolver; write for instance: header.",
        ),
        (
            "resolution_strategy",
            "header,header",
            "TENANCY_RESOLUTION_STRATEGY names a resolver twice.",
        ),
        (
            "resolution_strategy",
            "subdomain",
            "TENANCY_DOMAIN_SUFFIX is missing: the subdomain resolver needs the base domain.",
        ),
        (
            "log_level",
            "loud",
            "TENANCY_LOG_LEVEL (or LOG_LEVEL) is none of CRITICAL, ERROR, WARNING, INFO, DEBUG.",
        ),
        (
            "control_database_url",
            "sqlite+aiosqlite://",
            (
                "TENANCY_CONTROL_DATABASE_URL names no file; the tenant store needs one that "
                "outlives a connection (sqlite+aiosqlite:///./data/control.db)."
            ),
        ),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_name_and_its_rule(
    setenv: Callable[..., None], setting: str, text: str, sentence: str
) -> None:
    setenv(**{"database_url": URL, setting: text})
    assert refusal() == sentence


def test_everything_that_is_wrong_is_told_at_once(setenv: Callable[..., None]) -> None:
    setenv(database_pool_size="x", cache_ttl="0")
    lines = refusal().splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == [
        "TENANCY_DATABASE_URL",
        "TENANCY_DATABASE_POOL_SIZE",
        "TENANCY_CACHE_TTL",
    ]


# -- frozen, and nothing beside ----------------------------------------------------------------


def test_a_configuration_cannot_be_changed() -> None:
    config = TenancyConfig(database_url=URL)
    for name in ("cache_ttl", "database_url", "surprise"):
        with pytest.raises(AttributeError) as caught:
            setattr(config, name, 1)
        assert str(caught.value) == "A TenancyConfig cannot be changed; make another one."


def test_an_unknown_argument_gets_a_near_miss() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig(database_url=URL, resolution_stratgy="header", zzz=1)
    assert str(caught.value) == (
        "There is no setting 'resolution_stratgy'. Did you mean 'resolution_strategy'?\n"
        "There is no setting 'zzz'."
    )


# -- secrets from files ------------------------------------------------------------------------

SECRETS = {
    "database_url",
    "control_database_url",
    "database_url_template",
    "jwt_secret",
    "jwt_issuers",
    "redis_url",
    "encryption_keys",
    "signing_keys",
}


def test_these_settings_are_secret() -> None:
    assert secret_settings(TenancyConfig) == SECRETS
    assert {name for name in TenancyConfig.variables() if name.endswith("_FILE")} == {
        f"TENANCY_{name.upper()}_FILE" for name in SECRETS
    }


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("name", ["database_url", "control_database_url"])
def test_a_secret_is_read_from_the_file_that_its_variable_names(
    setenv: Callable[..., None], tmp_path: Path, name: str, end: str
) -> None:
    (tmp_path / "secret").write_text(OTHER + end, newline="")
    setenv(**{f"{name}_file": tmp_path / "secret"})
    config = TenancyConfig.from_env(**({} if name == "database_url" else {"database_url": URL}))
    assert getattr(config, name).get_secret_value() == OTHER


@pytest.mark.parametrize("name", sorted(SECRETS & set(LATER)))
def test_a_secret_of_a_later_feature_counts_as_set_when_it_comes_from_a_file(
    setenv: Callable[..., None], tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("s" * 40)
    setenv(database_url=URL, **{f"{name}_file": tmp_path / "secret"})
    assert refusal().startswith(f"TENANCY_{name.upper()} is set, and ")


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_and_its_file_are_never_both_set(
    setenv: Callable[..., None], tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text(URL)
    setenv(**{"database_url": URL, name: URL, f"{name}_file": tmp_path / "secret"})
    assert refusal() == (
        f"TENANCY_{name.upper()} and TENANCY_{name.upper()}_FILE are both set. Remove one of them."
    )


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_whose_file_cannot_be_read_is_named_and_its_path_is_not(
    setenv: Callable[..., None], tmp_path: Path, name: str
) -> None:
    if name != "database_url":
        setenv(database_url=URL)
    setenv(**{f"{name}_file": tmp_path / "canary"})
    said = f"The file that TENANCY_{name.upper()}_FILE names cannot be read"
    assert refusal() == f"{said}: No such file or directory."
    (tmp_path / "canary").write_bytes(b"canary\xff")
    assert refusal() == f"{said}: it is not UTF-8."


def test_an_argument_makes_the_file_unnecessary(setenv: Callable[..., None]) -> None:
    setenv(database_url_file="/nowhere")
    assert TenancyConfig.from_env(database_url=URL).database_url.get_secret_value() == URL


def test_what_is_no_secret_is_not_read_from_a_file(
    setenv: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("9")
    setenv(database_url=URL, cache_ttl_file=tmp_path / "file")
    config = TenancyConfig.from_env()
    assert config.cache_ttl == 3600
    Tenancy(config)
    assert "TENANCY_CACHE_TTL_FILE is set and read by nothing. " in caplog.text


# -- variables that nobody reads ---------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_misspelt_variable_is_reported_with_what_was_meant(
    setenv: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    setenv(database_url=URL, resolution_stratgy="path", quantum="1")
    Tenancy(TenancyConfig.from_env())
    assert warnings(caplog) == [
        "TENANCY_QUANTUM is set and read by nothing. Remove it, or install what reads it.",
        (
            "TENANCY_RESOLUTION_STRATGY is set and read by nothing. Did you mean "
            "TENANCY_RESOLUTION_STRATEGY?"
        ),
    ]


def test_a_misspelt_variable_is_an_error_where_the_environment_is_strict(
    setenv: Callable[..., None],
) -> None:
    setenv(database_url=URL, resolution_stratgy="path", strict_env="true")
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(TenancyConfig.from_env())
    assert str(caught.value) == (
        "TENANCY_RESOLUTION_STRATGY is set and read by nothing. Did you mean "
        "TENANCY_RESOLUTION_STRATEGY?"
    )


def test_a_misspelt_variable_in_the_file_is_reported_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text(f"TENANCY_DATABASE_URL={URL}\nTENANCY_CACHE_TLL=1\nFOREIGN=1\n")
    Tenancy(TenancyConfig.from_env())
    assert warnings(caplog) == [
        "TENANCY_CACHE_TLL is set and read by nothing. Did you mean TENANCY_CACHE_TTL?"
    ]


def test_strictness_itself_is_true_or_false_and_nothing_else(setenv: Callable[..., None]) -> None:
    setenv(database_url=URL, strict_env="perhaps")
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(TenancyConfig.from_env())
    assert str(caught.value) == "TENANCY_STRICT_ENV is neither true nor false."


def test_reserved_variables_and_those_of_tests_are_read_by_others(
    setenv: Callable[..., None],
) -> None:
    setenv(
        database_url=URL,
        strict_env="true",
        app="app:app",
        plugins_blocked="acme-plugin",
        test_postgres_url="postgresql://localhost",
        sqlite_root="./tenants",
    )
    Tenancy(TenancyConfig.from_env())


def test_a_constructed_configuration_reports_nothing(
    setenv: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    setenv(databse_url=URL, strict_env="true")
    Tenancy(TenancyConfig(database_url=URL))
    assert warnings(caplog) == []


# -- sections of plugins -----------------------------------------------------------------------


def test_a_section_is_read_from_its_variables_and_given_values_win(
    setenv: Callable[..., None], tmp_path: Path
) -> None:
    class Section(BaseModel):
        root: str = "here"
        size: int = 1
        password: SecretStr | None = None

    (tmp_path / "password").write_text("from the file\n")
    setenv(database_url=URL, acme_size=7, acme_root="there", acme_password_file="password")
    config = TenancyConfig.from_env(sections={"acme": {"root": "given"}})
    found = config.section("acme", Section)
    assert (found.root, found.size) == ("given", 7)
    assert found.password is not None
    assert found.password.get_secret_value() == "from the file"


def test_a_section_s_mistakes_are_told_like_the_flat_ones(setenv: Callable[..., None]) -> None:
    setenv(database_url=URL, sqlite_synchronous="off")
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(TenancyConfig.from_env())
    assert str(caught.value) == (
        "TENANCY_SQLITE_SYNCHRONOUS is not valid: Input should be 'full' or 'normal'."
    )


def test_a_section_s_secret_and_its_file_are_never_both_set(setenv: Callable[..., None]) -> None:
    class Section(BaseModel):
        password: SecretStr

    setenv(database_url=URL, acme_password="a", acme_password_file="b")
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig.from_env().section("acme", Section)
    assert str(caught.value) == (
        "TENANCY_ACME_PASSWORD and TENANCY_ACME_PASSWORD_FILE are both set. Remove one of them."
    )


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"sqlite": {"rot": "x"}},
            (
                "The section 'sqlite' has no setting 'rot'; it has root, synchronous. Did you mean "
                "'root'?"
            ),
        ),
        (
            {"sqllite": {"root": "x"}},
            (
                "sections= has settings for 'sqllite', which no installed plugin reads. There is "
                "postgres, sqlite. Did you mean 'sqlite'?"
            ),
        ),
    ],
)
def test_a_section_or_setting_that_nothing_reads_is_refused(
    sections: dict[str, dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(TenancyConfig(database_url=URL, sections=sections))
    assert str(caught.value) == sentence


def test_a_misspelt_variable_of_a_section_is_reported(
    setenv: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    setenv(database_url=URL, sqlite_rooot="x")
    Tenancy(TenancyConfig.from_env())
    assert warnings(caplog) == [
        "TENANCY_SQLITE_ROOOT is set and read by nothing. Did you mean TENANCY_SQLITE_ROOT?"
    ]


SECTION = """
    from pydantic import BaseModel, SecretStr
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider, Section

    class Settings(BaseModel):
        {field}: {kind} = None

    class Resolver:
        async def resolve(self, connection, /):
            return None

    @hookimpl
    def tenancy_resolvers():
        section = Section("{section}", Settings)
        return [Provider("{provider}", lambda context, section: Resolver(), section=section)]
"""


@pytest.mark.parametrize(
    ("section", "field", "kind", "variable"),
    [
        ("cache", "ttl", "str", "TENANCY_CACHE_TTL"),
        ("database", "url", "SecretStr", "TENANCY_DATABASE_URL"),
        ("redis", "url_file", "str", "TENANCY_REDIS_URL_FILE"),
        ("strict", "env", "str", "TENANCY_STRICT_ENV"),
        ("test", "root", "str", "TENANCY_TEST_ROOT"),
    ],
)
def test_a_section_whose_variable_is_a_flat_one_is_a_clash(
    site: Path, section: str, field: str, kind: str, variable: str
) -> None:
    source = SECTION.format(section=section, field=field, kind=kind, provider="acme")
    distribution(site, "acme-plugin", source)
    with pytest.raises(DuplicateProviderError) as caught:
        Tenancy(TenancyConfig(database_url=URL))
    assert str(caught.value) == (
        f"acme-plugin calls a setting {variable}, which is a setting of tenancy-core. "
        "Block the plugin: TENANCY_PLUGINS_BLOCKED=acme-plugin."
    )


def test_a_section_s_secret_file_is_a_variable_that_is_read(
    site: Path, tmp_path: Path, setenv: Callable[..., None]
) -> None:
    source = SECTION.format(section="acme", field="password", kind="SecretStr", provider="acme")
    distribution(site, "acme-plugin", source)
    (tmp_path / "password").write_text("secret")
    setenv(database_url=URL, strict_env="true", acme_password_file="password")
    Tenancy(TenancyConfig.from_env())


def test_two_sections_with_one_variable_are_a_clash(site: Path) -> None:
    one = SECTION.format(section="acme", field="file_root", kind="str", provider="one")
    two = SECTION.format(section="acme_file", field="root", kind="str", provider="two")
    distribution(site, "acme-one", one)
    distribution(site, "acme-two", two)
    with pytest.raises(DuplicateProviderError) as caught:
        Tenancy(TenancyConfig(database_url=URL))
    assert str(caught.value) == (
        "acme-two calls a setting TENANCY_ACME_FILE_ROOT, which is a setting of acme-one. "
        "Block the plugin: TENANCY_PLUGINS_BLOCKED=acme-two."
    )


def test_two_distributions_with_one_section_are_a_clash(site: Path) -> None:
    for name in ("one", "two"):
        source = SECTION.format(section="acme", field="root", kind="str", provider=name)
        distribution(site, f"acme-{name}", source)
    with pytest.raises(DuplicateProviderError) as caught:
        Tenancy(TenancyConfig(database_url=URL))
    assert str(caught.value) == (
        "The settings section 'acme' is used by acme-one and by acme-two. "
        "Uninstall one of them, or block it: TENANCY_PLUGINS_BLOCKED=acme-two."
    )
