"""Check that a SuperLink is reachable from this machine: host name, port, certificate, health."""

from __future__ import annotations

import http.client
import socket
import ssl
from pathlib import Path

from fedsvd.doctor.finding import Finding

_TIMEOUT_S = 10.0


def check_superlink(address: str, root_certificates: Path | None) -> Finding:
    """Request the health endpoint of a SuperLink over the connection that a node would use.

    Args:
        address: Address of the SuperLink, ``host:port``.
        root_certificates: Certificate of the authority that must have signed the server's certificate; None to connect
            without TLS.
    """
    check = f"SuperLink {address}"
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return Finding(
            check, "error", "invalid address", "Expected host:port, for example superlink=fed.example.org:8000."
        )
    try:
        status = _health(host, int(port), root_certificates)
    except ssl.SSLCertVerificationError as error:
        advice = (
            "Check that ca.crt is the server's and that its certificate includes this host name "
            "(scripts/certs --host … --renew)."
        )
        return Finding(check, "error", f"certificate rejected: {error.verify_message}", advice)
    except ssl.SSLError as error:
        return Finding(
            check, "error", f"TLS handshake failed ({error.reason})", "Check the port, and any proxy in between."
        )
    except socket.gaierror:
        return Finding(check, "error", f"unknown host name {host}", "Check the name and this machine's DNS.")
    except (OSError, http.client.HTTPException) as error:
        advice = (
            "Check that it is running and that no firewall blocks outgoing connections to this port "
            "(docs/deployment.md, ports)."
        )
        return Finding(check, "error", f"no response ({error})", advice)
    if status != http.HTTPStatus.OK:
        return Finding(
            check, "error", f"responds with HTTP status {status}", "Check its log: docker compose logs superlink."
        )
    return Finding(check, "ok", "responds; certificate trusted" if root_certificates else "responds without TLS")


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
