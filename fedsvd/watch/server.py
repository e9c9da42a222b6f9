"""A web server on this machine for one page: it reads, and answers nobody but this machine's own browsers."""

from __future__ import annotations

import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from fedsvd.errors import ConfigError
from fedsvd.watch.page import Page

ADDRESS = "127.0.0.1"


class WatchServer(ThreadingHTTPServer):
    """The server of a page, bound to the loopback interface.

    Args:
        page: The page.
        port: The port; 0 for any that is free.

    Raises:
        ConfigError: The port cannot be used.
    """

    daemon_threads = True

    def __init__(self, page: Page, port: int) -> None:
        self.page = page
        self.lock = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"port = {port} cannot be used ({error}): leave it out, or give a free one.") from error

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """What a browser on this machine sends as the host.

        The name of another site whose address was changed to this machine's is not among them, so that the site's
        scripts cannot read the page.
        """
        return f"{ADDRESS}:{self.server_port}", f"localhost:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer

    def do_GET(self) -> None:
        """Answer a request for the page, or for its parts."""
        if self.headers.get("Host") not in self.server.hosts:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "open this page by its address on this machine\n")
            return
        url = urlsplit(self.path)
        page = self.server.page
        with self.server.lock:
            if url.path == "/":
                nonce = secrets.token_urlsafe(16)
                self._send(HTTPStatus.OK, "text/html", page.shell(nonce), f"'nonce-{nonce}'")
            elif url.path == "/parts.json":
                self._send(HTTPStatus.OK, "application/json", _parts(page, url.query))
            else:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", "not found\n")

    def _send(self, status: HTTPStatus, kind: str, text: str, script: str = "'none'") -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            (
                "Content-Security-Policy",
                f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; script-src {script}"
                "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            ),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


def _parts(page: Page, query: str) -> str:
    """Return the part that changes all the time and, if it is newer than what the browser has, that of the report."""
    live, report = page.live(), page.report()
    known = parse_qs(query).get("version") == [str(page.version)]
    return json.dumps({"live": live, "version": page.version, "report": None if known else report})
