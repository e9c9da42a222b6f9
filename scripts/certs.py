"""Create the certificates, node keys and secrets of a federation in one directory.

Existing files are kept, so that a second call adds nodes; --renew creates a new server certificate. The certificate
authority is self-signed: use it for development, or for a federation without an authority of its own.
"""

import argparse
import datetime
import ipaddress
import os
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec

# User ID in the container image; see the Dockerfile.
IMAGE_UID = 49999
# The SuperLink's host name in docker-compose.yml, and those that its health check uses.
OWN_NAMES = ("superlink", "localhost", "127.0.0.1")
KeyPair = ec.EllipticCurvePrivateKey


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/certs", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("certs"), help="output directory (default: certs)")
    parser.add_argument("--nodes", type=int, default=3, help="number of nodes that get a key and a secret (default: 3)")
    parser.add_argument("--host", action="append", default=[], help="additional host name or address of the server")
    parser.add_argument("--days", type=int, default=365, help="validity of certificates in days (default: 365)")
    parser.add_argument("--renew", action="store_true", help="create a new server certificate, for these hosts")
    arguments = parser.parse_args()
    if arguments.nodes < 1 or arguments.days < 1:
        parser.error(f"--nodes {arguments.nodes} --days {arguments.days} is invalid: both must be at least 1")
    folder: Path = arguments.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_authority(folder, arguments.days)
    make_server_certificate(folder, [*OWN_NAMES, *arguments.host], arguments.days, renew=arguments.renew)
    make_secret(folder / "superexec.secret")
    for node in range(arguments.nodes):
        make_node_key(folder, node)
        make_secret(folder / f"node-{node}.secret")
    grant_container_access(folder)


def make_authority(folder: Path, days: int) -> None:
    """Create the certificate authority: ca.key signs certificates, ca.crt is distributed to all sites."""
    if (folder / "ca.key").exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fedsvd federation")])
    uses = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _certificate(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(uses, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _pem(key), private=True)
    _write(folder / "ca.crt", certificate.public_bytes(form.Encoding.PEM))


def make_server_certificate(folder: Path, names: list[str], days: int, *, renew: bool) -> None:
    """Create server.key and server.crt, valid for all host names and addresses of the SuperLink."""
    if (folder / "server.crt").exists() and not renew:
        return
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    authority_key = form.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fedsvd superlink")])
    certificate = (
        _certificate(subject, authority.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in dict.fromkeys(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder / "server.key", _pem(key), private=True)
    _write(folder / "server.crt", certificate.public_bytes(form.Encoding.PEM))


def make_node_key(folder: Path, node: int) -> None:
    """Create node-N.key, which stays at the node, and node-N.pub, which is registered with the SuperLink."""
    path = folder / f"node-{node}.key"
    if path.exists():
        return
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    _write(path, private, private=True)
    _write(path.with_suffix(".pub"), key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH))


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


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Allow for clocks of other machines that are behind.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
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
