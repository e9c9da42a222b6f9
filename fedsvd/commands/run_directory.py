"""The directory of the run that ``fedsvd train`` starts or resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from fedsvd.commands.arguments import resumed_folder
from fedsvd.config.compose import check_overrides, compose, hydra_settings
from fedsvd.config.data_keys import check_new_keys
from fedsvd.config.paths import override_key
from fedsvd.config.quoting import path_override, plain_text, resume_command
from fedsvd.config.search_path import merge_search_paths
from fedsvd.errors import ConfigError, FedSVDError
from fedsvd.launch import saved_overrides
from fedsvd.launch.resume import check_directory
from fedsvd.runs.folder import RunFolder
from fedsvd.runs.ownership import create_directory, is_resumable, owned, use_directory
from fedsvd.runs.record import record_failure


@dataclass(frozen=True)
class PreparedRun:
    """A run that is about to start.

    Attributes:
        arguments: Overrides for Hydra.
        folder: The run directory, which exists.
    """

    arguments: Sequence[str]
    folder: Path


def complete_overrides(overrides: Sequence[str]) -> list[str]:
    """Return normalized overrides, after those of the run to resume, if any.

    A run that was interrupted before its first checkpoint starts from the beginning.

    Raises:
        ConfigError: The directory to resume is that of a sweep, or not a run directory.
        ResumeError: An override names another directory than that of the run to resume.
    """
    folder = resumed_folder(overrides)
    if folder is None:
        return list(overrides)
    if (folder / "sweep.json").exists() and not (folder / "overrides.json").exists():
        raise ConfigError(
            f"resume = {str(folder)!r} is a sweep directory; resume the sweep with {resume_command(folder, sweep=True)}"
        )
    saved = saved_overrides(folder)
    check_directory(folder, overrides, ["run_dir", "hydra.run.dir"])
    new = [item for item in overrides if is_resumable(folder) or override_key(item) != "resume"]
    return [*merge_search_paths([*saved, *new]), path_override("hydra.run.dir", folder)]


def prepare_run(overrides: Sequence[str]) -> PreparedRun:
    """Check the overrides of a run and create its directory, which belongs to this run alone.

    Args:
        overrides: Normalized overrides.

    Raises:
        ConfigError: An override is invalid, or the directory holds an earlier run that is not resumed.
        RunError: The directory cannot be created.
    """
    complete, folder = complete_overrides(overrides), resumed_folder(overrides)
    check_overrides(complete, multirun=False)
    if folder is not None:
        return PreparedRun(complete, folder)
    check_new_keys(compose(complete), complete)
    folder = _new_directory(complete)
    others = [item for item in complete if override_key(item) != "hydra.run.dir"]
    return PreparedRun([*others, path_override("hydra.run.dir", folder)], folder)


@contextmanager
def started(folder: RunFolder) -> Iterator[None]:
    """Own the directory of a run; an error before the run's own record is recorded."""
    try:
        with owned(folder.root):
            yield
    except FedSVDError as error:
        if not folder.record.exists():
            record_failure(folder, error)
        raise


def _new_directory(overrides: Sequence[str]) -> Path:
    run_dir = compose(overrides).run_dir
    if run_dir is not None and not any(override_key(item) == "hydra.run.dir" for item in overrides):
        return use_directory(Path(run_dir).absolute(), "run_dir")
    hydra_keys = [item for item in overrides if override_key(item).startswith("hydra")]
    given = plain_text(hydra_keys, "hydra.run.dir") if len(hydra_keys) == 1 else None
    if given is not None:
        return use_directory(Path(given).absolute(), "hydra.run.dir")
    settings = hydra_settings(overrides)
    folder = Path(str(settings.hydra.run.dir)).absolute()
    pattern = OmegaConf.to_container(settings, resolve=False)["hydra"]["run"]["dir"]  # type: ignore[call-overload,index]
    # Two runs that start in the same second would share a directory named after the time.
    return create_directory(folder, "hydra.run.dir") if "${now:" in pattern else use_directory(folder, "hydra.run.dir")
