"""Run a federation in this process, on Flower's simulation engine or on real nodes: all take the same two apps."""

from __future__ import annotations

import importlib
import json
import logging
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsvd.config import Config
from fedsvd.config.compose import app_root, compose
from fedsvd.errors import ConfigError, RunError
from fedsvd.launch.in_process import run_local
from fedsvd.launch.remote import run_remote
from fedsvd.launch.simulation import run_simulation
from fedsvd.methods import build_method, check_method
from fedsvd.privacy.accounting import check_delta
from fedsvd.runs.folder import RunFolder, read_rows, write_json
from fedsvd.runtime.model import resolve_device
from fedsvd.tracking import check_tracking


def check_config(config: Config) -> None:
    """Raise what can be known to be wrong before anything is loaded.

    Raises:
        ConfigError: A method option, a device, a federation or a tracking library that is not there, or nodes' own data
            without nodes.
        PrivacyError: A δ that the accountant cannot count at.
    """
    check_method(build_method(config.method), config)
    check_delta(config.privacy.target_delta, config.privacy.accountant)
    if config.federation.name == "remote":
        return
    resolve_device(config.device)
    check_tracking(config.tracking)
    if config.data.name == "node":
        raise ConfigError(
            f"data=node needs nodes that bring their own data, and federation={config.federation.name} has none: take "
            "federation=remote, or data=csv and the like with a partition."
        )


def run(config: Config, overrides: Sequence[str], folder: Path) -> float:
    """Run a federation and return its last held-out accuracy, or NaN where nothing is held out.

    Args:
        config: The composed configuration.
        overrides: What it was composed from; the apps compose it again from these.
        folder: The run's folder.

    Raises:
        ConfigError: See `check_config`.
        RunError: The run ended without an evaluation.
    """
    check_config(config)
    run_folder = RunFolder(folder.resolve())
    remote = config.federation.name == "remote"
    if config.privacy.ledger_dir and not remote:
        # Workers and later processes may start in other folders, and a ledger elsewhere would be a new one.
        overrides = [*overrides, f"privacy.ledger_dir={_quoted(Path(config.privacy.ledger_dir).resolve())}"]
    write_json(run_folder.overrides, [item for item in overrides if not item.startswith(("resume=", "run_dir="))])
    if remote:
        run_remote(config.federation, overrides, run_folder)
    else:
        _run_here(config, overrides, run_folder)
    measured = [row["accuracy"] for row in read_rows(run_folder.metrics) if row["accuracy"] is not None]
    if not measured and config.data.name == "node":
        return math.nan
    if not measured:
        raise RunError(f"the run in {run_folder.root} ended without an evaluation.")
    return float(measured[-1])


def _run_here(config: Config, overrides: Sequence[str], run_folder: RunFolder) -> None:
    given = [item for item in overrides if not item.startswith("run_dir=")]
    run_config: UserConfig = {"overrides": shlex.join([*given, f"run_dir={_quoted(run_folder.root)}"])}
    with _quiet_flower(run_folder.root / "flower.log"):
        server_app, client_app = load_apps()
        if config.federation.name == "simulation":
            run_simulation(server_app, client_app, config.federation, run_config)
        else:
            run_local(server_app, client_app, config.federation.num_clients, run_config)


def saved_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run folder was started with.

    Raises:
        ConfigError: The folder is not a run's.
    """
    path = RunFolder(folder).overrides
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"resume = {str(folder)!r} is not the folder of a run: {path.name} cannot be read ({error})."
        ) from error


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "\\'") + "'"


def load_apps() -> tuple[ServerApp, ClientApp]:
    """Load the two apps as Flower does: by name, from the folder that holds them."""
    return _module("server.app").app, _module("client.app").app


def check_node(node_config: str, overrides: Sequence[str]) -> list[str]:
    """Hold a node's configuration, and the data that it names, against a run; return what there is.

    Args:
        node_config: As ``flower-supernode --node-config`` takes it.
        overrides: The run's.

    Raises:
        FedSVDError: They do not fit, and why.
    """
    found: list[str] = _module("client.node_check").check_node(node_config, compose(overrides))
    return found


def _module(name: str) -> ModuleType:
    root = str(app_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module(name)


@contextmanager
def _quiet_flower(path: Path) -> Iterator[None]:
    """Send Flower's log to a file for the time of a run; the reporter tells the rest."""
    flower = logging.getLogger("flwr")
    handlers, propagate = list(flower.handlers), flower.propagate
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    flower.handlers, flower.propagate = [to_file], False
    try:
        yield
    finally:
        flower.handlers, flower.propagate = handlers, propagate
        to_file.close()
