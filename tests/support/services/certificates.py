"""A certificate authority that nobody trusts but a test, and certificates that it signed."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.services.identity import server_identity
from support.services.ports import LOOPBACK

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """An authority's certificate, and a key and certificate for a server on the loopback."""

    authority: Path
    """What a client has to trust: PEM."""
    certificate: Path
    key: Path

    def client_context(self) -> ssl.SSLContext:
        """Return settings for a client that checks the server's certificate and name."""
        return ssl.create_default_context(cafile=self.authority)

    def install(self, folder: Path) -> tuple[Path, Path]:
        """Copy certificate and key into a server's folder, for the server's eyes only."""
        copies = folder / "server.crt", folder / "server.key"
        for source, target in zip((self.certificate, self.key), copies, strict=True):
            target.touch(mode=0o600)
            target.write_bytes(source.read_bytes())
            server_identity().own(target)
        return copies


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and a certificate for 127.0.0.1 and localhost, valid for a day.

    Args:
        folder: Where the PEM files go.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    authority_name, server_name = named("tenancy tests"), named("localhost")
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issued = dt.datetime.now(dt.UTC)

    def certificate(subject: x509.Name, key: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(subject_name=subject, issuer_name=authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(issued - dt.timedelta(minutes=5))  # clocks of containers differ
            .not_valid_after(issued + dt.timedelta(days=1))
        )

    authority = certificate(authority_name, authority_key)
    for extension, critical in _authority_extensions(authority_key.public_key()):
        authority = authority.add_extension(extension, critical=critical)
    server = certificate(server_name, server_key)
    for extension, critical in _server_extensions(authority_key.public_key()):
        server = server.add_extension(extension, critical=critical)
    return _written(
        folder,
        authority=_pem(_signed(authority, authority_key)),
        certificate=_pem(_signed(server, authority_key)),
        key=_pem_key(server_key),
    )


def _authority_extensions(key: Any) -> list[tuple[Any, bool]]:
    from cryptography import x509

    usage = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
            *("key_agreement", "encipher_only", "decipher_only"),
        ),
        False,
    )
    return [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(key), False),
    ]


def _server_extensions(authority_key: Any) -> list[tuple[Any, bool]]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    address = x509.IPAddress(ipaddress.ip_address(LOOPBACK))
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.SubjectAlternativeName([x509.DNSName("localhost"), address]), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key), False),
    ]


def _signed(builder: Any, key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _pem_key(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _written(folder: Path, **contents: bytes) -> Certificates:
    files = {name: folder / f"{name}.pem" for name in contents}
    for name, content in contents.items():
        files[name].touch(mode=0o600)
        files[name].write_bytes(content)
    return Certificates(**files)
