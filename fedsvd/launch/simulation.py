"""A federation on Flower's simulation engine: ClientApps in Ray actors, the ServerApp in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import flwr.simulation
from flwr.app import Context, Message
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsvd.config import FederationConfig


class _ConfiguredServerApp(ServerApp):
    """A ServerApp that finds the run's configuration in its context; the engine's public entry passes none."""

    def __init__(self, inner: ServerApp, run_config: UserConfig) -> None:
        super().__init__()
        self._inner = inner
        self._run_config = run_config

    def __call__(self, grid: Grid, context: Context) -> None:
        context.run_config = dict(self._run_config)
        self._inner(grid, context)


class _ConfiguredClientApp(ClientApp):
    """The same for a ClientApp."""

    def __init__(self, inner: ClientApp, run_config: UserConfig) -> None:
        super().__init__()
        self._inner = inner
        self._run_config = run_config

    def __call__(self, message: Message, context: Context) -> Message:
        context.run_config = dict(self._run_config)
        return self._inner(message, context)


def run_simulation(
    server_app: ServerApp, client_app: ClientApp, federation: FederationConfig, run_config: UserConfig, app_root: Path
) -> None:
    """Run a federation on Ray.

    Args:
        server_app: Runs in a thread of this process.
        client_app: Runs in Ray actors.
        federation: Number of clients, resources of each, and the address of a Ray cluster that is already up.
        run_config: What both apps' contexts carry.
        app_root: Folder of the apps' modules, which the actors import them from.
    """
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(app_root), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": str(max(1, int(federation.client_num_cpus))),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    init_args: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "include_dashboard": False}
    if federation.ray_address:
        init_args = {"runtime_env": {"env_vars": environment}, "address": federation.ray_address}
    before = dict(os.environ)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    try:
        flwr.simulation.run_simulation(
            server_app=_ConfiguredServerApp(server_app, run_config),
            client_app=_ConfiguredClientApp(client_app, run_config),
            num_supernodes=federation.num_clients,
            backend_config={
                "init_args": init_args,
                "client_resources": {"num_cpus": federation.client_num_cpus, "num_gpus": federation.client_num_gpus},
            },
        )
    finally:
        # The engine lets PYTHONPATH grow with every run; the next one in this process must find what this one found.
        os.environ.clear()
        os.environ.update(before)
