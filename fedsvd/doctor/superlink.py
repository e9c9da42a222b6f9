"""A SuperLink, seen from here: name, port, certificate, health."""

from __future__ import annotations

import http.client
import socket
import ssl
from pathlib import Path

from fedsvd.doctor.finding import Finding

_TIMEOUT_S = 10.0


def check_superlink(address: str, root_certificates: Path | None) -> Finding:
    """Ask a SuperLink for its health, as a node would reach it.

    Args:
        address: ``host:port``.
        root_certificates: Certificate of the authority that its own must be signed by; None: without TLS.
    """
    what = f"SuperLink {address}"
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return Finding(what, "bad", "no address", "Write host:port, as in superlink=fed.example.org:8000.")
    try:
        status = _health(host, int(port), root_certificates)
    except ssl.SSLCertVerificationError as error:
        advice = "Is ca.crt the server's, and was its certificate made for this name (scripts/certs --host … --renew)?"
        return Finding(what, "bad", f"its certificate is refused: {error.verify_message}", advice)
    except ssl.SSLError as error:
        return Finding(what, "bad", f"no TLS there ({error.reason})", "Check the port; a proxy may stand in between.")
    except socket.gaierror:
        return Finding(what, "bad", f"the name {host} is not known", "Check it, and this machine's DNS.")
    except (OSError, http.client.HTTPException) as error:
        advice = "Is it up? Does a firewall let this machine out to that port? (docs/deployment.md, ports)"
        return Finding(what, "bad", f"does not answer ({error})", advice)
    if status != http.HTTPStatus.OK:
        return Finding(
            what, "bad", f"answers with status {status}", "Look into its log: docker compose logs superlink."
        )
    return Finding(
        what, "ok", "answers, and its certificate is trusted" if root_certificates else "answers, without TLS"
    )


def _health(host: str, port: int, root_certificates: Path | None) -> int:
    connection: http.client.HTTPConnection
    if root_certificates is None:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    else:
        context = ssl.create_default_context(cafile=str(root_certificates))
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()
