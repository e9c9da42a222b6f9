"""``fedsvd train``: check the overrides, then run Hydra."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console

from fedsvd.commands.arguments import normalize
from fedsvd.commands.run_directory import PreparedRun, complete_overrides, prepare_run, started
from fedsvd.config.compose import conf_dir, from_dictconfig
from fedsvd.config.paths import override_key
from fedsvd.config.quoting import command, resume_command
from fedsvd.config.search_path import search_paths
from fedsvd.errors import ConfigError, FedSVDError, Interruption, RunError
from fedsvd.launch.sweep import plan_sweep, run_or_resume, unfinished_runs
from fedsvd.report.literal import literal
from fedsvd.report.sweep_progress import SweepReporter
from fedsvd.runs.folder import RunFolder
from fedsvd.runs.ownership import completed_rounds
from fedsvd.runs.storage import storage_errors

_FULL_ERROR = "HYDRA_FULL_ERROR"
_MULTIRUN = {"-m", "--multirun"}
# Hydra's own options that would run another configuration than the one that both apps compose.
_UNSUPPORTED = ("-cp", "--config-path", "-cn", "--config-name")


def run(arguments: Sequence[str]) -> None:
    """Check the overrides, then run Hydra.

    Raises:
        ConfigError: A key, type or value is invalid; raised before anything is loaded.
        RunError: The run failed, or runs of a sweep did; raised after all others are done.
        Interruption: The user has interrupted the run.
    """
    arguments = [argument for argument in normalize(arguments) if argument not in ("-r", "--run")]
    flags = [argument for argument in arguments if argument.startswith("-")]
    _check_flags(flags)
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if not flags:
        _run(overrides)
    elif set(flags) <= _MULTIRUN:
        _sweep(overrides)
    else:
        # Overrides are put together, since argparse reads them as one group; values of options have no "=".
        overrides = [item for item in overrides if "=" in item]
        options = [argument for argument in arguments if argument not in overrides]
        _hydra_main([*options, *complete_overrides(overrides)], _nothing, Path.cwd())


def _check_flags(flags: Sequence[str]) -> None:
    for flag in flags:
        if flag.partition("=")[0] in _UNSUPPORTED:
            raise ConfigError(
                f"fedsvd train has no option {flag}: add a directory of YAML files with --config-dir DIR, and choose "
                "among them with experiment=NAME."
            )


def _run(overrides: Sequence[str]) -> None:
    prepared = prepare_run(overrides)
    folder = RunFolder(prepared.folder)
    try:
        with started(folder):
            _hydra_main(prepared.arguments, _run_job, folder.root)
    except KeyboardInterrupt as stopped:
        raise _interruption(prepared, stopped) from None


def _interruption(prepared: PreparedRun, stopped: KeyboardInterrupt) -> KeyboardInterrupt:
    if isinstance(stopped, Interruption) or not RunFolder(prepared.folder).overrides.exists():
        return stopped
    rounds, resume = completed_rounds(prepared.folder), resume_command(prepared.folder)
    if rounds is None:
        return Interruption(f"the run in {prepared.folder} had not started to train.", f"start it again with {resume}")
    return Interruption(f"{rounds} rounds are complete and kept in {prepared.folder}.", f"continue with {resume}")


def _sweep(overrides: Sequence[str]) -> None:
    if any(override_key(item) == "run_dir" for item in overrides):
        raise ConfigError("run_dir is not possible with -m, where each run has its own directory: set hydra.sweep.dir.")
    plan = plan_sweep(overrides)
    # Bound to the current standard output, because runs in this process redirect theirs to a file each.
    console = Console(file=sys.stdout)
    resume = resume_command(plan.folder, sweep=True)
    try:
        with chdir(plan.working_directory), SweepReporter(plan.folder, plan.total, console):
            _hydra_main(plan.arguments, sweep_job, plan.folder)
    except ValueError:
        # A search without any completed trial has no best one.
        if not unfinished_runs(plan.folder):
            raise
    except KeyboardInterrupt:
        kept = f"finished runs and completed rounds are kept in {plan.folder}."
        raise Interruption(kept, f"continue with {resume}") from None
    report = command(["report", str(plan.folder)])
    console.print(literal(f"to write a report on all runs: {report}"), soft_wrap=True)
    failed = unfinished_runs(plan.folder)
    if failed:
        name, reason = failed[0]
        raise RunError(
            f"{len(failed)} of {plan.total} runs did not finish ({name}: {reason}); run them again with {resume}"
        )


def sweep_job(cfg: DictConfig) -> float:
    """Run one run of a sweep; defined at module level so that worker processes can import it."""
    settings = HydraConfig.get()
    accuracy = run_or_resume(_job_overrides(), Path(settings.runtime.output_dir))
    if math.isnan(accuracy) and "optuna" in settings.sweeper._target_:
        raise RunError("the run failed; its run.json has the reason.")  # A search must not read this as a result.
    return accuracy


def _run_job(cfg: DictConfig) -> float:
    from fedsvd import launch

    return launch.run(from_dictconfig(cfg), _job_overrides(), Path(HydraConfig.get().runtime.output_dir))


def _nothing(cfg: DictConfig) -> float:
    return math.nan


def _job_overrides() -> list[str]:
    """Return the overrides of the running job, with the directories of YAML files that it was composed from."""
    overrides = HydraConfig.get().overrides
    return [*search_paths(overrides.hydra), *overrides.task]


def _hydra_main(arguments: Sequence[str], job: Callable[[DictConfig], float], folder: Path) -> None:
    """Run Hydra, which writes to a directory.

    Raises:
        ConfigError: Hydra does not accept the arguments.
        RunError: A file of Hydra cannot be written.
    """
    errors: list[FedSVDError] = []

    def guarded(cfg: DictConfig) -> float:
        try:
            with storage_errors(folder):
                return job(cfg)
        except FedSVDError as error:
            # Hydra would print the overrides, so the error is raised again after it has returned.
            errors.append(error)
            return math.nan

    sys.argv = ["fedsvd", *arguments]
    decorate = hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
    with _hydra_raises_errors(), storage_errors(folder):
        try:
            decorate(guarded if job is not sweep_job else sweep_job)()
        except HydraException as error:
            raise ConfigError(str(error).splitlines()[0]) from error
    if errors:
        raise errors[0]


@contextmanager
def _hydra_raises_errors() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing a traceback and exiting, inside the context."""
    earlier = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[_FULL_ERROR]
        else:
            os.environ[_FULL_ERROR] = earlier
