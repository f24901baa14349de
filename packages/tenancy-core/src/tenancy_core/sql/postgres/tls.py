"""What a URL says about TLS, as libpq's parameters."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql.postgres.values import require_once, wrong_value

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TLS_MODES", "TLS_PARAMETERS", "names_system", "system_context", "take_tls"]

TLS_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""Values of ``?ssl=``, as libpq's ``sslmode``
(https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION)."""

_SYSTEM: Final = "system"
_FILES: Final = ("sslcert", "sslcrl", "sslkey", "sslrootcert")
_VERSIONS: Final = ("ssl_min_protocol_version", "ssl_max_protocol_version")
TLS_PARAMETERS: Final = frozenset({"sslmode", "sslpassword", *_VERSIONS, *_FILES})
_TLS_VERSIONS: Final = {
    name: ssl.TLSVersion[name.replace(".", "_")]
    for name in ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
}
_PROTOCOL: Final = "postgresql"
"""What a server of version 17 wants to be asked for (ALPN) where TLS comes first."""


def take_tls(query: dict[str, Any], setting: str) -> dict[str, str]:
    """Take what is about TLS out of the parameters of a URL.

    Args:
        query: The parameters; what is taken is gone from them.
        setting: The variable that the URL comes from.

    Returns:
        Parameters as libpq has them.

    Raises:
        ConfigurationError: One is there twice, or has a value that it cannot have.
    """
    given = [query.pop(name) for name in ("ssl", "sslmode") if name in query]
    if any(mode not in TLS_MODES for mode in given) or len(set(given)) > 1:
        raise ConfigurationError(
            f"The URL in {setting} has a TLS mode (?ssl=) that does not exist, or two. There is "
            f"{', '.join(TLS_MODES)}; in production use verify-full."
        )
    tls = {name: query.pop(name) for name in sorted(TLS_PARAMETERS) if name in query}
    require_once(tls, setting)
    for name in _VERSIONS:
        if name in tls and tls[name] not in _TLS_VERSIONS:
            raise wrong_value(setting, name, f"one of {', '.join(_TLS_VERSIONS)}")
    if given:
        tls["sslmode"] = str(given[0])
    return tls


def names_system(tls: Mapping[str, str]) -> bool:
    """Whether the authorities are those that this machine believes, which asyncpg cannot do."""
    return tls.get("sslrootcert") == _SYSTEM


def system_context(tls: Mapping[str, str], setting: str) -> ssl.SSLContext:
    """Make what asyncpg makes of the parameters, with the authorities of this machine.

    Args:
        tls: As from :func:`take_tls`.
        setting: The variable that the URL comes from.

    Raises:
        ConfigurationError: The mode asks no authority, or a file cannot be used.
    """
    mode = tls.get("sslmode", "")
    if not mode.startswith("verify"):
        # As in libpq: where nobody is checked, authorities would promise what is not there.
        raise ConfigurationError(
            f"The URL in {setting} has sslrootcert=system, and a TLS mode that asks no authority. "
            "Write ?ssl=verify-full&sslrootcert=system."
        )
    if "sslcert" not in tls and tls.keys() & {"sslkey", "sslpassword"}:
        raise ConfigurationError(
            f"The URL in {setting} has a key for TLS (sslkey, sslpassword) and no certificate. "
            "Add &sslcert=/path/to/certificate.pem."
        )
    context = ssl.create_default_context()
    context.check_hostname = mode == "verify-full"
    context.set_alpn_protocols([_PROTOCOL])
    try:
        _add_files(context, tls)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The files for TLS that the URL in {setting} names cannot be used "
            f"({type(error).__name__}). They have to be there, readable and PEM; sslkey is the key "
            "of sslcert, and sslpassword is the key's."
        ) from error
    if "ssl_min_protocol_version" in tls:
        context.minimum_version = _TLS_VERSIONS[tls["ssl_min_protocol_version"]]
    if "ssl_max_protocol_version" in tls:
        context.maximum_version = _TLS_VERSIONS[tls["ssl_max_protocol_version"]]
    return context


def _add_files(context: ssl.SSLContext, tls: Mapping[str, str]) -> None:
    if "sslcrl" in tls:
        context.load_verify_locations(cafile=tls["sslcrl"])
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    if "sslcert" in tls:
        # Without a function OpenSSL would ask the terminal.
        context.load_cert_chain(
            tls["sslcert"], tls.get("sslkey"), password=lambda: tls.get("sslpassword", "")
        )
