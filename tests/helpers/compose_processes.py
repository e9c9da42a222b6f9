"""Emulation of docker compose without a Docker engine: each service's command runs as a process on loopback.

Names, ports, volumes, secrets and configs are translated in the arguments of the command line. A service can only use
the secrets and volumes that it has in docker-compose.yml.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml
from loopback import free_ports, wait_until

ROOT = Path(__file__).resolve().parents[2]
PORTS = {"superlink": (8000,), "supernode": (9094,), "superexec": (9097,)}


class Compose:
    """The services of docker-compose.yml. `up` does not start services with a profile.

    Args:
        folder: Directory for volumes, home directories and logs.
        environment: Values for the file's ``${NAME:-default}``.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        self.file: dict[str, Any] = yaml.safe_load(interpolate(text, environment))
        self.services: dict[str, Any] = self.file["services"]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        service_ports = [(name, port) for name in self.services for port in PORTS.get(name.split("-")[0], ())]
        self.ports = dict(zip(service_ports, free_ports(len(service_ports)), strict=True))

    def up(self) -> None:
        """Start all services in order, each after the conditions of its dependencies are met."""
        for name, service in self.services.items():
            if "profiles" not in service:
                self.start(name)

    def start(self, name: str) -> None:
        service = self.services[name]
        for other, dependency in service.get("depends_on", {}).items():
            self._wait_for(other, dependency["condition"])
        home = self.home(name)
        for config in service.get("configs", []):
            content = self.file["configs"][config["source"]]["content"]
            (home / Path(config["target"]).name).write_text(self.translate(name, content), encoding="utf-8")
        environment = self.environment | service["environment"] | {"FLWR_HOME": str(home), "HOME": str(home)}
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name), env=environment, stdout=log, stderr=log, cwd=home, start_new_session=True
            )

    def command(self, name: str) -> list[str]:
        return self._arguments(name, self.services[name]["command"])

    def _arguments(self, name: str, arguments: list[str]) -> list[str]:
        # Scripts are part of the image.
        return [str(ROOT / arg) if arg.startswith("scripts/") else self.translate(name, arg) for arg in arguments]

    def translate(self, name: str, text: str) -> str:
        service = self.services[name]
        for (other, port), local_port in self.ports.items():
            text = text.replace(f"{other}:{port}", f"127.0.0.1:{local_port}")
            if other == name:
                text = text.replace(f"localhost:{port}", f"127.0.0.1:{local_port}")
                text = str(local_port) if text == str(port) else text
        text = "127.0.0.1" if text == "0.0.0.0" else text
        paths = self.secrets(service) | self.volumes(name)
        # The longest first, since one path may be a prefix of another.
        for container_path in sorted(paths, key=len, reverse=True):
            text = text.replace(container_path, str(paths[container_path]))
        assert "/run/secrets/" not in text, f"{name} has no secret for {text}"
        return text

    def secrets(self, service: Mapping[str, Any]) -> dict[str, Path]:
        items = [item if isinstance(item, dict) else {"source": item} for item in service.get("secrets", [])]
        return {
            f"/run/secrets/{item.get('target', item['source'])}": ROOT / self.file["secrets"][item["source"]]["file"]
            for item in items
        }

    def volumes(self, name: str) -> dict[str, Path]:
        # Paths in a node configuration are paths in the container of the node's ClientApps.
        service = self.services[name.replace("supernode-", "superexec-clientapp-")]
        paths = {}
        for line in service.get("volumes", []):
            source, target, *_ = line.split(":")
            paths[target] = ROOT / source if source[0] in "./" else self.folder / "volumes" / source
            paths[target].mkdir(parents=True, exist_ok=True)
        return paths

    def home(self, name: str) -> Path:
        home = self.folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        cache = os.environ.get("FEDSVD_CACHE", str(Path.home() / ".cache" / "fedsvd"))
        return os.environ | {"PATH": path, "FEDSVD_CACHE": cache, "OMP_NUM_THREADS": "1"}

    def healthy(self, name: str) -> bool:
        kind, *arguments = self._arguments(name, self.services[name]["healthcheck"]["test"])
        assert kind == "CMD"
        completed = subprocess.run(arguments, env=self.environment, capture_output=True, check=False)
        return completed.returncode == 0

    def _wait_for(self, name: str, condition: str) -> None:
        process = self.processes[name]
        if condition == "service_completed_successfully":
            assert process.wait(240) == 0, self.log(name).read_text()
            return
        assert condition == "service_healthy"
        try:
            wait_until(
                lambda: self.healthy(name), 240, "it was healthy", lambda: "" if process.poll() is None else name
            )
        except TimeoutError as error:
            raise TimeoutError(f"{name}: {error}\n{self.log(name).read_text()}") from None

    def down(self) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        # Stopping a container stops all of its processes: here, apps may outlive their executor and are killed.
        marker = f"FLWR_HOME={self.folder}/".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marker in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """Replace ``${NAME:-default}`` as compose does."""

    def value(match: re.Match[str]) -> str:
        return environment.get(match["name"], match["default"])

    return re.sub(r"\$\{(?P<name>\w+):?-(?P<default>[^}]*)\}", value, text)


@contextmanager
def running(command: list[str], log: IO[bytes], env: Mapping[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
