"""Sweeps: what one will run, and how each of its runs is recognised, gone on with, or started."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from fedsvd.config.compose import check_overrides, compose, hydra_settings, sweep_choices
from fedsvd.errors import ConfigError, FedSVDError
from fedsvd.runs.folder import RunFolder, read_json, read_rows, write_json
from fedsvd.runs.record import FAILED, FINISHED

# What a sweep's folder remembers, so that it can go on without being told again.
_WORDS = "sweep.json"


@dataclass(frozen=True)
class SweepPlan:
    """What is about to run.

    Attributes:
        words: For Hydra.
        folder: The sweep's.
        total: Runs in all; of a search, the trials.
    """

    words: tuple[str, ...]
    folder: Path
    total: int


def plan_sweep(words: Sequence[str]) -> SweepPlan:
    """Settle a sweep's folder and the number of its runs, and write down how to go on with it.

    A run's folder is named after what is swept alone (``privacy.target_epsilon=1,seed=0``), so that the same run is
    found in the same place however often the sweep is started.

    Args:
        words: Overrides, perhaps ``resume=FOLDER`` of an earlier sweep among them.

    Raises:
        ConfigError: A folder that is no sweep's, or an extra that is not installed.
    """
    words = _with_earlier(list(words))
    check_overrides(words, multirun=True)
    own = [word for word in words if word.lstrip("~+").startswith("hydra")]
    first = [choices[0] for choices in sweep_choices(words).values()]
    settings = hydra_settings([*first, *own])
    sweeper: Any = OmegaConf.to_container(settings.hydra.sweeper)
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    # The command line wins over what an experiment sweeps, in Hydra as here.
    alternatives = sweep_choices(params) | sweep_choices(words)
    check_overrides(
        [*(p for p in params if not sweep_choices([p]).keys() & sweep_choices(words).keys()), *words], multirun=True
    )
    single = {key: choices[0] for key, choices in alternatives.items() if len(choices) == 1}
    total = int(sweeper.get("n_trials") or math.prod(map(len, alternatives.values())))
    folder = Path(str(settings.hydra.sweep.dir)).resolve()
    _check_same(folder, single)
    given = [word for word in words if not word.startswith("hydra.sweep.dir=")]
    write_json(folder / _WORDS, {"words": given, "total": total})
    ours = [f"hydra.sweep.dir='{folder}'", f"hydra.job.config.override_dirname.exclude_keys=[{','.join(single)}]"]
    return SweepPlan(("--multirun", *given, *ours), folder, total)


def run_or_resume(overrides: Sequence[str], folder: Path) -> float:
    """Run one run of a sweep, go on with it, or recognise that it is finished; return its accuracy.

    What it prints goes into ``output.log``. A run that fails is written down as failed and counts as accuracy 0: a
    learning rate at which training diverges is a bad one, not the end of the sweep.
    """
    paths = RunFolder(folder)
    try:
        if read_json(paths.record).get("state") == FINISHED and paths.adapter.is_dir():
            return _accuracy(paths)
        with _alone(folder), _printing_to(folder / "output.log"):
            return _run(_resumable(overrides, paths), folder)
    except Timeout:
        return 0.0  # Another process is at work in it, and will write down how it ends.
    except FedSVDError as error:
        record = read_json(paths.record)
        write_json(paths.record, {**record, "state": FAILED, "reason": f"{type(error).__name__}: {error}"})
        return 0.0


def _run(words: Sequence[str], folder: Path) -> float:
    # Imported late: a run that is recognised needs none of it.
    from fedsvd import launch

    return launch.run(compose(list(words)), words, folder)


def _with_earlier(words: list[str]) -> list[str]:
    folders = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    if not folders or folders[-1] == "null":
        return words
    folder = Path(folders[-1])
    earlier = read_json(folder / _WORDS).get("words")
    if earlier is None:
        raise ConfigError(
            f"resume = {str(folder)!r} is not the folder of a sweep: it holds no {_WORDS}. Give the folder that the "
            "sweep named, or leave -m out to resume a single run."
        )
    ours = [word for word in words if not word.startswith("resume=")]
    return [*earlier, *ours, f"hydra.sweep.dir='{folder.resolve()}'"]


def _check_same(folder: Path, single: Mapping[str, str]) -> None:
    """See that the runs of a folder share with this sweep what is not swept.

    Raises:
        ConfigError: One does not.
    """
    for path in sorted(folder.rglob("overrides.json")):
        earlier = {next(iter(sweep_choices([word]))): word for word in json.loads(path.read_text(encoding="utf-8"))}
        # A ledger's folder is written down once more, as an absolute path.
        shared = {key: word for key, word in single.items() if key != "privacy.ledger_dir"}
        differ = [word for key, word in shared.items() if earlier.get(key) != word]
        if differ:
            raise ConfigError(
                f"{path.parent} holds a run without {', '.join(differ)}: choose another folder for this sweep with "
                "hydra.sweep.dir=FOLDER."
            )


def _resumable(overrides: Sequence[str], paths: RunFolder) -> list[str]:
    """Add what makes a run go on where it stopped; nothing where it has not come to its first checkpoint."""
    if not any(paths.checkpoints.glob("round-*")):
        return list(overrides)
    return [*overrides, f"resume='{paths.root}'"]


def _accuracy(paths: RunFolder) -> float:
    measured = [row["accuracy"] for row in read_rows(paths.metrics) if row["accuracy"] is not None]
    return float(measured[-1])


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


def _alone(folder: Path) -> contextlib.AbstractContextManager[object]:
    """Hold a run's folder; the lock ends with the process that holds it, however that ends.

    Raises:
        Timeout: Another process holds it.
    """
    return FileLock(folder / ".running").acquire(timeout=0)


def unfinished_runs(folder: Path) -> list[tuple[str, str]]:
    """Return name and reason of every run of a sweep that failed, or that another process is still at work in."""
    found = []
    for path in sorted(folder.rglob("run.json")):
        record = read_json(path)
        if record.get("state") != FINISHED:
            reason = record.get("reason") or "no end yet: another process may be at work in it"
            found.append((path.parent.relative_to(folder).as_posix(), str(reason)))
    return found
