"""What the URL of a PostgreSQL may say, and what is told where it says something else."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql.postgres import code_of, connect_args, flaw_of, in_words, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.services.certificates import Certificates

SETTING = "TENANCY_POSTGRES_ADMIN_URL"
SECRET = "hunter2"
START = f"postgresql+asyncpg://app:{SECRET}@localhost/shop"
KEY_PASSWORD = "swordfish"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Go through an error and what stands behind it, as a traceback shows them."""
    yield error
    for behind in (error.__cause__, error.__context__):
        if behind is not None:
            yield from chain(behind)


def refusal(query: str, *hidden: str) -> str:
    """Return what is said of a query, and see that the passwords are nowhere in it."""
    with pytest.raises(ConfigurationError) as caught:
        connect_args(url_of(START + query, SETTING), SETTING, timeout=1)
    for error in chain(caught.value):
        for secret in (SECRET, *hidden):
            assert secret not in str(error)
            assert secret not in repr(error)
    return str(caught.value)


def given(query: str) -> dict[str, Any]:
    """Return what the driver is given, in the URL and besides it."""
    url, arguments = connect_args(url_of(START + query, SETTING), SETTING, timeout=3)
    dialect: Any = url.get_dialect()()
    _, options = dialect.create_connect_args(url)
    assert not options.keys() & arguments.keys()
    return {**options, **arguments}


# -- which database --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (
            f"postgresql://app:{SECRET}@localhost/shop",
            "names no driver; tenancy uses async drivers: start it with postgresql+asyncpg://",
        ),
        (
            f"postgres://app:{SECRET}@localhost/shop",
            "names no driver; tenancy uses async drivers: start it with postgresql+asyncpg://",
        ),
        (
            f"postgresql+psycopg://app:{SECRET}@localhost/shop",
            (
                "names the driver 'psycopg'; tenancy uses async drivers: start it with "
                "postgresql+asyncpg://"
            ),
        ),
        (
            f"mysql+aiomysql://app:{SECRET}@localhost/shop",
            "names the database 'mysql'; there is postgresql+asyncpg",
        ),
        (
            f"mysql://app:{SECRET}@localhost/shop",
            "names the database 'mysql'; there is postgresql+asyncpg",
        ),
        (
            f"sqlite+aiosqlite:///./{SECRET}.db",
            "names the database 'sqlite'; there is postgresql+asyncpg",
        ),
        (
            f"oracle://app:{SECRET}@localhost/shop",
            "names the database 'oracle'; there is postgresql+asyncpg",
        ),
        (
            SECRET,
            "is no database URL (for instance postgresql+asyncpg://user:password@host/name)",
        ),
        ("", "is no database URL (for instance postgresql+asyncpg://user:password@host/name)"),
        (START + "\n", "starts or ends with a space or a line break; remove it"),
        (
            f"postgresql+asyncpg://app:p@{SECRET}@localhost/shop",
            (
                "is malformed; the form is driver://user:password@host:port/name, and special "
                "characters of the password are percent-encoded: @ is %40, : is %3A, / is %2F"
            ),
        ),
    ],
)
def test_another_database_or_driver_is_told_without_the_value(text: str, flaw: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        url_of(text, SETTING)
    assert [str(error) for error in chain(caught.value)] == [f"{SETTING} {flaw}."]


def test_what_is_right_is_taken_as_it_is() -> None:
    assert url_of(START, SETTING) == make_url(START)
    assert given("") == {
        "host": "localhost",
        "user": "app",
        "password": SECRET,
        "database": "shop",
        "timeout": 3,
    }


# -- parameters ------------------------------------------------------------------------------------

ROLE_SETTING = "have it set by the server: ALTER ROLE … IN DATABASE … SET …"


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("connect_timeout", "set TENANCY_DATABASE_CONNECT_TIMEOUT"),
        ("timeout", "set TENANCY_DATABASE_CONNECT_TIMEOUT"),
        ("pool_timeout", "set TENANCY_DATABASE_POOL_TIMEOUT"),
        ("application_name", "set TENANCY_POSTGRES_APPLICATION_NAME"),
        ("fallback_application_name", "set TENANCY_POSTGRES_APPLICATION_NAME"),
        ("options", ROLE_SETTING),
        ("server_settings", ROLE_SETTING),
        ("search_path", ROLE_SETTING),
        ("statement_timeout", ROLE_SETTING),
        ("dbname", "write the database behind the slash"),
        ("pool_size", "set TENANCY_DATABASE_POOL_SIZE"),
        ("max_overflow", "set TENANCY_DATABASE_MAX_OVERFLOW"),
        ("pool_pre_ping", "set TENANCY_DATABASE_POOL_PRE_PING"),
        ("pool_recycle", "set TENANCY_DATABASE_POOL_RECYCLE"),
        ("sslnegotiation", "write direct_tls=true"),
        ("statement_cache_size", "set TENANCY_POSTGRES_PREPARED_STATEMENTS=off"),
        # Of the driver, and not for a URL; and of nobody.
        ("connection_class", "leave it out"),
        ("loop", "leave it out"),
        ("keepalives", "leave it out"),
        ("SSLMODE", "leave it out"),
    ],
)
def test_an_unknown_parameter_is_told_with_what_to_do_instead(name: str, instead: str) -> None:
    said = refusal(f"?{name}=its-value", "its-value")
    assert said == (
        f"The URL in {SETTING} has a parameter {name}, which asyncpg cannot be given in a URL. "
        f"Remove it and {instead}. What it can be given: command_timeout, database, direct_tls, "
        "gsslib, host, krbsrvname, passfile, password, port, prepared_statement_cache_size, "
        "service, servicefile, ssl, ssl_max_protocol_version, ssl_min_protocol_version, sslcert, "
        "sslcrl, sslkey, sslmode, sslpassword, sslrootcert, target_session_attrs, user."
    )


@pytest.mark.parametrize("name", ["password", "sslpassword"])
def test_the_end_of_a_password_with_an_ampersand_is_not_taken_for_a_name(name: str) -> None:
    said = refusal(f"?{name}=correct&horse=battery", "correct", "horse", "battery")
    assert said.startswith(
        f"The URL in {SETTING} has a parameter that asyncpg cannot be given in a URL. "
        "Remove it and leave it out. "
    )
    # One that has a remedy is nobody's password.
    assert "pool_size, which" in refusal(f"?{name}=correct&pool_size=5", "correct")


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        (
            "command_timeout",
            ["abc", "0", "-1", "nan", "inf", "1e999"],
            "a number of seconds above 0",
        ),
        ("direct_tls", ["yes", "TRUE", "2"], "true or false"),
        ("gsslib", ["heimdal"], "gssapi or sspi"),
        ("prepared_statement_cache_size", ["-1", "1.5", "many"], "a whole number"),
        (
            "target_session_attrs",
            ["master", "Primary"],
            "one of any, primary, standby, read-write, read-only, prefer-standby",
        ),
        (
            "ssl_min_protocol_version",
            ["SSLv3", "TLSv9", "tlsv1.2"],
            "one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3",
        ),
        (
            "ssl_max_protocol_version",
            ["SSLv3", "TLSv9", "tlsv1.2"],
            "one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3",
        ),
    ],
)
def test_a_value_that_cannot_be_is_told_with_those_that_can(
    name: str, values: list[str], allowed: str
) -> None:
    for value in values:
        assert refusal(f"?{name}={value}") == (
            f"The parameter {name} of the URL in {SETTING} has a value that it cannot have; it is "
            f"{allowed}."
        )


@pytest.mark.parametrize("name", ["command_timeout", "passfile", "sslrootcert", "sslpassword"])
def test_a_parameter_that_is_there_twice_is_refused(name: str) -> None:
    said = refusal(f"?{name}=31&{name}=32", "31", "32")
    assert said == f"The URL in {SETTING} has the parameter {name} twice. Remove one."


@pytest.mark.parametrize(
    "query", ["?port=abc", "?host=one:5432&host=two", "?host=one&host=two", "?host=one:five"]
)
def test_hosts_and_ports_that_do_not_fit_are_told(query: str) -> None:
    assert refusal(query) == (
        f"The URL in {SETTING} names hosts and ports (?host=, ?port=) that do not fit together: "
        "write ?host=one:5432&host=two:5432, with a number behind each colon."
    )


def test_what_the_driver_takes_it_is_given() -> None:
    assert given("?host=one:5432&host=two:5433")["host"] == ["one", "two"]
    assert given("?host=one:5432&host=two:5433")["port"] == [5432, 5433]
    assert given("?port=6432")["port"] == 6432
    for host in ("::1", "fe80::1%25eth0", "/run/postgresql", "db"):
        assert given(f"?host={host}")["host"] == host.replace("%25", "%")
    assert given("?direct_tls=true")["direct_tls"] is True
    assert given("?direct_tls=0")["direct_tls"] is False
    assert given("?prepared_statement_cache_size=7")["prepared_statement_cache_size"] == 7
    for query in ("command_timeout=2.5", "target_session_attrs=primary", "krbsrvname=pg"):
        name, _, value = query.partition("=")
        assert given(f"?{query}")[name] == value


# -- TLS -------------------------------------------------------------------------------------------

SYSTEM = "?ssl=verify-full&sslrootcert=system"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A certificate for a client, its key under a password, and a list of revoked ones."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
    )

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "app")])
    now = dt.datetime.now(dt.UTC)
    begin, end = now - dt.timedelta(minutes=5), now + dt.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    revoked = x509.CertificateRevocationListBuilder(name, begin, end).sign(key, hashes.SHA256())
    contents = {
        "sslcert": certificate.public_bytes(Encoding.PEM),
        "sslkey": key.private_bytes(
            Encoding.PEM,
            PrivateFormat.PKCS8,
            BestAvailableEncryption(KEY_PASSWORD.encode()),
        ),
        "sslcrl": revoked.public_bytes(Encoding.PEM),
    }
    found = {kind: tmp_path / f"{kind}.pem" for kind in contents}
    for kind, content in contents.items():
        found[kind].write_bytes(content)
    return found


@pytest.fixture
def of_the_machine(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the tests' authority believed by this machine."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))


def context_of(query: str) -> ssl.SSLContext:
    context = given(SYSTEM + query)["ssl"]
    assert isinstance(context, ssl.SSLContext)
    return context


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLObject:
    """Let two parties meet without a network; returns the server's end."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname="localhost"),
        server.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[1]


def server_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.set_alpn_protocols(["postgresql"])
    return context


@pytest.mark.usefixtures("of_the_machine")
def test_with_the_authorities_of_the_machine_the_clients_certificate_is_shown(
    files: dict[str, Path], certificates: Certificates
) -> None:
    context = context_of(
        f"&sslcert={files['sslcert']}&sslkey={files['sslkey']}&sslpassword={KEY_PASSWORD}"
    )
    server = server_context(certificates)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(files["sslcert"])
    end = shake_hands(context, server)
    assert end.getpeercert() is not None
    assert end.selected_alpn_protocol() == "postgresql"
    with pytest.raises(ssl.SSLError, match=r"(?i)peer.did.not.return.a.certificate"):
        shake_hands(context_of(""), server)


@pytest.mark.usefixtures("of_the_machine")
def test_with_the_authorities_of_the_machine_a_list_of_revoked_certificates_is_asked(
    files: dict[str, Path], certificates: Certificates
) -> None:
    server = server_context(certificates)
    shake_hands(context_of(""), server)
    context = context_of(f"&sslcrl={files['sslcrl']}")
    assert context.cert_store_stats()["crl"] == 1
    # It is another authority's, so that nothing is known of this one's.
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get certificate CRL"):
        shake_hands(context, server)


@pytest.mark.usefixtures("of_the_machine")
def test_with_the_authorities_of_the_machine_the_versions_of_TLS_are_bounded(
    certificates: Certificates,
) -> None:
    server = server_context(certificates)
    newest, older = (
        shake_hands(context_of(query), server).version()
        for query in ("&ssl_min_protocol_version=TLSv1.3", "&ssl_max_protocol_version=TLSv1.2")
    )
    assert (newest, older) == ("TLSv1.3", "TLSv1.2")
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(context_of("&ssl_min_protocol_version=TLSv1.3"), server)


@pytest.mark.parametrize(("mode", "asks"), [("verify-full", True), ("verify-ca", False)])
def test_with_the_authorities_of_the_machine_the_name_is_asked_by_verify_full(
    mode: str, *, asks: bool
) -> None:
    context = given(f"?sslmode={mode}&sslrootcert=system")["ssl"]
    assert context.check_hostname is asks
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("mode", ["", "ssl=require&", "ssl=prefer&", "sslmode=disable&"])
def test_authorities_that_nobody_asks_are_refused(mode: str) -> None:
    assert refusal(f"?{mode}sslrootcert=system") == (
        f"The URL in {SETTING} has sslrootcert=system, and a TLS mode that asks no authority. "
        "Write ?ssl=verify-full&sslrootcert=system."
    )


@pytest.mark.parametrize("name", ["sslkey", "sslpassword"])
def test_a_key_without_a_certificate_is_refused(name: str) -> None:
    assert refusal(f"{SYSTEM}&{name}={KEY_PASSWORD}", KEY_PASSWORD) == (
        f"The URL in {SETTING} has a key for TLS (sslkey, sslpassword) and no certificate. "
        "Add &sslcert=/path/to/certificate.pem."
    )


def test_files_that_cannot_be_used_are_told(files: dict[str, Path], tmp_path: Path) -> None:
    own = f"&sslcert={files['sslcert']}&sslkey={files['sslkey']}"
    missing = tmp_path / "missing.pem"
    for query, why in (
        (f"&sslcrl={missing}", "FileNotFoundError"),
        (f"&sslcert={missing}", "FileNotFoundError"),
        (f"&sslcert={files['sslcrl']}", "SSLError"),
        (f"{own}&sslpassword=wrong-{KEY_PASSWORD}", "SSLError"),
        # Nobody is asked at the terminal.
        (own, "SSLError"),
    ):
        assert refusal(SYSTEM + query, KEY_PASSWORD) == (
            f"The files for TLS that the URL in {SETTING} names cannot be used ({why}). They have "
            "to be there, readable and PEM; sslkey is the key of sslcert, and sslpassword is the "
            "key's."
        )


def test_without_them_the_driver_gets_every_parameter_as_it_is(files: dict[str, Path]) -> None:
    query = {
        "sslmode": "verify-full",
        **{name: str(path) for name, path in files.items()},
        "sslpassword": "a&b=c",
        "sslrootcert": "/etc/authority.pem",
        "ssl_min_protocol_version": "TLSv1.2",
        "ssl_max_protocol_version": "TLSv1.3",
    }
    url = make_url(START).update_query_dict(query)
    url, arguments = connect_args(url, SETTING, timeout=1)
    assert url == make_url(START)
    assert arguments.keys() == {"dsn", "timeout"}
    dsn = make_url(arguments["dsn"])
    assert dict(dsn.query) == query
    assert dsn.set(query={}).render_as_string(hide_password=False) == "postgresql://"


# -- what the server says --------------------------------------------------------------------------


class Refusal(Exception):
    """As the driver's, with the fields that are looked at."""

    def __init__(self, sqlstate: str, function: str | None = None) -> None:
        super().__init__("im Wortlaut des Servers")
        self.sqlstate = sqlstate
        self.server_source_function = function


class ClientConfigurationError(Exception):
    """As the driver's, which is known by its name."""


def test_who_may_not_connect_is_told_what_to_run() -> None:
    error = Refusal("42501", "CheckMyDatabase")
    url = make_url("postgresql+asyncpg://localhost").set(
        username='It\'s "me"', password=SECRET, database="Shop"
    )
    assert str(flaw_of(error, SETTING, url)) == (
        f"The role of {SETTING} may not connect to its database. Run, as the owner of the "
        'database: GRANT CONNECT ON DATABASE "Shop" TO "It\'s ""me""".'
    )
    assert str(flaw_of(error)) == (
        "The role of the database URL may not connect to its database. Run, as the owner of the "
        'database: GRANT CONNECT ON DATABASE "its_database" TO "its_role".'
    )
    # As SQLAlchemy hands it on.
    wrapped = RuntimeError()
    wrapped.__cause__ = error
    assert isinstance(flaw_of(wrapped, SETTING, url), ConfigurationError)


@pytest.mark.parametrize(
    "error",
    [
        None,
        OSError(),
        Refusal("42501", "aclcheck_error"),
        Refusal("42501"),
        # A database that takes no connections at all, or too many of them.
        Refusal("55000", "CheckMyDatabase"),
        Refusal("53300", "CheckMyDatabase"),
    ],
)
def test_other_failures_are_not_about_the_settings(error: BaseException | None) -> None:
    assert flaw_of(error, SETTING, make_url(START)) is None


@pytest.mark.parametrize("setting", [SETTING, None])
def test_what_the_driver_cannot_do_is_told_with_the_setting(setting: str | None) -> None:
    said = str(flaw_of(ClientConfigurationError(SECRET), setting, make_url(START)))
    which = setting or "the database URL"
    assert said.startswith(f"A connection cannot be made with {which} as it is: with ?ssl=")
    assert "&sslrootcert=system for the authorities of this machine" in said
    assert SECRET not in said


def test_codes_about_being_let_in_have_words() -> None:
    assert {code: in_words(code) for code in ("28000", "28P01", "3D000", "53300", "57P01")} == {
        "28000": "28000: the server refuses this role from here",
        "28P01": "28P01: the server refuses this user or password",
        "3D000": "3D000: there is no database of that name",
        "53300": "53300: the server has no connection left for this role",
        "57P01": "57P01",
    }
    assert code_of(Refusal("28P01")) == "28P01"
    assert code_of(Refusal("42501", "CheckMyDatabase")) is None
