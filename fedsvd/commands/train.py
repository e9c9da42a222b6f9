"""``fedsvd train``: check the overrides, then run Hydra."""

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


def run(arguments: Sequence[str]) -> None:
    """Check the overrides, then run Hydra.

    Raises:
        ConfigError: A key, type or value is invalid; raised before anything is loaded.
        RunError: Runs of a sweep failed; raised after all others are done.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if flags and set(flags) <= {"-m", "--multirun"}:
        _sweep(overrides)
        return
    if flags:
        overrides = []
    check_overrides(overrides, multirun=False)
    sys.argv = ["fedsvd", *_expand_resume(arguments, overrides)]
    errors: list[FedSVDError] = []

    def job(cfg: DictConfig) -> float:
        try:
            return _run_job(cfg)
        except FedSVDError as error:
            # Hydra would print a traceback and exit, so the error is raised again after it has returned.
            errors.append(error)
            return math.nan

    _hydra_main(job)
    if errors:
        raise errors[0]


def _sweep(overrides: Sequence[str]) -> None:
    plan = plan_sweep(overrides)
    sys.argv = ["fedsvd", *plan.arguments]
    # Bound to the current standard output, because runs in this process redirect theirs to a file each.
    console = Console(file=sys.stdout)
    resume_command = f"fedsvd train -m resume='{plan.folder}'"
    try:
        with SweepReporter(plan.folder, plan.total, console):
            _hydra_main(sweep_job)
    except KeyboardInterrupt:
        raise RunError(f"the sweep was interrupted; resume it with {resume_command}.") from None
    console.print(f"to write a report on all runs: fedsvd report '{plan.folder}'", soft_wrap=True, highlight=False)
    failed = unfinished_runs(plan.folder)
    if failed:
        name, reason = failed[0]
        raise RunError(
            f"{len(failed)} of {plan.total} runs did not finish ({name}: {reason}); run them again with "
            f"{resume_command}."
        )


def sweep_job(cfg: DictConfig) -> float:
    """Run one run of a sweep; defined at module level so that worker processes can import it."""
    hydra_config = HydraConfig.get()
    return run_or_resume(list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir))


def _hydra_main(job: Callable[[DictConfig], float]) -> None:
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()


def _expand_resume(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the arguments for Hydra.

    With ``resume``, the earlier run's overrides come first, and its directory is used instead of a new one.


    Raises:
        ConfigError: The directory to resume is that of a sweep.
    """
    folders = [item.removeprefix("resume=") for item in overrides if item.startswith("resume=")]
    if not folders or folders[-1] == "null":
        return list(arguments)
    # Imported late: importing torch and transformers would delay configuration errors.
    from fedsvd.launch import saved_overrides

    folder = Path(folders[-1])
    if (folder / "sweep.json").exists() and not (folder / "overrides.json").exists():
        raise ConfigError(
            f"resume = {str(folder)!r} is a sweep directory; resume the sweep with fedsvd train -m resume='{folder}'."
        )
    return [*saved_overrides(folder), *arguments, f"hydra.run.dir='{folder}'"]


def _run_job(cfg: DictConfig) -> float:
    from fedsvd import launch

    hydra_config = HydraConfig.get()
    return launch.run(from_dictconfig(cfg), list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir))
