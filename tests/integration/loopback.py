"""Flower's own services as processes on loopback, each of which a test can kill and start again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Loopback:
    """A SuperLink that keeps its state on disk, a SuperExec for the server's app, and SuperNodes.

    Args:
        folder: For logs, state and ledgers.
        num_nodes: SuperNodes 0 … num_nodes - 1 hold the partitions of these numbers.
    """

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        home = folder / "flower-home"
        home.mkdir(parents=True)
        self.ports = free_ports(num_nodes + 1)
        self.address = f"127.0.0.1:{self.ports[0]}"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "{self.address}"\ninsecure = true\n'
        )
        self.environment = os.environ | {
            "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self.start_superlink()
        self._start("superexec", ["flower-superexec", "--insecure", "--runtime-api-address", self.address])
        for number in range(num_nodes):
            self.start_node(number)

    def start_superlink(self) -> None:
        state = str(self.folder / "superlink.db")
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.ports[0])]
        self._start("superlink", [*command, "--isolation", "process", "--database", state])
        self.wait(lambda: listens(self.ports[0]), 120, "the SuperLink to listen")

    def start_node(self, number: int) -> None:
        config = f'partition-id={number} num-partitions={len(self.ports) - 1} ledger="{self.ledger(number)}"'
        command = ["flower-supernode", "--insecure", "--superlink", self.address, "--host", "127.0.0.1"]
        self._start(f"node-{number}", [*command, "--port", str(self.ports[1 + number]), "--node-config", config])

    def ledger(self, number: int) -> Path:
        return self.folder / f"ledger-{number}.sqlite"

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """SIGKILL a service and all that it has started."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def submit(self, run_dir: Path, *words: str) -> None:
        """Hand a run of the working tree to the SuperLink."""
        app = self.folder / "app"
        if not app.exists():
            app.mkdir()
            for name in ("fedsvd", "server", "client", "conf"):
                shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("pyproject.toml", "README.md"):
                shutil.copy(ROOT / name, app / name)
        line = " ".join([*words, f"run_dir={run_dir}"])
        done = subprocess.run(
            ["flwr", "run", ".", "loop", "--run-config", f'overrides="{line}"'],
            cwd=app, env=self.environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def wait(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                logs = {path.name: path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log")}
                raise TimeoutError(f"waited {seconds} s for {what}: {logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
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
