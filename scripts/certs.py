"""Create the certificates, node keys and secrets of a federation in one directory.

Existing files are kept, so that a second call adds nodes, for which ca.key is not needed; --renew creates a new server
certificate with the same authority. The certificate authority is self-signed: use it for development, or for a
federation without an authority of its own.
"""

import argparse
import datetime
import ipaddress
import os
import secrets
from pathlib import Path
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec

# User ID in the container image; see the Dockerfile.
IMAGE_UID = 49999
# The SuperLink's host name in docker-compose.yml, and those that its health check uses.
OWN_NAMES = ("superlink", "localhost", "127.0.0.1")
# A century, within what a certificate can express.
MAX_DAYS = 36_500
KeyPair = ec.EllipticCurvePrivateKey
Authority = tuple[x509.Certificate, KeyPair]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/certs", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("certs"), help="output directory (default: certs)")
    parser.add_argument("--nodes", type=int, default=3, help="number of nodes that get a key and a secret (default: 3)")
    parser.add_argument("--host", action="append", default=[], help="additional host name or address of the server")
    parser.add_argument("--days", type=int, default=365, help="validity of the server certificate (default: 365)")
    parser.add_argument("--ca-days", type=int, default=3650, help="validity of a new authority (default: 3650)")
    parser.add_argument("--renew", action="store_true", help="create a new server certificate, for these hosts")
    arguments = parser.parse_args()
    if arguments.nodes < 1:
        parser.error(f"--nodes {arguments.nodes} is invalid: it must be at least 1")
    for option, days in (("--days", arguments.days), ("--ca-days", arguments.ca_days)):
        if not 1 <= days <= MAX_DAYS:
            parser.error(f"{option} {days} is invalid: it must be from 1 to {MAX_DAYS}")
    folder: Path = arguments.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if arguments.renew or not (folder / "server.crt").exists():
        authority = find_authority(folder) or make_authority(folder, arguments.ca_days)
        make_server_certificate(folder, authority, [*OWN_NAMES, *arguments.host], arguments.days)
    make_secret(folder / "superexec.secret")
    for node in range(arguments.nodes):
        make_node_files(folder, node)
    grant_container_access(folder)


def find_authority(folder: Path) -> Authority | None:
    """Return the authority in a directory; None if it has neither an authority nor a certificate of one.

    Raises:
        SystemExit: The authority is incomplete, cannot be read, or has expired. Sites would not trust a new one in its
            place.
    """
    missing = [name for name in ("ca.key", "ca.crt") if not (folder / name).exists()]
    if len(missing) == 2 and not (folder / "server.crt").exists():
        return None
    if missing:
        _refuse(
            folder,
            f"{' and '.join(missing)} not found, which the server's certificate needs; sites would not trust a new "
            "authority. Put back what is missing for this call. (A site needs no server certificate: it creates its "
            "own key and secret as in docs/deployment.md, step 2.) For a new federation, use an empty directory",
        )
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = form.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        _refuse(folder, f"ca.crt or ca.key cannot be read ({error}). Restore them from a backup")
    if not isinstance(key, KeyPair) or key.public_key() != certificate.public_key():
        _refuse(folder, "ca.key belongs to another certificate than ca.crt. Restore the matching pair")
    end = certificate.not_valid_after_utc
    if end <= datetime.datetime.now(datetime.UTC):
        _refuse(
            folder,
            f"ca.crt expired on {end:%Y-%m-%d}, and can sign no certificate. Create a new authority in an empty "
            "directory, and copy its ca.crt to every site, as in docs/deployment.md, maintenance",
        )
    return certificate, key


def make_authority(folder: Path, days: int) -> Authority:
    """Create the certificate authority: ca.key signs certificates, ca.crt is distributed to all sites."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fedsvd federation")])
    uses = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _certificate(name, name, key.public_key(), _days_from_now(days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(uses, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _pem(key), private=True)
    _write(folder / "ca.crt", certificate.public_bytes(form.Encoding.PEM))
    return certificate, key


def make_server_certificate(folder: Path, authority: Authority, names: list[str], days: int) -> None:
    """Create server.key and server.crt, valid for all host names and addresses of the SuperLink."""
    issuer, issuer_key = authority
    # A certificate that outlives its authority is rejected once the authority has expired.
    wanted = _days_from_now(days)
    end = min(wanted, issuer.not_valid_after_utc)
    if wanted - end > datetime.timedelta(days=1):
        print(f"{folder}: server.crt is valid until {end:%Y-%m-%d}, not for {days} days: ca.crt ends then")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fedsvd superlink")])
    certificate = (
        _certificate(subject, issuer.subject, key.public_key(), end)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in dict.fromkeys(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    _write(folder / "server.key", _pem(key), private=True)
    _write(folder / "server.crt", certificate.public_bytes(form.Encoding.PEM))


def make_node_files(folder: Path, node: int) -> None:
    """Create node-N.key and node-N.secret, which stay at the node, and node-N.pub, which the SuperLink registers.

    A public key without its private one is that of a node whose key is at its site only; nothing is created for it.
    """
    path = folder / f"node-{node}.key"
    public = path.with_suffix(".pub")
    if not path.exists():
        if public.exists():
            return
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
        _write(path, private, private=True)
    if not public.exists():
        _write(public, _public_key(path))
    make_secret(path.with_suffix(".secret"))


def make_secret(path: Path) -> None:
    """Create the secret that a SuperLink or SuperNode shares with its SuperExec process."""
    if not path.exists():
        _write(path, secrets.token_hex(32).encode(), private=True)


def grant_container_access(folder: Path) -> None:
    """Make the files readable for the user of the containers, because Compose mounts them with their permissions.

    If root calls this, the user of the image becomes the owner of all files except ca.key. Otherwise, the user
    ID of the caller is written to .env, so that the image is built for that user.
    """
    if os.getuid() == 0:
        for path in [folder, *folder.iterdir()]:
            if path.name != "ca.key":
                os.chown(path, IMAGE_UID, IMAGE_UID)
        print(f"{folder}: ready; readable by root and by the containers' user (ID {IMAGE_UID})")
        return
    environment = Path(".env")
    lines = environment.read_text(encoding="utf-8").splitlines() if environment.exists() else []
    other_lines = [line for line in lines if not line.startswith("FEDSVD_UID=")]
    environment.write_text("\n".join([*other_lines, f"FEDSVD_UID={os.getuid()}"]) + "\n", encoding="utf-8")
    print(f"{folder}: ready; .env makes the containers run as your user (FEDSVD_UID={os.getuid()})")


def _refuse(folder: Path, reason: str) -> NoReturn:
    raise SystemExit(f"scripts/certs: error: {folder}: {reason}. Nothing was written.")


def _days_from_now(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def _public_key(path: Path) -> bytes:
    """Return the public key of a node's private key, in OpenSSH's format."""
    try:
        key = form.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"scripts/certs: error: {path} cannot be read ({error}), and {path.stem}.pub is missing. Restore it, or "
            "delete it, call scripts/certs again, and register the new node."
        ) from error
    return key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, end: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Allow for clocks of other machines that are behind.
        .not_valid_before(datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1))
        .not_valid_after(end)
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(key: KeyPair) -> bytes:
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically; a private one is readable by the owner only."""

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    main()
