"""The settings of tokens: what is refused at start-up, with which sentence, and without secrets."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from support.tokens import AUDIENCE, FLAT, ISSUER, SECRET, ec_key, listed, pem, rsa_key
from tenancy_core import ConfigurationError, Tenancy, TenancyConfig
from tenancy_core.config import JwtIssuer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeConfig = Callable[..., TenancyConfig]

pytestmark = pytest.mark.anyio

URL = "sqlite+aiosqlite:///./data/control.db"
CANARY = "canary-7c3e"
A = "https://a.example"
KEYS = "https://id.example/keys"
HS = ["HS256", "HS384", "HS512"]


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig(database_url=URL, **settings)
    return str(caught.value)


def flat(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**FLAT, **changes}.items() if value is not ...}


def test_the_least_that_is_needed() -> None:
    (issuer,) = TenancyConfig(database_url=URL, **FLAT).token_issuers
    assert issuer.accepted == ("HS256",)
    assert (issuer.issuer, issuer.audience) == (ISSUER, (AUDIENCE,))


SENTENCES: list[tuple[dict[str, Any], str]] = [
    (
        flat(jwt_issuer=...),
        (
            "TENANCY_JWT_ISSUER is missing: without it the tokens of every service that shares a "
            "key would do. Write what the claim iss of your tokens says, or * to accept any."
        ),
    ),
    (
        flat(jwt_audience=...),
        (
            "TENANCY_JWT_AUDIENCE is missing: without it a token that was made for another service "
            "would do. Write what the claim aud of your tokens says, or * to accept any."
        ),
    ),
    (
        flat(jwt_audience="notes,*"),
        (
            "TENANCY_JWT_AUDIENCE names '*' beside others; '*' accepts any: leave the others out, "
            "or '*'."
        ),
    ),
    (
        flat(jwt_secret=...),
        (
            "The resolver jwt has no key to check tokens with: set one of TENANCY_JWT_SECRET, "
            "TENANCY_JWT_JWKS_URL."
        ),
    ),
    (
        listed({}),
        (
            "The resolver jwt has no key to check tokens with: set one of TENANCY_JWT_ISSUERS, "
            "entry 1: secret, TENANCY_JWT_ISSUERS, entry 1: jwks_url, TENANCY_JWT_ISSUERS, entry "
            "1: public_key."
        ),
    ),
    (
        flat(jwt_algorithms="HS265"),
        (
            "TENANCY_JWT_ALGORITHMS names something that is no algorithm of signed tokens here; "
            "there is HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, "
            "ES512, EdDSA (did you mean HS256?)."
        ),
    ),
    (
        flat(jwt_algorithms="RS256"),
        (
            "TENANCY_JWT_ALGORITHMS names RS256, which needs a key pair, and TENANCY_JWT_SECRET is "
            "a shared secret. Set TENANCY_JWT_JWKS_URL instead, or name HS256, HS384, HS512."
        ),
    ),
    (
        flat(jwt_secret=..., jwt_jwks_url=KEYS, jwt_algorithms="HS256"),
        (
            "TENANCY_JWT_ALGORITHMS names an algorithm with a shared secret, and "
            "TENANCY_JWT_JWKS_URL is for key pairs. Write what your tokens are signed with: RS256."
        ),
    ),
    (flat(jwt_tenant_claim=""), "TENANCY_JWT_TENANT_CLAIM is empty; name the claim: tenant_id."),
    (
        flat(jwt_types='["at+jwt", ""]'),
        "TENANCY_JWT_TYPES holds an empty type; write for instance: at+jwt.",
    ),
    (
        listed({"secret": SECRET}, jwt_secret=SECRET),
        (
            "TENANCY_JWT_ISSUERS and TENANCY_JWT_SECRET are both set. Each issuer has its own "
            "keys, algorithms and audience: move what is in the flat setting into the list."
        ),
    ),
    (
        listed({"secret": SECRET, "issuer": "*"}),
        (
            "TENANCY_JWT_ISSUERS, entry 1: issuer is '*', and keys are bound to an issuer; name "
            "it, as in the claim iss of its tokens."
        ),
    ),
    (
        listed({"secret": SECRET}, {"jwks_url": KEYS, "algorithms": ["RS256"]}),
        (
            "TENANCY_JWT_ISSUERS, entry 2: issuer is there before. Several entries of one issuer "
            "are for rotating a secret or a public_key; one with a jwks_url stands alone."
        ),
    ),
    (
        listed({"secret": SECRET}, {"secret": SECRET, "issuer": "https://b.example"}),
        (
            "TENANCY_JWT_ISSUERS, entry 2: secret is another issuer's, too, so that each could "
            "sign for the other; give each its own."
        ),
    ),
    (
        listed({"secret": SECRET, "tenant_claim": ""}),
        "TENANCY_JWT_ISSUERS, entry 1: tenant_claim is empty; name the claim: tenant_id.",
    ),
    (
        {"resolution_strategy": "jwt", "jwt_issuers": CANARY},
        'TENANCY_JWT_ISSUERS is no JSON list; write [{"issuer": …, "audience": …, …}].',
    ),
    (
        {"resolution_strategy": "jwt", "jwt_issuers": json.dumps({"issuer": CANARY})},
        'TENANCY_JWT_ISSUERS is no JSON list; write [{"issuer": …, "audience": …, …}].',
    ),
    (
        {"resolution_strategy": "jwt", "jwt_issuers": [{"audience": "a", "secret": CANARY}]},
        "TENANCY_JWT_ISSUERS, entry 1 needs 'issuer'.",
    ),
    (
        listed({"secrets": CANARY}),
        (
            "TENANCY_JWT_ISSUERS, entry 1 has no setting 'secrets'. There is issuer, audience, "
            "algorithms, secret, jwks_url, public_key, tenant_claim, tenants. "
            "Did you mean 'secret'?"
        ),
    ),
]


@pytest.mark.parametrize("number", range(len(SENTENCES)))
def test_what_is_wrong_is_said_with_what_to_do(number: int) -> None:
    settings, sentence = SENTENCES[number]
    assert refusal(**settings) == sentence


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jwt_secret", SECRET),
        ("jwt_algorithms", "HS256"),
        ("jwt_tenant_claim", "org"),
        ("jwt_audience", "notes"),
        ("jwt_issuer", ISSUER),
        ("jwt_jwks_url", KEYS),
        ("jwt_issuers", [{"issuer": "a", "audience": "b", "secret": SECRET}]),
        ("jwt_types", "JWT"),
        ("jwt_max_lifetime", 60),
        ("jwt_leeway", 30),
    ],
)
def test_a_setting_that_no_resolver_would_read_is_refused(setting: str, value: Any) -> None:
    variable = f"TENANCY_{setting.upper()}"
    assert refusal(**{setting: value}) == (
        f"{variable} is set, and TENANCY_RESOLUTION_STRATEGY does not name the resolver jwt, so "
        f"that no token would be looked at. Add jwt to it, or remove {variable}."
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [("jwt_leeway", -1), ("jwt_leeway", 301), ("jwt_leeway", "inf"), ("jwt_leeway", "nan"),
     ("jwt_max_lifetime", 0), ("jwt_max_lifetime", -5), ("jwt_max_lifetime", "nan")],
)  # fmt: skip
def test_silly_numbers_are_refused(setting: str, value: Any) -> None:
    assert refusal(**flat(**{setting: value})).startswith(f"TENANCY_{setting.upper()} is not valid")


# -- where keys are fetched --------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://id.example/keys",
        "https://id.example",
        "https://id.example:8443/.well-known/jwks.json",
        "https://id.example/a/b?policy=b2c_1&x=%20",
        "https://[2001:db8::1]/keys",
        "http://localhost/keys",
        "http://localhost:8080/keys",
        "http://127.0.0.1/keys",
        "http://127.8.9.1/keys",
        "http://[::1]:9000/keys",
    ],
)
def test_keys_are_fetched_over_tls_or_from_this_machine(url: str) -> None:
    settings = flat(jwt_secret=..., jwt_jwks_url=url, jwt_algorithms="RS256")
    assert TenancyConfig(database_url=URL, **settings).jwt_jwks_url == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://id.example/keys", "is not encrypted"),
        ("http://localhost.example/keys", "is not encrypted"),
        ("http://127.0.0.1.example/keys", "is not encrypted"),
        ("http://10.0.0.1/keys", "is not encrypted"),
        ("http://0.0.0.0/keys", "is not encrypted"),
        ("http://[::ffff:10.0.0.1]/keys", "is not encrypted"),
        ("http://2130706433/keys", "is not encrypted"),
        (f"https://me:{CANARY}@id.example/keys", "is no URL of a key set"),
        ("http://127.0.0.1@id.example/keys", "is no URL of a key set"),
        ("http://127.0.0.1\\@id.example/keys", "is no URL of a key set"),
        ("http://127.0.0.1#@id.example/keys", "is no URL of a key set"),
        ("https://id.example/keys#one", "is no URL of a key set"),
        ("https://id.example/ke ys", "is no URL of a key set"),
        ("https://id.example/keys\n", "is no URL of a key set"),
        ("https://ïd.example/keys", "is no URL of a key set"),
        ("file:///etc/passwd", "is no URL of a key set"),
        ("ftp://id.example/keys", "is no URL of a key set"),
        ("data:application/json,{}", "is no URL of a key set"),
        ("//id.example/keys", "is no URL of a key set"),
        ("id.example/keys", "is no URL of a key set"),
        ("https://", "is no URL of a key set"),
        ("", "is no URL of a key set"),
    ],
)
def test_keys_are_fetched_from_nowhere_else(url: str, why: str) -> None:
    found = refusal(**flat(jwt_secret=..., jwt_jwks_url=url, jwt_algorithms="RS256"))
    assert found.startswith(f"TENANCY_JWT_JWKS_URL {why}")
    assert CANARY not in found
    found = refusal(**listed({"jwks_url": url, "algorithms": "RS256"}))
    assert found.startswith(f"TENANCY_JWT_ISSUERS, entry 1: jwks_url {why}")


# -- secrets -----------------------------------------------------------------------------------


def test_a_private_key_is_not_accepted_as_a_public_one_and_not_printed() -> None:
    text = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"
    found = refusal(**listed({"public_key": text, "algorithms": "RS256"}))
    assert found.startswith("TENANCY_JWT_ISSUERS, entry 1: public_key is a private key")
    assert CANARY not in found


def test_a_list_of_issuers_is_read_from_a_file_and_never_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    issuers = [
        {"issuer": ISSUER, "audience": "a", "secret": CANARY * 4},
        {"issuer": "b", "audience": ["b", "c"], "public_key": pem(ec_key()), "algorithms": "ES256"},
    ]
    (tmp_path / "issuers.json").write_text(json.dumps(issuers) + "\n")
    monkeypatch.setenv("TENANCY_DATABASE_URL", URL)
    monkeypatch.setenv("TENANCY_RESOLUTION_STRATEGY", "jwt")
    monkeypatch.setenv("TENANCY_JWT_ISSUERS_FILE", str(tmp_path / "issuers.json"))
    config = TenancyConfig.from_env()
    first, second = config.jwt_issuers
    assert isinstance(first, JwtIssuer)
    assert first.secret is not None
    assert first.secret.get_secret_value() == CANARY * 4
    assert second.audience == ("b", "c")
    assert CANARY not in repr(config) + repr(config.jwt_issuers) + repr(config.model_dump())
    tenancy = Tenancy(config)
    assert CANARY not in repr(vars(tenancy)) + repr(tenancy.resolver)


@pytest.mark.parametrize(
    "secret", ["s" * 31, f"-----BEGIN PUBLIC KEY-----{CANARY}-----END PUBLIC KEY-----", "é" * 31]
)
def test_a_secret_that_is_none_is_not_printed(secret: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(TenancyConfig(database_url=URL, **flat(jwt_secret=secret)))
    assert str(caught.value).startswith("TENANCY_JWT_SECRET is ")
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


def ours(error: BaseException) -> str:
    """Return a traceback as error trackers print it: our frames with their variables."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert error.__cause__ is None
    assert error.__context__ is None
    frames = [frame for frame in found.stack if "tenancy_core" in frame.filename]
    assert frames
    return str(error) + "".join(str(frame.locals) for frame in frames)


SPILT: dict[str, dict[str, Any]] = {
    "too short": flat(jwt_secret=CANARY),
    "for a key pair": flat(jwt_secret=CANARY * 4, jwt_algorithms="RS256"),
    "a JWK": flat(jwt_secret=json.dumps({"kty": "oct", "k": CANARY * 4})),
    "too short in the list": listed({"secret": CANARY}),
    "two issuers' in the list": listed({"secret": CANARY * 4}, {"issuer": A, "secret": CANARY * 4}),
    "no text in the list": listed({"secret": [CANARY]}),
    "no JSON": {"resolution_strategy": "jwt", "jwt_issuers": f'[{{"secret": "{CANARY}"'},
    "under another name": listed({"secret": SECRET, "scret": CANARY}),
    "a private key": listed({"public_key": f"-----BEGIN PRIVATE KEY-----{CANARY}"}),
    "a JWK in the list": listed({"secret": json.dumps({"kty": "oct", "k": CANARY * 4})}),
}


@pytest.mark.parametrize("mistake", SPILT)
def test_S1_a_mistake_with_a_secret_does_not_print_it(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENANCY_DATABASE_URL", URL)
    for name, value in SPILT[mistake].items():
        text = value if isinstance(value, str) else json.dumps(value)
        monkeypatch.setenv(f"TENANCY_{name.upper()}", text)
    with pytest.raises(ConfigurationError) as from_variables:
        Tenancy(TenancyConfig.from_env())
    with pytest.raises(ConfigurationError) as from_arguments:
        Tenancy(TenancyConfig(database_url=URL, **SPILT[mistake]))
    assert CANARY not in ours(from_variables.value)
    assert CANARY not in ours(from_arguments.value)


def test_a_secret_that_is_no_text_is_refused() -> None:
    assert refusal(**flat(jwt_secret="\udcff" * 40)) == (
        "TENANCY_JWT_SECRET is no text; write it in ASCII."
    )


def test_a_secret_is_rotated_with_two_entries_of_one_issuer() -> None:
    config = TenancyConfig(
        database_url=URL,
        **listed(
            {"secret": SECRET},
            {"secret": SECRET[::-1]},
            {"public_key": pem(rsa_key()), "algorithms": "RS256"},
        ),
    )
    assert len(config.token_issuers) == 3


# -- findings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (FLAT, []),
        (flat(jwt_audience="*"), ["audience"]),
        (flat(jwt_issuer="*"), ["issuer"]),
        (flat(jwt_audience="*", jwt_issuer="*"), ["audience", "issuer"]),
        (listed({"secret": SECRET, "audience": "*"}), ["audience"]),
        (listed({"secret": SECRET, "audience": "*"}, {"secret": SECRET[::-1]}), ["audience"]),
        ({}, []),
    ],
)
async def test_what_is_waived_is_a_finding(
    make_config: MakeConfig, settings: dict[str, Any], words: list[str]
) -> None:
    async with Tenancy(make_config(**settings)) as tenancy:
        found = [item for item in await tenancy.check() if item.check == "core.jwt"]
    assert [item.message.split()[1] for item in found] == words
    assert all(item.severity.value == "warning" for item in found)


@pytest.mark.parametrize(("strategy", "proven"), [("jwt", True), ("jwt,header", False)])
async def test_where_only_tokens_name_tenants_they_are_proven(
    make_config: MakeConfig, strategy: str, *, proven: bool
) -> None:
    async with Tenancy(make_config(**flat(resolution_strategy=strategy))) as tenancy:
        found = {item.check for item in await tenancy.check()}
    assert ("core.proof" in found) is not proven


# -- the extra ---------------------------------------------------------------------------------

WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from tenancy_core import Tenancy, TenancyConfig
try:
    Tenancy(TenancyConfig(database_url={url!r}, **{settings!r}))
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
else:
    print("it was built")
"""


@pytest.mark.parametrize(
    ("module", "settings", "missing"),
    [
        ("jwt", FLAT, True),
        ("cryptography", FLAT, True),
        ("httpx2", flat(jwt_secret=..., jwt_jwks_url=KEYS, jwt_algorithms="RS256"), True),
        ("httpx2", FLAT, False),
        ("jwt", {}, False),
    ],
)
def test_without_the_extra_start_up_says_what_to_install(
    module: str, settings: dict[str, Any], *, missing: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(module=module, url=URL, settings=settings)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (
        "ConfigurationError: The resolver 'jwt' of tenancy-core needs the package "
        f"{module!r}, which is not installed. Run: pip install 'tenancy-core[jwt]'"
        if missing
        else "it was built"
    )
