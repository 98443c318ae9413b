"""Keys and certificates of a federation: an authority of its own, the server's certificate, a key pair for each node.

Private keys are written with mode 0600 and never over one that is there. All are P-384 (RFC 5480), a node's in OpenSSH's format, which
is what Flower reads; certificates are X.509 (RFC 5280).
"""

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from configs.errors import InputError

AUTHORITY_DAYS, SERVER_DAYS = 3650, 365
SOON = dt.timedelta(days=30)  # before it expires, a certificate is spoken of
HERE = ("localhost", "127.0.0.1")  # what a server calls itself


def authority(folder: Path) -> None:
    """Make ``ca.key`` and ``ca.crt``. Whoever has the key can pass for the server: it belongs on no node."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Homing")])
    built = _certificate(name, name, key.public_key(), AUTHORITY_DAYS)
    built = built.add_extension(x509.BasicConstraints(True, 0), critical=True)
    signs = x509.KeyUsage(
        False, False, False, False, False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False
    )
    built = built.add_extension(signs, critical=True)
    secret(folder / "ca.key", _private(key))
    (folder / "ca.crt").write_bytes(built.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM))


def server(folder: Path, names: Sequence[str], days: int = SERVER_DAYS) -> None:
    """Make ``server.key`` and ``server.crt`` for these host names and addresses, signed by the authority; replaces older ones."""
    try:
        issuer = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no readable authority (ca.key and ca.crt): {error}") from None
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key, everything = ec.generate_private_key(ec.SECP384R1()), dict.fromkeys((*names, *HERE))
    built = _certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]), issuer.subject, key.public_key(), days)
    built = built.add_extension(x509.SubjectAlternativeName([_known(name) for name in everything]), critical=False)
    built = built.add_extension(x509.BasicConstraints(False, None), critical=True)
    built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    (folder / "server.key").unlink(missing_ok=True)
    secret(folder / "server.key", _private(key))
    (folder / "server.crt").write_bytes(built.sign(signer, hashes.SHA384()).public_bytes(Encoding.PEM))


def node(folder: Path) -> None:
    """Make a node's ``node.key`` and ``node.pub``."""
    key = ec.generate_private_key(ec.SECP384R1())
    secret(folder / "node.key", key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (folder / "node.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


def expires(path: Path) -> dt.datetime:
    """When a certificate ends."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no certificate: {error}") from None


def warning(path: Path, now: dt.datetime) -> str:
    """What to say of a certificate that has ended or soon will; else nothing."""
    end = expires(path)
    if end > now + SOON:
        return ""
    return f"{path} {'ends' if end > now else 'ended'} on {end:%Y-%m-%d}; make another one with: deploy renew"


def secret(path: Path, content: bytes) -> None:
    """Write what only its owner may read; refuses to write over anything."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(f"{path} is there already and stays") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _known(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
