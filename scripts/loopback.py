"""Flower's services as processes on the loopback interface, which can be killed and restarted one by one.

Used by the tests of complete runs and by ``scripts/bench wire``.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPERLINK, SUPEREXEC = "superlink", "superexec"
# As in docker-compose.yml.
SERVICE = (sys.executable, "-P", "-m", "fedsvd.services")


class Loopback:
    """Context manager of a SuperLink, the executor of server apps and SuperNodes, without TLS.

    Leaving the context stops all of them.

    Args:
        folder: Directory for logs, Flower's home and the SuperLink's state.
        node_configs: The ``--node-config`` of each SuperNode.
        keep_state: Whether the SuperLink stores its state on disk, so that it continues after it was killed.
    """

    def __init__(self, folder: Path, node_configs: Sequence[str], *, keep_state: bool = False) -> None:
        self.folder = folder
        self.node_configs = node_configs
        self.state = str(folder / "superlink.db") if keep_state else ":flwr-in-memory:"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port, *self.node_ports = free_ports(1 + len(node_configs))
        self.address = f"127.0.0.1:{self.port}"
        home = folder / "flower-home"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "{self.address}"\ninsecure = true\n'
        )
        self.environment = os.environ | {
            "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def __enter__(self) -> "Loopback":
        try:
            self.start_superlink()
            self._start(SUPEREXEC, [*SERVICE, "flower-superexec", "--insecure", "--runtime-api-address", self.address])
            for number in range(len(self.node_configs)):
                self.start_node(number)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_superlink(self) -> None:
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)]
        self._start(SUPERLINK, [*command, "--isolation", "process", "--database", self.state])
        self.wait(lambda: listens(self.port), 120, "the SuperLink to listen")

    def start_node(self, number: int) -> None:
        command = [*SERVICE, "flower-supernode", "--insecure", "--superlink", self.address, "--host", "127.0.0.1"]
        port = str(self.node_ports[number])
        self._start(f"node-{number}", [*command, "--port", port, "--node-config", self.node_configs[number]])

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """Send SIGKILL to a service and to all processes that it has started."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def submit(self, app: Path, run_config: str) -> None:
        """Submit a Flower app to the SuperLink."""
        completed = subprocess.run(
            ["flwr", "run", ".", "loop", "--run-config", run_config],
            cwd=app, env=self.environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        if completed.returncode:
            raise RuntimeError(completed.stdout + completed.stderr)

    def train(self, run_dir: Path, *overrides: str) -> None:
        """Submit a run of the working tree to the SuperLink, without waiting for its end."""
        app = self.folder / "app"
        if not app.exists():
            copy_app(app)
        self.submit(app, f'overrides="{" ".join([*overrides, f"run_dir={run_dir}"])}"')

    def wait(self, condition: Callable[[], bool], seconds: float, event: str) -> None:
        """Wait for a condition.

        Raises:
            TimeoutError: If the condition is not met in time or a service ends; includes the end of each log.
        """
        try:
            wait_until(condition, seconds, event, self._ended_services)
        except TimeoutError as error:
            logs = (f"{path.name}: {path.read_text('utf-8')[-1500:]}" for path in self.folder.glob("*.log"))
            raise TimeoutError("\n".join([f"{error}:", *logs])) from None

    def _ended_services(self) -> str:
        return ", ".join(name for name, process in self.processes.items() if process.poll() is not None)

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def copy_app(to: Path) -> None:
    """Copy the files of the Flower app from the working tree."""
    to.mkdir()
    for name in ("fedsvd", "server", "client", "conf"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, to / name)


def wait_until(condition: Callable[[], bool], seconds: float, event: str, ended: Callable[[], str] = str) -> None:
    """Wait for a condition.

    Args:
        condition: Returns whether the condition is met.
        seconds: Timeout.
        event: Description of the condition for error messages.
        ended: Returns the names of processes that ended unexpectedly; empty if there are none.

    Raises:
        TimeoutError: If the condition is not met in time, or a process ended unexpectedly.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if names := ended():
            raise TimeoutError(f"{names} ended before {event}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {event}")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
