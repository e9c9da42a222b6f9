"""docker-compose.yml on a real Docker engine: projects, their services, and what can be done to them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopback import wait_until

ROOT = Path(__file__).resolve().parents[2]
# The image of these tests, beside those that a person has built.
IMAGE = "fedsvd:docker-tests"
# Stands in for the gateway's image where that cannot be pulled.
GATEWAY = """
FROM {base}
RUN apt-get update && apt-get install --yes --no-install-recommends nginx-light wget
"""
# Kills the processes whose command line contains $1, except the container's init and this shell itself.
_KILL = """
for process in /proc/[0-9]*; do
    case "$(tr '\\0' ' ' < "$process/cmdline")" in
        /sbin/* | bash*) ;;
        *"$1"*) kill -9 "${process#/proc/}" ;;
    esac
done
"""
# Returns when the ledger $1 has $2 charges, and prints how many it has.
_CHARGES = """
import sqlite3, sys, time
count = -1
while count < int(sys.argv[2]):
    time.sleep(0.1)
    try:
        connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
        [count] = connection.execute("SELECT count(*) FROM spend").fetchone()
    except sqlite3.OperationalError:  # There is no ledger yet.
        count = 0
print(count)
"""
LEDGER = "/app/private/ledger.sqlite"


def engine_answers() -> bool:
    """Return whether a Docker engine with compose answers."""
    if shutil.which("docker") is None:
        return False
    commands = (["docker", "info"], ["docker", "compose", "version"])
    return all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands)


@dataclass(frozen=True)
class Project:
    """One compose project.

    Attributes:
        name: Its name, which begins the names of its containers, networks and volumes.
        environment: Values for the file's ``${NAME:-default}``.
        override: A compose file that is merged with docker-compose.yml.
    """

    name: str
    environment: Mapping[str, str]
    override: Path | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment of commands that call ``docker compose`` themselves."""
        files = [str(ROOT / "docker-compose.yml"), *([str(self.override)] if self.override else [])]
        compose = {"COMPOSE_PROJECT_NAME": self.name, "COMPOSE_FILE": os.pathsep.join(files)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "FEDSVD_IMAGE": IMAGE, "OMP_NUM_THREADS": "1"} | self.environment | compose

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run ``docker compose`` and return its standard output."""
        return call("docker", "compose", *arguments, env=self.variables, check=check)

    def up(self, *services: str) -> None:
        """Start services, by default all without a profile, and wait until they are healthy."""
        self("up", "--detach", "--no-build", *(["--no-deps"] if services else []), *services)
        self.wait_until_healthy()

    def wait_until_healthy(self, seconds: float = 240) -> None:
        """Wait until all containers that run are healthy."""
        try:
            wait_until(lambda: set(self.health().values()) == {"healthy"}, seconds, "all services to be healthy")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.health()}\n{self('logs', '--tail', '40')}") from None

    def health(self) -> dict[str, str]:
        """Return the health of each service that has been started and did not end by itself, by its name."""
        lines = self("ps", "--all", "--format", "json").splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["Service"]: row["Health"] or row["State"] for row in rows if row["Service"] != "register"}

    def container(self, service: str) -> str:
        """Return the ID of a service's container."""
        return self("ps", "--quiet", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container."""
        return json.loads(call("docker", "inspect", self.container(service)))[0]  # type: ignore[no-any-return]

    def kill(self, service: str, command: str) -> None:
        """Send SIGKILL to the processes of a service whose command line contains ``command``.

        From inside, since the engine does not restart what ``docker kill`` has ended.
        """
        self.execute(service, "bash", "-c", _KILL, "kill", command, check=False)

    def wait_for_charges(self, number: int, count: int) -> int:
        """Wait until the ledger of a node has so many charges, and return how many it has."""
        return int(self.execute(f"superexec-clientapp-{number}", "python", "-c", _CHARGES, LEDGER, str(count)))

    def ledger(self, number: int) -> str:
        """Return what ``fedsvd privacy ledger`` shows of a node's ledger."""
        return self.execute(f"superexec-clientapp-{number}", "fedsvd", "privacy", "ledger", LEDGER)

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in the container of a service."""
        return self("exec", "--no-TTY", service, *command, check=check)

    def fill(self, service: str, folder: str) -> None:
        """Fill the volume on which a folder is."""
        self.execute(service, "bash", "-c", f"cat /dev/zero > {folder}/filler", check=False)

    def down(self, *options: str) -> None:
        """Remove the containers and networks."""
        self("--profile", "gateway", "down", "--timeout", "20", "--remove-orphans", *options)


class Run:
    """``fedsvd train federation=remote`` in a process of its own.

    Args:
        project: The project of the server.
        folder: The run directory.
        overrides: Overrides in addition to those of the connection.
    """

    def __init__(self, project: Project, folder: Path, *overrides: str) -> None:
        self.folder = folder
        certificate = Path(project.environment["FEDSVD_CERTS"]) / "ca.crt"
        remote = ["federation=remote", f"federation.superlink={project.environment['FEDSVD_BIND']}:8000"]
        remote += [f"federation.root_certificates={certificate}", f"hydra.run.dir={folder}"]
        self._log = folder.parent / f"{folder.name}.log"
        with self._log.open("wb") as log:
            command = ["fedsvd", "train", *remote, *overrides]
            self._process = subprocess.Popen(command, cwd=ROOT, env=project.variables, stdout=log, stderr=log)

    @property
    def output(self) -> str:
        """What the command has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Wait until the command has printed a text."""
        try:
            wait_until(lambda: text in self.output, seconds, f"{text!r}", self._ended)
        except TimeoutError as error:
            if text not in self.output:
                raise TimeoutError(f"{error}\n{self.output}") from None

    def _ended(self) -> str:
        return "" if self._process.poll() is None or self.output else "fedsvd train"

    def end(self, seconds: float = 600) -> int:
        """Wait for the end of the command and return its exit status."""
        return self._process.wait(seconds)

    def stop(self) -> None:
        """End the command if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(20)


def call(*command: str, env: Mapping[str, str] | None = None, check: bool = True, text: str | None = None) -> str:
    """Run a command and return its standard output.

    Raises:
        RuntimeError: If it fails; contains its output.
    """
    completed = subprocess.run(
        command, cwd=ROOT, env=env, input=text, capture_output=True, text=True, timeout=1800, check=False
    )
    if check and completed.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{completed.stdout}{completed.stderr}")
    return completed.stdout


def make_certs(folder: Path, *hosts: str) -> Path:
    """Create what ``scripts/certs`` creates, for the user of the image."""
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(folder / "certs")]
    # In a directory where a file .env is not in the way.
    subprocess.run([*command, *(f"--host={host}" for host in hosts)], check=True, cwd=folder, capture_output=True)
    return folder / "certs"


def gateway_image() -> str:
    """Return the gateway's image, or one that stands in for it."""
    default = "nginxinc/nginx-unprivileged:1.28-alpine"
    if subprocess.run(["docker", "pull", default], capture_output=True, check=False).returncode == 0:
        return default
    base = os.environ.get("BASE_IMAGE", "python:3.11-slim")
    call("docker", "build", "--tag", "fedsvd-gateway:docker-tests", "-", text=GATEWAY.format(base=base))
    return "fedsvd-gateway:docker-tests"
