"""Run a federation in this process or on Flower's simulation engine; both take the very same two apps."""

from __future__ import annotations

import importlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsvd.compose import app_root
from fedsvd.config import Config
from fedsvd.errors import ConfigError, RunError
from fedsvd.launch.local import run_local
from fedsvd.launch.simulation import run_simulation
from fedsvd.methods import build_method, check_method
from fedsvd.privacy.accounting import check_delta
from fedsvd.report.plots import plot_partitions
from fedsvd.run_folder import RunFolder, read_rows, write_json
from fedsvd.workspace import partition_counts, resolve_device


def check(config: Config) -> None:
    """Raise what can be known to be wrong before anything is loaded.

    Raises:
        ConfigError: A method option, a device or a federation that is not there.
        PrivacyError: A δ that the accountant cannot count at.
    """
    check_method(build_method(config.method), config)
    check_delta(config.privacy.target_delta, config.privacy.accountant)
    resolve_device(config.device)


def run(config: Config, overrides: Sequence[str], folder: Path) -> float:
    """Run a federation and return its last held-out accuracy.

    Args:
        config: The composed configuration.
        overrides: What it was composed from; the apps compose it again from these.
        folder: The run's folder.

    Raises:
        ConfigError: See `check`.
        RunError: The run ended without an evaluation.
    """
    check(config)
    run_folder = RunFolder(folder.resolve())
    if config.privacy.ledger_dir:
        # Workers and later processes may start in other folders, and a ledger elsewhere would be a new one.
        overrides = [*overrides, f"privacy.ledger_dir={_quoted(Path(config.privacy.ledger_dir).resolve())}"]
    write_json(run_folder.overrides, [item for item in overrides if not item.startswith(("resume=", "run_dir="))])
    given = [item for item in overrides if not item.startswith("run_dir=")]
    run_config: UserConfig = {"overrides": shlex.join([*given, f"run_dir={_quoted(run_folder.root)}"])}
    plot_partitions(partition_counts(config), run_folder.partitions_plot)
    with _quiet_flower(run_folder.root / "flower.log"):
        server_app, client_app = load_apps()
        if config.federation.name == "local":
            run_local(server_app, client_app, config.federation.num_clients, run_config)
        elif config.federation.name == "simulation":
            run_simulation(server_app, client_app, config.federation, run_config)
        else:
            raise ConfigError(f"federation.name = {config.federation.name!r}; allowed: local, simulation.")
    measured = [row["accuracy"] for row in read_rows(run_folder.metrics) if row["accuracy"] is not None]
    if not measured:
        raise RunError(f"the run in {run_folder.root} ended without an evaluation.")
    return float(measured[-1])


def earlier_overrides(folder: Path) -> list[str]:
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
    root = str(app_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module("server.app").app, importlib.import_module("client.app").app


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
