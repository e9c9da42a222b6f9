"""``fedsvd train``: check the overrides, then hand over to Hydra."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from fedsvd.config.compose import check_overrides, conf_dir, from_dictconfig
from fedsvd.errors import ConfigError, FedSVDError, RunError
from fedsvd.launch.sweep import plan_sweep, run_or_resume, unfinished_runs
from fedsvd.report.sweep_progress import SweepReporter


def run(words: Sequence[str]) -> None:
    """Check the overrides, then hand over to Hydra.

    Raises:
        ConfigError: A key, type or value that is not allowed, before anything is loaded.
        RunError: Runs of a sweep that failed, told after all others are done.
    """
    flags = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if not word.startswith("-")]
    if flags and set(flags) <= {"-m", "--multirun"}:
        _sweep(overrides)
        return
    if flags:
        overrides = []
    check_overrides(overrides, multirun=False)
    sys.argv = ["fedsvd", *_resumed(words, overrides)]
    raised: list[FedSVDError] = []

    def job(cfg: DictConfig) -> float:
        try:
            return _run_job(cfg)
        except FedSVDError as error:
            # Hydra would print a trace and end the process; so the error is told once it is done.
            raised.append(error)
            return math.nan

    _hydra_main(job)
    if raised:
        raise raised[0]


def _sweep(overrides: Sequence[str]) -> None:
    plan = plan_sweep(overrides)
    sys.argv = ["fedsvd", *plan.words]
    # The stream of now: runs in this process send theirs into a file each.
    console = Console(file=sys.stdout)
    again = f"fedsvd train -m resume='{plan.folder}'"
    try:
        with SweepReporter(plan.folder, plan.total, console):
            _hydra_main(sweep_job)
    except KeyboardInterrupt:
        raise RunError(f"interrupted; {again} goes on where it stopped.") from None
    console.print(f"fedsvd report '{plan.folder}'  writes a page on all runs", soft_wrap=True, highlight=False)
    failed = unfinished_runs(plan.folder)
    if failed:
        name, reason = failed[0]
        raise RunError(f"{len(failed)} of {plan.total} runs did not finish ({name}: {reason}); {again} tries again.")


def sweep_job(cfg: DictConfig) -> float:
    """Run one run of a sweep; at the top of the module, where other processes find it."""
    hydra_config = HydraConfig.get()
    return run_or_resume(list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir))


def _hydra_main(job: Callable[[DictConfig], float]) -> None:
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()


def _resumed(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Put the earlier run's overrides before the new ones, and its folder in the place of a new one."""
    folders = [item.removeprefix("resume=") for item in overrides if item.startswith("resume=")]
    if not folders or folders[-1] == "null":
        return list(words)
    # Imported late: it loads torch and transformers, which a wrong key should not have to wait for.
    from fedsvd.launch import saved_overrides

    folder = Path(folders[-1])
    if (folder / "sweep.json").exists() and not (folder / "overrides.json").exists():
        raise ConfigError(f"resume = {str(folder)!r} is the folder of a sweep: fedsvd train -m resume='{folder}'.")
    return [*saved_overrides(folder), *words, f"hydra.run.dir='{folder}'"]


def _run_job(cfg: DictConfig) -> float:
    from fedsvd import launch

    hydra_config = HydraConfig.get()
    return launch.run(from_dictconfig(cfg), list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir))
