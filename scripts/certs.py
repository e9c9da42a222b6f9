"""Make what a federation needs to know its own: certificates, node keys and secrets, in one folder.

What is already there is kept, so that a second call adds nodes; --renew makes the server's certificate anew. The
certificate authority is one of your own: good for development, and for a federation that has no better one.
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

# Of the user in the image; see the Dockerfile.
IMAGE_UID = 49999
# The SuperLink's name in docker-compose.yml, and what its own health check calls it.
OWN_NAMES = ("superlink", "localhost", "127.0.0.1")
KeyPair = ec.EllipticCurvePrivateKey


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/certs", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("certs"), help="where everything goes (certs)")
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes get a key (3)")
    parser.add_argument("--host", action="append", default=[], help="a name or address by which nodes reach the server")
    parser.add_argument("--days", type=int, default=365, help="how long certificates hold (365)")
    parser.add_argument("--renew", action="store_true", help="make the server's certificate anew, for these names")
    arguments = parser.parse_args()
    if arguments.nodes < 1 or arguments.days < 1:
        parser.error(f"--nodes {arguments.nodes} --days {arguments.days}: both are 1 or more")
    folder: Path = arguments.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_authority(folder, arguments.days)
    make_server_certificate(folder, [*OWN_NAMES, *arguments.host], arguments.days, renew=arguments.renew)
    make_secret(folder / "superexec.secret")
    for node in range(arguments.nodes):
        make_node_key(folder, node)
        make_secret(folder / f"node-{node}.secret")
    let_containers_read(folder)


def make_authority(folder: Path, days: int) -> None:
    """The certificate authority: ca.key signs, ca.crt is what everybody trusts."""
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
    """server.key and server.crt, for all names by which the SuperLink is reached."""
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
    """node-N.key stays with the node; node-N.pub is registered with the SuperLink."""
    path = folder / f"node-{node}.key"
    if path.exists():
        return
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    _write(path, private, private=True)
    _write(path.with_suffix(".pub"), key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH))


def make_secret(path: Path) -> None:
    """What a SuperLink or SuperNode and the executor beside it share."""
    if not path.exists():
        _write(path, secrets.token_hex(32).encode(), private=True)


def let_containers_read(folder: Path) -> None:
    """Compose mounts these files as they are, so the containers' user must be the one who may read them.

    Called by root they are handed to the image's own user; by anybody else, .env lets the image be built for this one.
    """
    if os.getuid() == 0:
        for path in [folder, *folder.iterdir()]:
            if path.name != "ca.key":
                os.chown(path, IMAGE_UID, IMAGE_UID)
        print(f"{folder}: ready; readable by root and by the containers' user {IMAGE_UID}")
        return
    environment = Path(".env")
    lines = environment.read_text(encoding="utf-8").splitlines() if environment.exists() else []
    kept = [line for line in lines if not line.startswith("FEDSVD_UID=")]
    environment.write_text("\n".join([*kept, f"FEDSVD_UID={os.getuid()}"]) + "\n", encoding="utf-8")
    print(f"{folder}: ready; .env has the containers run as you (FEDSVD_UID={os.getuid()})")


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
        # Clocks of other machines may be behind.
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    main()
