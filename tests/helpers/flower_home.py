"""Flower's command line with a home and a SuperLink of its own."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopback import free_ports

# Ray gives its workers the lowest priority, with which they hardly start on a busy machine.
RAY = {"RAY_worker_niceness": "0"}


@contextmanager
def flower_home(home: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of ``flwr`` commands; in the end, stop the SuperLink that ``flwr run`` leaves running."""
    home.mkdir()
    # Another test may run a SuperLink at Flower's usual ports.
    http_port, control_port = map(str, free_ports(2))
    try:
        yield (
            os.environ
            | RAY
            | {
                "FLWR_HOME": str(home),
                "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http_port,
                "FLWR_LOCAL_CONTROL_API_PORT": control_port,
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
                "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            }
        )
    finally:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGTERM)
            except (OSError, ValueError):
                continue
