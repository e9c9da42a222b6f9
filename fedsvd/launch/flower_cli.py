"""Wrapper around Flower's command line: submit a run, stream its log and query its status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsvd.compat.flower import COMMAND_LINE
from fedsvd.config import FederationConfig
from fedsvd.errors import RunError
from fedsvd.launch.app_bundle import stage_app

_NAME = "fedsvd"
_SHOW_TIMEOUT_S = 30.0
_COLOR_CODES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Connection:
    """A SuperLink connection of Flower's command line.

    Attributes:
        name: Name of the connection in Flower's ``config.toml``.
        home: Flower's home folder that contains this file; None for the user's own.
    """

    name: str
    home: Path | None

    def submit(self, overrides: str, config_dirs: Sequence[Path] = ()) -> int:
        """Submit a run to the SuperLink and return its run ID.

        Args:
            overrides: The overrides of the run, as one shell-quoted string.
            config_dirs: The user's own directories of YAML files, which the overrides refer to.

        Raises:
            RunError: The SuperLink cannot be reached, or rejects the run.
        """
        with tempfile.TemporaryDirectory(prefix="fedsvd-app-") as name:
            app, settings = Path(name) / "app", Path(name) / "run.toml"
            stage_app(app, config_dirs)
            # A JSON string is also a valid TOML string.
            settings.write_text(f"overrides = {json.dumps(overrides)}\n", encoding="utf-8")
            return int(self._call("run", str(app), self.name, "--run-config", str(settings))["run-id"])

    def status(self, run_id: int) -> tuple[str, str]:
        """Return a run's status, such as ``running`` or ``finished:completed``, and Flower's details on it.

        Raises:
            RunError: The SuperLink cannot be reached, or does not know the run.
        """
        [run] = self._call("ls", self.name, "--run-id", str(run_id))["runs"]
        return run["status"], run["status-details"]

    def newest_run(self) -> int | None:
        """Return the ID of the run that was submitted last; None if there is none.

        Raises:
            RunError: The SuperLink cannot be reached.
        """
        runs = self._runs()
        return runs[-1] if runs else None

    def later_runs(self, run_id: int) -> list[int]:
        """Return the IDs of the runs that were submitted after a run, in this order.

        Raises:
            RunError: The SuperLink cannot be reached.
        """
        runs = self._runs()
        return runs[runs.index(run_id) + 1 :] if run_id in runs else []

    def printed(self, run_id: int) -> list[str]:
        """Return the lines that a run has printed so far; none if the SuperLink passes on nothing in half a minute."""
        try:
            completed = subprocess.run(  # noqa: S603 - Flower's own command
                self._command("log", str(run_id), self.name, "--show"),
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=False,
                timeout=_SHOW_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            # Of a run that has printed nothing yet, Flower's command waits for the first line.
            return []
        return [strip_colors(line) for line in completed.stdout.splitlines()]

    def log(self, run_id: int) -> Iterator[str]:
        """Yield the lines that a run prints, from the first one, until the run ends or the connection breaks."""
        command = self._command("log", str(run_id), self.name, "--stream")
        with subprocess.Popen(  # noqa: S603 - Flower's own command
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None  # noqa: S101 - requested above
            try:
                yield from (line.rstrip("\n") for line in process.stdout)
            finally:
                process.terminate()

    def _runs(self) -> list[int]:
        runs = self._call("ls", self.name)["runs"]
        return [int(run["run-id"]) for run in sorted(runs, key=lambda run: str(run["pending-at"]))]

    def _call(self, *arguments: str) -> dict[str, Any]:
        """Run a ``flwr`` command and return its JSON output."""
        completed = subprocess.run(  # noqa: S603 - Flower's own command
            self._command(*arguments, "--format", "json"),
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            result = json.loads(completed.stdout)
        except ValueError:
            result = {}
        if not result.get("success"):
            message = result.get("error-message") or completed.stderr or completed.stdout
            raise RunError(
                f"flwr {arguments[0]} failed on the connection {self.name}: {_single_line(message)}. Check that the "
                "SuperLink is running, and that federation.superlink and federation.root_certificates match it."
            )
        return dict(result)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", COMMAND_LINE, *arguments]

    @property
    def _environment(self) -> dict[str, str]:
        # A wide terminal, so that Flower does not wrap its messages.
        return dict(os.environ) | {"COLUMNS": "500"} | ({"FLWR_HOME": str(self.home)} if self.home else {})


@contextmanager
def connect(federation: FederationConfig) -> Iterator[Connection]:
    """Configure Flower's command line for the SuperLink and yield the connection.

    The configuration is in a temporary Flower home, or, with ``federation.connection``, in the user's own.

    Raises:
        RunError: The certificate file does not exist.
    """
    if federation.connection:
        yield Connection(federation.connection, None)
        return
    tls_setting = "insecure = true"
    if federation.root_certificates:
        certificate = Path(federation.root_certificates).expanduser().resolve()
        if not certificate.is_file():
            raise RunError(
                f"federation.root_certificates = {federation.root_certificates}: there is no such file. Create it with "
                "scripts/certs, or ask the operator of the SuperLink for the certificate of its certificate authority."
            )
        tls_setting = f"root-certificates = {json.dumps(str(certificate))}"
    with tempfile.TemporaryDirectory(prefix="fedsvd-flower-") as home:
        address = f'address = "{federation.superlink}"'
        text = f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\n{address}\n{tls_setting}\n'
        (Path(home) / "config.toml").write_text(text, encoding="utf-8")
        yield Connection(_NAME, Path(home))


def strip_colors(text: str) -> str:
    """Remove ANSI color codes from a text."""
    return _COLOR_CODES.sub("", text)


def _single_line(text: str) -> str:
    line = " ".join(strip_colors(text).split()).removeprefix("Error: ").rstrip(".")
    return line or "no error message"
