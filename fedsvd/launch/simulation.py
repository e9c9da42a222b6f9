"""A federation on Flower's simulation engine, with ClientApps in Ray actors and the ServerApp in this process."""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import flwr.simulation
import torch
from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsvd.config import FederationConfig
from fedsvd.errors import RunError, StoppedError
from fedsvd.launch.forwarding_grid import ForwardingGrid


class _ConfiguredServerApp(ServerApp):
    """A ServerApp whose context contains the run configuration, which the engine's public API cannot pass."""

    def __init__(self, inner: ServerApp, run_config: UserConfig) -> None:
        super().__init__()
        self._inner = inner
        self._run_config = run_config
        self.engine_stopped = threading.Event()
        self.interrupted = threading.Event()
        self.error: BaseException | None = None

    def __call__(self, grid: Grid, context: Context) -> None:
        context.run_config = dict(self._run_config)
        try:
            self._inner(StoppableGrid(grid, self.engine_stopped, self.interrupted), context)
        except BaseException as error:
            self.error = error
            raise


class StoppableGrid(ForwardingGrid):
    """A grid that stops waiting once the simulation engine has failed or the user has interrupted the run.

    Args:
        grid: The wrapped grid.
        stopped: Set when the engine has failed.
        interrupted: Set when the user has interrupted the run.
    """

    def __init__(self, grid: Grid, stopped: threading.Event, interrupted: threading.Event) -> None:
        super().__init__(grid)
        self._stopped = stopped
        self._interrupted = interrupted

    def get_node_ids(self) -> Iterable[int]:
        """Return the IDs of all nodes; raises as `pull_messages` does."""
        self._check()
        return self._grid.get_node_ids()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies.

        Raises:
            StoppedError: The user has interrupted the run.
            RunError: The engine has failed.
        """
        self._check()
        return self._grid.pull_messages(message_ids)

    def _check(self) -> None:
        if self._interrupted.is_set():
            raise StoppedError("the run was interrupted.")
        if self._stopped.is_set():
            raise RunError("Flower's simulation engine has stopped; no client can answer.")


class _ConfiguredClientApp(ClientApp):
    """A ClientApp whose context contains the run configuration."""

    def __init__(self, inner: ClientApp, run_config: UserConfig) -> None:
        super().__init__()
        self._inner = inner
        self._run_config = run_config

    def __call__(self, message: Message, context: Context) -> Message:
        # The engine rejects a context whose run configuration has changed, so the inner app receives a separate context
        # with the same state object.
        configured = Context(
            context.run_id, context.node_id, context.node_config, context.state, dict(self._run_config)
        )
        return self._inner(message, configured)


def run_simulation(
    server_app: ServerApp, client_app: ClientApp, federation: FederationConfig, run_config: UserConfig
) -> None:
    """Run a federation on Ray.

    Args:
        server_app: Runs in a thread of this process.
        client_app: Runs in Ray actors.
        federation: Number of clients, resources per client, and the address of an existing Ray cluster, if any.
        run_config: The run configuration in both apps' contexts.

    Raises:
        RunError: The engine failed, no client fits on this machine, or no Ray cluster answers at the address.
        KeyboardInterrupt: The user has interrupted the run; it ends after the message that is being processed.
    """
    if federation.ray_address:
        _check_cluster(federation.ray_address)
    else:
        _check_resources(federation)
    init_args: dict[str, Any] = {"log_to_driver": False}
    if federation.ray_address:
        init_args["address"] = federation.ray_address
    resources: dict[str, Any] = {"num_cpus": federation.client_num_cpus, "num_gpus": federation.client_num_gpus}
    server = _ConfiguredServerApp(server_app, run_config)
    saved_environ = dict(os.environ)
    # The second variable hides all GPUs from clients without one; "0", Ray's future default, would show them all.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="1")
    try:
        with _interrupt_sets(server.interrupted), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
            flwr.simulation.run_simulation(
                server_app=server,
                client_app=_ConfiguredClientApp(client_app, run_config),
                num_supernodes=federation.num_clients,
                backend_config={"init_args": init_args, "client_resources": resources},
            )
    except Exception as error:
        server.engine_stopped.set()
        if isinstance(server.error, StoppedError):
            raise KeyboardInterrupt from error
        if server.error is not None:
            raise server.error from error
        raise RunError(
            f"Flower's simulation engine failed: {_root_cause(error)}. See flower.log for details."
        ) from error
    finally:
        # The engine extends PYTHONPATH in every run; restore it for the next run in this process.
        os.environ.clear()
        os.environ.update(saved_environ)


@contextmanager
def _interrupt_sets(interrupted: threading.Event) -> Iterator[None]:
    """Let the first SIGINT set an event; an exception in the main thread would make the engine wait forever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, earlier)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _check_resources(federation: FederationConfig) -> None:
    """Check that one client fits on this machine; Ray would report this only after it has started."""
    available = {"client_num_cpus": os.cpu_count() or 1, "client_num_gpus": torch.cuda.device_count()}
    for key, count in available.items():
        needed = getattr(federation, key)
        if needed > count:
            raise RunError(
                f"federation.{key} = {needed:g}: this machine has {count}, so no client can start. Set at most "
                f"{count}, or federation.ray_address for a cluster with more."
            )


def _check_cluster(address: str) -> None:
    """Check that ``host:port`` accepts connections, since Ray itself would wait forever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"federation.ray_address = {address}: no Ray cluster answers at this address ({error}). Start one with "
            f"`ray start --head --port={port}`, or leave the key out to let the engine start its own."
        ) from error


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
