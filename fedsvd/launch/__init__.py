"""Run a federation in this process, on Flower's simulation engine or on real nodes, with the same two apps."""

from __future__ import annotations

import importlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsvd.config import Config
from fedsvd.config.compose import app_root, compose, read_yaml
from fedsvd.config.earlier_versions import pinned_overrides
from fedsvd.config.overrides import quote_separator
from fedsvd.config.paths import absolute_paths
from fedsvd.config.quoting import path_override
from fedsvd.config.run_config import own_run_config
from fedsvd.config.task import TASKS, last_value
from fedsvd.errors import BudgetExceededError, ConfigError, DataError, RunError
from fedsvd.launch.client_devices import check_client_devices, cpu_notice
from fedsvd.launch.in_process import run_local
from fedsvd.launch.remote import run_remote
from fedsvd.launch.resume import check_settings
from fedsvd.runs.folder import RunFolder, read_rows, write_json, write_text
from fedsvd.runtime.changed_files import forget_changed_files
from fedsvd.runtime.model import resolve_device
from fedsvd.runtime.run_checks import check_run
from fedsvd.tracking import check_tracking


def check_config(config: Config) -> None:
    """Check a configuration before any data or model is loaded.

    Raises:
        ConfigError: As `check_run`; also if a device or tracking library is not available, simulated clients do not
            see the device, or ``data=node`` is used without real nodes.
        PrivacyError: As `check_run`.
    """
    check_run(config)
    if config.federation.name == "remote":
        return
    resolve_device(config.device)
    if config.federation.name == "simulation":
        check_client_devices(config)
    check_tracking(config.tracking)
    if config.data.name == "node":
        raise ConfigError(
            f"data=node needs nodes with their own data, and federation={config.federation.name} has none: use "
            "federation=remote, or another data group (such as data=csv) with a partition."
        )


def run(config: Config, overrides: Sequence[str], folder: Path) -> float:
    """Run a federation and return its last held-out accuracy, or NaN if there is none.

    Of other tasks than classification, it is the first metric in `fedsvd.config.task.TASKS`.

    Args:
        config: The composed configuration.
        overrides: The overrides it was composed from; the apps compose it again from these.
        folder: The run directory.

    Raises:
        ConfigError: See `check_config`.
        ResumeError: The run to resume had other settings or data; no file of the run has changed.
        RunError: The run ended without an evaluation.
    """
    forget_changed_files(config)
    check_config(config)
    run_folder = RunFolder(folder.resolve())
    overrides = absolute_paths(overrides, config)
    if config.resume is not None:
        # The configuration with absolute paths, as the earlier process stored it.
        check_settings(run_folder, compose(overrides))
    with _overrides_written(run_folder.overrides, overrides):
        if config.federation.name == "remote":
            run_remote(config.federation, overrides, run_folder)
        else:
            _run_on_this_machine(config, overrides, run_folder)
    rows = read_rows(run_folder.metrics)
    if config.data.name != "node" and all(row["loss"] is None for row in rows):
        raise RunError(f"the run in {run_folder.root} ended without an evaluation.")
    score = last_value(rows, TASKS[config.task].metrics[0])
    return math.nan if score is None else score


@contextmanager
def _overrides_written(path: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Write the overrides of a run; restore the earlier ones if the run cannot start with the new ones."""
    earlier = path.read_text(encoding="utf-8") if path.exists() else None
    write_json(path, [item for item in overrides if not item.startswith(("resume=", "run_dir="))])
    try:
        yield
    except (ConfigError, DataError, BudgetExceededError):
        if earlier is not None:
            write_text(path, earlier)
        raise


def _run_on_this_machine(config: Config, overrides: Sequence[str], run_folder: RunFolder) -> None:
    others = [item for item in overrides if not item.startswith("run_dir=")]
    run_config = own_run_config([*others, path_override("run_dir", run_folder.root)])
    with _flower_log_to(run_folder.root / "flower.log"):
        server_app, client_app = load_apps()
        if config.federation.name == "simulation":
            # Flower's engine brings a web server and a database, which no other run needs.
            from fedsvd.launch.packing import packed_federation
            from fedsvd.launch.simulation import run_simulation

            if notice := cpu_notice(config):
                print(notice)
            run_simulation(server_app, client_app, packed_federation(config, others), run_config)
        else:
            run_local(server_app, client_app, config.federation.num_clients, run_config)


def saved_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run was started with, and those that keep the behavior of an earlier version.

    Raises:
        ConfigError: It is not a run directory.
    """
    paths = RunFolder(folder)
    try:
        # Earlier versions stored separators from Python without quotation marks, which Hydra itself cannot parse.
        saved = [quote_separator(item) for item in json.loads(paths.overrides.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"resume = {str(folder)!r} is not a run directory: {paths.overrides.name} cannot be read ({error}). Give "
            "the directory of an earlier run."
        ) from error
    if not paths.config.is_file():
        return saved
    return [*saved, *pinned_overrides(read_yaml(paths.config), compose(saved))]


def load_apps() -> tuple[ServerApp, ClientApp]:
    """Load the ServerApp and the ClientApp by module name, as Flower does."""
    return _import_app_module("server.app").app, _import_app_module("client.app").app


def check_node(node_config: str, overrides: Sequence[str]) -> list[str]:
    """Check a node's configuration and data against a run, and return a description of the node.

    Args:
        node_config: The value of ``flower-supernode --node-config``.
        overrides: The overrides of the run.

    Raises:
        FedSVDError: The node cannot take part in the run; the message gives the reason.
    """
    description: list[str] = _import_app_module("client.node_check").check_node(node_config, compose(overrides))
    return description


def _import_app_module(name: str) -> ModuleType:
    root = str(app_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module(name)


@contextmanager
def _flower_log_to(path: Path) -> Iterator[None]:
    """Send Flower's log to a file instead of the console, inside the context."""
    flower = logging.getLogger("flwr")
    handlers, propagate = list(flower.handlers), flower.propagate
    path.parent.mkdir(parents=True, exist_ok=True)
    file_handler = logging.FileHandler(path, encoding="utf-8")
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    flower.handlers, flower.propagate = [file_handler], False
    try:
        yield
    finally:
        flower.handlers, flower.propagate = handlers, propagate
        file_handler.close()
