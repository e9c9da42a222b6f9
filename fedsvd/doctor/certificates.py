"""Checks of the certificates, keys and secrets in a directory written by ``scripts/certs``."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from fedsvd.doctor.finding import Finding

_EXPIRES_SOON = datetime.timedelta(days=30)
_RENEW = "scripts/certs --renew (with all --host names), then restart the SuperLink."
_NEW_AUTHORITY = (
    "Create a new authority in an empty directory (scripts/certs --folder … with all --host names), copy its ca.crt to "
    "every site, and its ca.crt, server.crt and server.key to the server (docs/deployment.md, maintenance)."
)
# Where a site and the server are advised alike: a site has no authority, and creates its files itself.
_CREATE_AGAIN = "create it again as in docs/deployment.md, step 2"


def check_certificates(folder: Path) -> Iterator[Finding]:
    """Check the authority, the server's certificate and key, node keys and secrets, as far as they exist.

    Args:
        folder: Directory to check. A site's need not contain the server's files, and the server's need not contain the
            nodes' files.
    """
    is_server = (folder / "server.crt").is_file()
    authority, finding = _check_authority(folder / "ca.crt", is_server)
    yield finding
    if is_server:
        # A renewed certificate would end with the authority.
        advice = _RENEW if authority is None or finding.status == "ok" else _NEW_AUTHORITY
        server, finding = _check_certificate(folder / "server.crt", advice)
        yield finding
        if server is not None:
            yield _check_server(folder, server, authority)
    for path in sorted(folder.glob("node-*.key")):
        yield _check_node(path)
    for path in sorted([*folder.glob("*.key"), *folder.glob("*.secret")]):
        yield _check_permissions(path)


def _check_authority(path: Path, is_server: bool) -> tuple[x509.Certificate | None, Finding]:
    if path.is_file():
        return _check_certificate(path, _NEW_AUTHORITY)
    advice = "Copy it from any other machine of the federation."
    if not is_server:
        advice += " In a new federation, scripts/certs creates it on the server."
    return None, Finding(str(path), "error", "not found", advice)


def _check_certificate(path: Path, advice: str) -> tuple[x509.Certificate | None, Finding]:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return None, Finding(str(path), "error", f"cannot be read ({error})", advice)
    now = datetime.datetime.now(datetime.UTC)
    end = certificate.not_valid_after_utc
    if end < now:
        return certificate, Finding(str(path), "error", f"expired on {end:%Y-%m-%d}", advice)
    if certificate.not_valid_before_utc > now:
        begin = certificate.not_valid_before_utc
        return certificate, Finding(
            str(path), "error", f"not valid before {begin:%Y-%m-%d}", "Set this machine's clock."
        )
    validity = f"valid until {end:%Y-%m-%d}"
    if end - now < _EXPIRES_SOON:
        return certificate, Finding(str(path), "warning", f"{validity}, {(end - now).days} days from now", advice)
    return certificate, Finding(str(path), "ok", validity)


def _check_server(folder: Path, server: x509.Certificate, authority: x509.Certificate | None) -> Finding:
    check = f"{folder}/server.crt and its key"
    if authority is not None:
        try:
            server.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError) as error:
            return Finding(check, "error", f"not signed by {folder}/ca.crt ({error or 'wrong signature'})", _RENEW)
    try:
        key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        return Finding(check, "error", f"server.key cannot be read ({error})", _RENEW)
    if key.public_key() != server.public_key():
        return Finding(check, "error", "server.key belongs to another certificate", _RENEW)
    try:
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Finding(check, "error", "the certificate has no host names", _RENEW)
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    signed = "" if authority is None else "signed by ca.crt, "
    return Finding(check, "ok", f"{signed}for {', '.join(hosts)}")


def _check_node(path: Path) -> Finding:
    public = path.with_suffix(".pub")
    register = f"and register the new {public.name}"
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        advice = f"Restore it from a backup, or delete the pair, {_CREATE_AGAIN}, {register}."
        return Finding(str(path), "error", f"cannot be read ({error})", advice)
    try:
        public_key = serialization.load_ssh_public_key(public.read_bytes())
    except (OSError, ValueError) as error:
        advice = f"Derive it from the private key: ssh-keygen -y -f {path} > {public}."
        return Finding(str(public), "error", f"cannot be read ({error})", advice)
    if key.public_key() != public_key:
        advice = f"Restore the matching pair, or delete both, {_CREATE_AGAIN}, {register}."
        return Finding(str(path), "error", f"{public.name} belongs to another key", advice)
    return Finding(str(path), "ok", f"matches {public.name}")


def _check_permissions(path: Path) -> Finding:
    check, mode = f"permissions of {path}", stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(check, "error", f"accessible by other users (mode {mode:o})", f"chmod 600 {path}")
    if not path.stat().st_size:
        return Finding(check, "error", "empty file", f"Restore it, or delete it and {_CREATE_AGAIN}.")
    return Finding(check, "ok", "accessible by the owner only")
