"""S1, S2: a secret is never printed, whatever is done with the object that holds it."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, SecretStr
from sqlalchemy import URL, make_url

from support.notes import Base, read
from support.printing import printed as tracked
from tenancy_core import ConfigurationError, Tenancy, TenancyConfig, TenancyMiddleware
from tenancy_core.config._later import LATER
from tenancy_core.config._model import secret_settings
from tenancy_core.config._urls import require_async_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = "canary-4f1d9c"
URL_WITH_CANARY = f"postgresql+asyncpg://app:{CANARY}@db.example/app"
SECRETS: dict[str, Any] = dict.fromkeys(secret_settings(TenancyConfig), URL_WITH_CANARY) | {
    "encryption_keys": [f"{CANARY}-{number}-{'e' * 32}" for number in range(2)],
    "signing_keys": [f"{CANARY}-{number}-{'s' * 32}" for number in range(2)],
    "jwt_issuers": [{"issuer": "https://id.example", "audience": "a", "secret": CANARY * 4}],
}
BESIDE: dict[str, dict[str, Any]] = {
    "database_url_template": {"isolation_strategy": "database"},
    "encryption_keys": {"enable_encryption": True},
    "jwt_secret": {"resolution_strategy": "jwt", "jwt_audience": "a", "jwt_issuer": "https://b"},
    "jwt_issuers": {"resolution_strategy": "jwt"},
}
"""What a secret setting needs beside it."""


@pytest.fixture(params=["jwt_secret", "jwt_issuers"])
def everything_set(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> TenancyConfig:
    """A configuration with a canary in every secret setting, those of later features included.

    Twice: of two settings there can be only one.
    """
    for name in tuple(LATER):
        monkeypatch.delitem(LATER, name)
    given = {name for name in SECRETS if not name.startswith("jwt_") or name == request.param}
    settings = {key: value for name in given for key, value in BESIDE.get(name, {}).items()}
    settings |= {name: SECRETS[name] for name in given}
    return TenancyConfig(**settings, sections={"acme": {"password": CANARY}})


def test_every_secret_setting_has_a_canary(everything_set: TenancyConfig) -> None:
    shown = repr(everything_set)
    for name in everything_set.model_fields_set & set(SECRETS):
        assert "**********" in repr(getattr(everything_set, name)), name
        assert CANARY in repr(SECRETS[name])
        assert CANARY not in shown


def printed(error: BaseException) -> str:
    return tracked(error, __file__)


def caught(call: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as found:  # noqa: PT011 - whatever it is, it is looked at
        call()
    return found.value


# -- printing ----------------------------------------------------------------------------------


def test_S1_a_configuration_never_prints_its_secrets(everything_set: TenancyConfig) -> None:
    config = everything_set
    assert config.database_url.get_secret_value() == URL_WITH_CANARY
    for text in (
        repr(config),
        str(config),
        f"{config}",
        f"{config!r:>10}",
        repr(config.model_dump()),
        repr(config.model_dump(mode="json")),
        config.model_dump_json(),
        repr(copy.deepcopy(config)),
        repr(config.model_copy()),
        repr(list(config.__rich_repr__())),
        repr(config.model_json_schema()),
    ):
        assert CANARY not in text


def test_S1_pydantic_is_told_to_hide_what_it_was_given() -> None:
    assert TenancyConfig.model_config["hide_input_in_errors"] is True


def test_S1_what_was_read_from_the_environment_is_not_printed_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TENANCY_DATABASE_URL", URL_WITH_CANARY)
    monkeypatch.setenv("TENANCY_ACME_PASSWORD", CANARY)
    config = TenancyConfig.from_env()
    assert config.environment.get("TENANCY_ACME_PASSWORD") == CANARY
    assert CANARY not in repr(config) + repr(config.environment) + str(config.environment)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(config.environment)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_S1_a_configuration_is_not_pickled(protocol: int) -> None:
    config = TenancyConfig(database_url=URL_WITH_CANARY)
    out = io.BytesIO()
    with pytest.raises(TypeError, match="A TenancyConfig holds secrets and is not pickled"):
        pickle.Pickler(out, protocol).dump(config)
    assert CANARY.encode() not in out.getvalue()


def test_S1_a_tenancy_never_prints_its_secrets(make_config: Callable[..., TenancyConfig]) -> None:
    tenancy = Tenancy(make_config(), metadata=Base.metadata)
    assert repr(tenancy) == "<Tenancy database on sqlite, closed>"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(tenancy)


def test_S1_an_attempt_to_change_a_secret_does_not_print_the_new_one() -> None:
    config = TenancyConfig(database_url=URL_WITH_CANARY)
    for name in ("database_url", "redis_url"):
        error = caught(lambda name=name: setattr(config, name, CANARY))
        assert CANARY not in str(error) + repr(error)


# -- errors of the settings --------------------------------------------------------------------


class Section(BaseModel):
    """Settings of a plugin."""

    model_config = ConfigDict(extra="forbid")

    password: SecretStr
    mode: Literal["a", "b"] = "a"


MISTAKES: dict[str, dict[str, Any]] = {
    "typo beside": {"database_url": URL_WITH_CANARY, "databse_echo": True},
    "another is wrong": {"database_url": URL_WITH_CANARY, "cache_ttl": -1},
    "no URL": {"database_url": CANARY},
    "no driver": {"database_url": URL_WITH_CANARY.replace("+asyncpg", "")},
    "sync driver": {"database_url": URL_WITH_CANARY.replace("asyncpg", "psycopg2")},
    "unescaped": {"database_url": f"postgresql+asyncpg://app:a@{CANARY}@db/app"},
    "no port": {"database_url": f"postgresql+asyncpg://db:{CANARY}/app"},
    "password in sqlite": {"database_url": f"sqlite+aiosqlite://u:{CANARY}@/x.db"},
    "unknown database": {"database_url": f"oracle://u:{CANARY}@/x.db"},
    "stray newline": {"database_url": f"{URL_WITH_CANARY}\n"},
    "wrong type": {"database_url": [CANARY]},
    "later": {"database_url": URL_WITH_CANARY, "jwt_secret": CANARY},
    "keys": {"database_url": URL_WITH_CANARY, "encryption_keys": f'["{CANARY}'},
    "section": {"sections": {"acme": {"password": CANARY}}},
    "control": {"database_url": URL_WITH_CANARY, "control_database_url": CANARY},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_S1_S2_an_invalid_configuration_is_explained_without_its_secrets(mistake: str) -> None:
    error = caught(lambda: TenancyConfig(**MISTAKES[mistake]))
    assert isinstance(error, ConfigurationError)
    assert CANARY not in printed(error)
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("mistake", MISTAKES)
def test_S1_S2_nor_when_it_comes_from_variables(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides: dict[str, Any] = {}
    for name, value in MISTAKES[mistake].items():
        if isinstance(value, (str, int)):
            monkeypatch.setenv(f"TENANCY_{name.upper()}", str(value))
        else:
            overrides[name] = value
    # Set and read by nobody, so that there is always a mistake, and its value is kept, too.
    monkeypatch.setenv("TENANCY_ON_RESOLVER_CONFLICT", "wrong")
    monkeypatch.setenv("TENANCY_DATABASE_URI", URL_WITH_CANARY)
    error = caught(lambda: TenancyConfig.from_env(**overrides))
    assert isinstance(error, ConfigurationError)
    assert CANARY not in printed(error)


def test_S1_a_secret_set_twice_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(CANARY)
    monkeypatch.setenv("TENANCY_DATABASE_URL", URL_WITH_CANARY)
    monkeypatch.setenv("TENANCY_REDIS_URL", CANARY)
    monkeypatch.setenv("TENANCY_REDIS_URL_FILE", str(tmp_path / "secret"))
    error = caught(lambda: TenancyConfig.from_env(jwt_secret=CANARY))
    assert "both set" in str(error)
    assert CANARY not in printed(error)


@pytest.mark.parametrize("content", [CANARY.encode() + b"\xff", None])
def test_S1_a_secret_file_that_cannot_be_read_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / CANARY).write_bytes(content)
    monkeypatch.setenv("TENANCY_DATABASE_URL_FILE", CANARY)
    error = caught(TenancyConfig.from_env)
    assert CANARY not in printed(error)


def test_S1_a_dotenv_file_that_cannot_be_read_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(f"TENANCY_DATABASE_URL={CANARY}".encode() + b"\xff")
    error = caught(TenancyConfig.from_env)
    assert "not UTF-8" in str(error)
    assert CANARY not in printed(error)


@pytest.mark.parametrize("given", [True, False], ids=["given", "variable"])
def test_S1_an_invalid_section_is_explained_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch,
    given: bool,
) -> None:
    if given:
        values = {"password": CANARY, "mode": "c"}
        config = TenancyConfig(database_url=URL_WITH_CANARY, sections={"acme": values})
    else:
        monkeypatch.setenv("TENANCY_ACME_PASSWORD", CANARY)
        monkeypatch.setenv("TENANCY_ACME_MODE", "c")
        config = TenancyConfig.from_env(database_url=URL_WITH_CANARY)
    error = caught(lambda: config.section("acme", Section))
    assert str(error) == "TENANCY_ACME_MODE is not valid: Input should be 'a' or 'b'."
    assert CANARY not in printed(error)


def test_S1_a_section_with_an_unknown_setting_does_not_print_the_others() -> None:
    values = {"password": CANARY, "pasword": CANARY}
    config = TenancyConfig(database_url=URL_WITH_CANARY, sections={"acme": values})
    error = caught(lambda: config.section("acme", Section))
    assert str(error).endswith("Did you mean 'password'?")
    assert CANARY not in printed(error)


def test_S1_pydantic_s_other_ways_in_are_no_way_around() -> None:
    text = f'{{"database_url": "{CANARY}", "cache_ttl": "x"}}'
    error = caught(lambda: TenancyConfig.model_validate_json(text))
    assert isinstance(error, ConfigurationError)
    assert CANARY not in str(error)


# -- malformed URLs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "password", "host", "database"),
    [
        (URL_WITH_CANARY, CANARY, "db.example", "app"),
        ("postgresql+asyncpg://u:a:b/c?d@db:5432/app?ssl=require", "a:b/c?d", "db", "app"),
        ("mysql+aiomysql://u:%40p@[::1]:3306/app", "@p", "::1", "app"),
        ("postgresql+asyncpg:///app?host=/var/run/postgresql", None, None, "app"),
        ("postgresql+asyncpg://db/app", None, "db", "app"),
        ("sqlite+aiosqlite:////var/lib/a@b:c.db", None, None, "/var/lib/a@b:c.db"),
        ("sqlite+aiosqlite://", None, None, None),
    ],
)
def test_a_good_url_passes_and_means_what_it_says(
    url: str, password: str | None, host: str | None, database: str | None
) -> None:
    require_async_url(url)
    found = make_url(url)
    assert (found.password, found.host, found.database) == (password, host, database)


@given(
    scheme=st.sampled_from(["postgresql+asyncpg", "mysql+aiomysql"]),
    user=st.text(max_size=8),
    password=st.text(max_size=12),
    host=st.from_regex(r"[a-z0-9.-]{1,12}", fullmatch=True),
    port=st.integers(1, 65535),
)
def test_every_url_that_is_built_properly_is_taken(
    scheme: str, user: str, password: str, host: str, port: int
) -> None:
    url = URL.create(scheme, user or None, password or None, host, port, "app")
    require_async_url(url.render_as_string(hide_password=False))


@example("?@:")
@example("u:p@h:")
@settings(max_examples=2000)
@given(st.text("ab:@/?#[]%1. ", max_size=20))
def test_S2_what_passes_the_check_is_parsed_without_an_error_that_could_show_it(
    rest: str,
) -> None:
    url = f"postgresql+asyncpg://{rest}"
    refused: str | None = None
    try:
        require_async_url(url)
    except ValueError as error:
        refused = str(error)
    if refused is None:
        found = make_url(url)
        assert "@" not in (found.host or "") + (found.database or "")
    else:
        assert refused.startswith(("is malformed; the form is driver://", "starts or ends with"))


# -- logs and answers --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_S1_neither_logs_nor_answers_show_a_url_while_everything_goes_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The canary is in the path of the SQLite files, which is all that such a URL can hold."""
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / CANARY
    config = TenancyConfig(database_url=f"sqlite+aiosqlite:///{folder}/control.db")

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        raise AssertionError("nothing gets this far")

    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        tenant = await tenancy.tenants.create("acme")
        (folder / "tenants" / f"{tenant.placement.name}.db").unlink()
        async with tenancy.scope("acme"):
            with pytest.raises(Exception, match="missing") as failure:
                await read(tenancy)
        assert CANARY not in str(failure.value)
        await tenancy.parts.store._database.engine.dispose()
        transport = httpx.ASGITransport(TenancyMiddleware(app, tenancy))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            for identifier in ("nobody", "a b", CANARY.upper()):
                answer = await http.get("/", headers={"X-Tenant-ID": identifier})
                assert answer.status_code in {400, 404, 503}
                assert CANARY not in answer.text + repr(answer.headers)
                assert CANARY.upper() not in answer.text
    tenancy_log = [record for record in caplog.records if record.name.startswith("tenancy")]
    assert CANARY not in "".join(record.getMessage() for record in tenancy_log)
