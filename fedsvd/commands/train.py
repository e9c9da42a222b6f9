"""``fedsvd train``: check the overrides, then hand over to Hydra."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedsvd.compose import check_overrides, conf_dir, from_dictconfig
from fedsvd.errors import ConfigError, FedSVDError


def run(words: Sequence[str]) -> None:
    """Check the overrides, then hand over to Hydra.

    Raises:
        ConfigError: A key, type or value that is not allowed, before anything is loaded.
    """
    flags = [word for word in words if word.startswith("-")]
    multirun = "-m" in flags or "--multirun" in flags
    if flags and flags[0] not in ("-m", "--multirun"):
        overrides: list[str] = []
    else:
        overrides = [word for word in words if not word.startswith("-")]
    check_overrides(overrides, multirun=multirun)
    sys.argv = ["fedsvd", *_resumed(words, overrides, multirun)]
    failures: list[FedSVDError] = []

    def job(cfg: DictConfig) -> float:
        try:
            return _run_job(cfg)
        except FedSVDError as error:
            # Hydra would print a trace and end the process; so a sweep's other jobs go on, and the error is told last.
            failures.append(error)
            return math.nan

    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()
    if failures:
        raise failures[0]


def _resumed(words: Sequence[str], overrides: Sequence[str], multirun: bool) -> list[str]:
    """Put the earlier run's overrides before the new ones, and its folder in the place of a new one."""
    folders = [item.removeprefix("resume=") for item in overrides if item.startswith("resume=")]
    if not folders or folders[-1] == "null":
        return list(words)
    if multirun:
        raise ConfigError("resume cannot be swept; resume one run at a time.")
    # Imported late: it loads torch and transformers, which a wrong key should not have to wait for.
    from fedsvd.launch import earlier_overrides

    folder = Path(folders[-1])
    return [*earlier_overrides(folder), *words, f"hydra.run.dir='{folder}'"]


def _run_job(cfg: DictConfig) -> float:
    from fedsvd import launch

    hydra_config = HydraConfig.get()
    return launch.run(from_dictconfig(cfg), list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir))
