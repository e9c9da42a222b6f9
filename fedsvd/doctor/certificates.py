"""Certificates, keys and secrets in a folder such as scripts/certs makes."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from fedsvd.doctor.finding import Finding

_SOON = datetime.timedelta(days=30)
_RENEW = "scripts/certs --renew (with all --host names), then restart the SuperLink."
_NEW_AUTHORITY = "Make a new authority in an empty folder (scripts/certs --folder …) and give its ca.crt to every site."


def check_certificates(folder: Path) -> Iterator[Finding]:
    """Check whatever is there of: the authority, the server's certificate and key, node keys, secrets.

    Args:
        folder: A site's may lack what is the server's alone, and the server's what is a node's.
    """
    authority = None
    if not (folder / "ca.crt").is_file():
        yield Finding(f"{folder}/ca.crt", "bad", "not there", "scripts/certs makes it; a site gets it from the server.")
    else:
        authority, found = _certificate(folder / "ca.crt", _NEW_AUTHORITY)
        yield found
    if (folder / "server.crt").is_file():
        server, found = _certificate(folder / "server.crt", _RENEW)
        yield found
        if server is not None:
            yield _check_server(folder, server, authority)
    for path in sorted(folder.glob("node-*.key")):
        yield _check_node(path)
    for path in sorted([*folder.glob("*.key"), *folder.glob("*.secret")]):
        yield _check_private(path)


def _certificate(path: Path, advice: str) -> tuple[x509.Certificate | None, Finding]:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return None, Finding(str(path), "bad", f"cannot be read ({error})", advice)
    now = datetime.datetime.now(datetime.UTC)
    end = certificate.not_valid_after_utc
    if end < now:
        return certificate, Finding(str(path), "bad", f"expired on {end:%Y-%m-%d}", advice)
    if certificate.not_valid_before_utc > now:
        begin = certificate.not_valid_before_utc
        return certificate, Finding(str(path), "bad", f"holds from {begin:%Y-%m-%d} on", "Set this machine's clock.")
    left = f"holds until {end:%Y-%m-%d}"
    if end - now < _SOON:
        return certificate, Finding(str(path), "note", f"{left}, {(end - now).days} days from now", advice)
    return certificate, Finding(str(path), "ok", left)


def _check_server(folder: Path, server: x509.Certificate, authority: x509.Certificate | None) -> Finding:
    what = f"{folder}/server.crt and its key"
    if authority is not None:
        try:
            server.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError) as error:
            return Finding(what, "bad", f"not signed by {folder}/ca.crt ({error or 'wrong signature'})", _RENEW)
    try:
        key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        return Finding(what, "bad", f"server.key cannot be read ({error})", _RENEW)
    if key.public_key() != server.public_key():
        return Finding(what, "bad", "server.key is another certificate's", _RENEW)
    try:
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Finding(what, "bad", "the certificate is for no name", _RENEW)
    known = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return Finding(what, "ok", f"signed, for {', '.join(known)}")


def _check_node(path: Path) -> Finding:
    public = path.with_suffix(".pub")
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
        known = serialization.load_ssh_public_key(public.read_bytes())
    except (OSError, ValueError) as error:
        return Finding(str(path), "bad", f"cannot be read ({error})", "scripts/certs makes a pair where there is none.")
    if key.public_key() != known:
        advice = f"Find the pair, or delete both, call scripts/certs, and register the new {public.name}."
        return Finding(str(path), "bad", f"{public.name} is another key's", advice)
    return Finding(str(path), "ok", f"{public.name} belongs to it")


def _check_private(path: Path) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(f"{path} for others", "bad", f"open to others (mode {mode:o})", f"chmod 600 {path}")
    if not path.stat().st_size:
        return Finding(f"{path} for others", "bad", "empty", f"Delete it and call scripts/certs: {path}")
    return Finding(f"{path} for others", "ok", "closed")
