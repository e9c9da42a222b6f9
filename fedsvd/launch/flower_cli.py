"""Flower's own command line, called as a user would call it: submit a run, follow its log, ask how it ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsvd.config import FederationConfig
from fedsvd.errors import RunError
from fedsvd.launch.app_bundle import stage_app

_NAME = "fedsvd"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Connection:
    """A SuperLink as Flower's command line knows it.

    Attributes:
        name: Of the connection in Flower's ``config.toml``.
        home: Flower's home folder with that file; None for the user's own.
    """

    name: str
    home: Path | None

    def submit(self, overrides: str) -> int:
        """Hand a run to the SuperLink and return its number.

        Raises:
            RunError: It cannot be reached, or refuses.
        """
        with tempfile.TemporaryDirectory(prefix="fedsvd-app-") as name:
            app, settings = Path(name) / "app", Path(name) / "run.toml"
            stage_app(app)
            # A text in JSON is one in TOML.
            settings.write_text(f"overrides = {json.dumps(overrides)}\n", encoding="utf-8")
            return int(self._ask("run", str(app), self.name, "--run-config", str(settings))["run-id"])

    def status(self, run_id: int) -> tuple[str, str]:
        """Return a run's status, such as ``running`` or ``finished:completed``, and Flower's words on it.

        Raises:
            RunError: The SuperLink cannot be reached, or does not know the run.
        """
        [run] = self._ask("ls", self.name, "--run-id", str(run_id))["runs"]
        return run["status"], run["status-details"]

    def log(self, run_id: int) -> Iterator[str]:
        """Yield the lines that a run prints, from its first one on, until it is over or the line is cut."""
        command = self._command("log", str(run_id), self.name, "--stream")
        with subprocess.Popen(  # noqa: S603 - Flower's own command
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None  # noqa: S101 - asked for just above
            try:
                yield from (line.rstrip("\n") for line in process.stdout)
            finally:
                process.terminate()

    def _ask(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(  # noqa: S603 - Flower's own command
            self._command(*words, "--format", "json"),
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = {}
        if not answer.get("success"):
            said = answer.get("error-message") or done.stderr or done.stdout
            raise RunError(
                f"flwr {words[0]} failed on the connection {self.name}: {_in_one_line(said)}. Is the SuperLink up, and "
                "are federation.superlink and federation.root_certificates those of its side?"
            )
        return dict(answer)

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from flwr.cli.app import app; app()", *words]

    @property
    def _environment(self) -> dict[str, str]:
        # Wide enough for messages to come in one line.
        return dict(os.environ) | {"COLUMNS": "500"} | ({"FLWR_HOME": str(self.home)} if self.home else {})


@contextmanager
def connect(federation: FederationConfig) -> Iterator[Connection]:
    """Describe the SuperLink to Flower, in a home of its own or (with ``federation.connection``) the user's.

    Raises:
        RunError: The certificate is not there.
    """
    if federation.connection:
        yield Connection(federation.connection, None)
        return
    trust = "insecure = true"
    if federation.root_certificates:
        certificate = Path(federation.root_certificates).expanduser().resolve()
        if not certificate.is_file():
            raise RunError(
                f"federation.root_certificates = {federation.root_certificates}: there is no such file. scripts/certs "
                "makes it; elsewhere, ask whoever runs the SuperLink for the certificate of its authority."
            )
        trust = f"root-certificates = {json.dumps(str(certificate))}"
    with tempfile.TemporaryDirectory(prefix="fedsvd-flower-") as home:
        text = f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\naddress = "{federation.superlink}"\n{trust}\n'
        (Path(home) / "config.toml").write_text(text, encoding="utf-8")
        yield Connection(_NAME, Path(home))


def strip_colors(text: str) -> str:
    """Return a text without a terminal's colours."""
    return _COLOURS.sub("", text)


def _in_one_line(text: str) -> str:
    words = " ".join(strip_colors(text).split()).removeprefix("Error: ").rstrip(".")
    return words or "it said nothing"
