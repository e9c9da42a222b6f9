"""Plays docker compose where there is no Docker engine: every service's own argv as a process on loopback.

What compose would do with names, ports, volumes, secrets and configs is done to the words of the command line; what a
service has not been given (a secret, a volume) it does not find here either.
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
    """The services of docker-compose.yml, of which those that need no profile are started.

    Args:
        folder: Where volumes, homes and logs go.
        environment: What the file's ``${NAME:-default}`` are taken from.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        found: dict[str, Any] = yaml.safe_load(interpolated(text, environment))
        self.file = found
        self.services: dict[str, Any] = found["services"]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        wanted = [(name, port) for name in self.services for port in PORTS.get(name.split("-")[0], ())]
        self.ports = dict(zip(wanted, free_ports(len(wanted)), strict=True))

    def up(self) -> None:
        """Start all services, each when what it depends on is as it asks."""
        for name, service in self.services.items():
            if "profiles" not in service:
                self.start(name)

    def start(self, name: str) -> None:
        service = self.services[name]
        for other, wish in service.get("depends_on", {}).items():
            self._await(other, wish["condition"])
        home = self.home(name)
        for config in service.get("configs", []):
            content = self.file["configs"][config["source"]]["content"]
            (home / Path(config["target"]).name).write_text(self.translated(name, content), encoding="utf-8")
        environment = self.environment | service["environment"] | {"FLWR_HOME": str(home), "HOME": str(home)}
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name), env=environment, stdout=log, stderr=log, cwd=home, start_new_session=True
            )

    def command(self, name: str) -> list[str]:
        words = [str(word) for word in self.services[name]["command"]]
        # The script that the image holds.
        return [str(ROOT / word) if word.startswith("scripts/") else self.translated(name, word) for word in words]

    def translated(self, name: str, text: str) -> str:
        service = self.services[name]
        for (other, port), here in self.ports.items():
            text = text.replace(f"{other}:{port}", f"127.0.0.1:{here}")
            if other == name:
                text = text.replace(f"localhost:{port}", f"127.0.0.1:{here}")
                text = str(here) if text == str(port) else text
        text = "127.0.0.1" if text == "0.0.0.0" else text
        paths = self.secrets(service) | self.volumes(name)
        # The longest first: one path may be the beginning of another.
        for inside in sorted(paths, key=len, reverse=True):
            text = text.replace(inside, str(paths[inside]))
        assert "/run/secrets/" not in text, f"{name} is not given {text}"
        return text

    def secrets(self, service: Mapping[str, Any]) -> dict[str, Path]:
        given = [item if isinstance(item, dict) else {"source": item} for item in service.get("secrets", [])]
        return {
            f"/run/secrets/{item.get('target', item['source'])}": ROOT / self.file["secrets"][item["source"]]["file"]
            for item in given
        }

    def volumes(self, name: str) -> dict[str, Path]:
        # The node's configuration is read in the container of its apps.
        service = self.services[name.replace("supernode-", "superexec-clientapp-")]
        found = {}
        for line in service.get("volumes", []):
            source, target, *_ = line.split(":")
            found[target] = ROOT / source if source[0] in "./" else self.folder / "volumes" / source
            found[target].mkdir(parents=True, exist_ok=True)
        return found

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
        words = [self.translated(name, word) for word in self.services[name]["healthcheck"]["test"]]
        assert words[0] == "CMD"
        done = subprocess.run(words[1:], env=self.environment, capture_output=True, check=False)
        return done.returncode == 0

    def _await(self, name: str, condition: str) -> None:
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
        # A container takes with it what it started: apps that outlive their executor end here, too.
        marker = f"FLWR_HOME={self.folder}/".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marker in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Replace ``${NAME:-default}`` as compose does, the values quoted for YAML's single quotes."""

    def value(match: re.Match[str]) -> str:
        return environment.get(match["name"], match["default"])

    return re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text)


@contextmanager
def running(command: list[str], log: IO[bytes], env: Mapping[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
