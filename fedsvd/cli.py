"""The ``fedsvd`` command."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from fedsvd import __version__
from fedsvd.compose import check_overrides, conf_dir, from_dictconfig
from fedsvd.errors import ConfigError, FedSVDError

USAGE = """\
usage: fedsvd train [KEY=VALUE …]        run a federation (Hydra overrides)
       fedsvd train -m KEY=V1,V2 …       sweep
       fedsvd train --cfg job            print the composed configuration
       fedsvd train resume=RUN_FOLDER    go on with a run that was cut off
       fedsvd --version

examples:
  fedsvd train experiment=smoke
  fedsvd train experiment=demo method=ffa_lora privacy.target_epsilon=3
  fedsvd train -m privacy.target_epsilon=1,3,6 method=fedsvd,ffa_lora
"""
# Said before flwr is imported: no run of ours reports anything to anybody.
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed, 2 wrong usage or configuration."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"fedsvd {__version__}")
        return 0
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        if words[0] != "train":
            raise ConfigError(f"there is no command {words[0]!r}; allowed: train. See fedsvd --help.")
        train(words[1:])
    except FedSVDError as error:
        Console(stderr=True).print(f"[bold red]error[/bold red] {error}", soft_wrap=True, highlight=False)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def train(words: Sequence[str]) -> None:
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
            return _run(cfg)
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


def _run(cfg: DictConfig) -> float:
    from fedsvd.launch import run

    hydra_config = HydraConfig.get()
    return run(from_dictconfig(cfg), list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir))


if __name__ == "__main__":
    sys.exit(main())
