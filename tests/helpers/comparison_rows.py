"""Settings and rows of small comparisons."""

from pathlib import Path
from typing import Any

import pytest

from fedsvd.cli import main
from fedsvd.comparison.workers import Workers
from fedsvd.config.compare import CompareConfig
from fedsvd.config.compose import compose_compare

SMALL = [
    "compare.only_contenders=[fedsvd,flora]", "compare.only_tasks=[movies]", "compare.epsilons=[0,3]",
    "compare.seeds=[0,1]", "compare.learning_rates=[0.5,1]", "compare.clipping_factors=null",
    "compare.without_privacy={all:['train.head_rounds=0']}", "compare.learning_rates_without_privacy=[0.25]",
    "compare.grid_extensions=0",
]  # fmt: skip


def settings(*overrides: str) -> CompareConfig:
    """Return the settings of a small comparison."""
    return compose_compare([*SMALL, *overrides])[1]


def row(contender: str, accuracy: float, rate: float = 0.5, **given: object) -> dict[str, object]:
    """Return a row of ``results.jsonl``, of a tuning run unless given otherwise."""
    base = {"phase": "tuning", "task": "movies", "contender": contender, "epsilon": 3, "seed": 100}
    return {**base, "learning_rate": rate, "accuracy": accuracy, **given}


class NoWorkers(Workers):
    """Workers of a comparison in which nothing may run."""

    def run(self, groups: Any, overrides: Any, save: Any) -> None:
        """Fail if there is a run."""
        if jobs := [job for group in groups for job in group]:
            pytest.fail(f"{jobs} were run")


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Start a small comparison that must be refused, and return the message on one line."""
    assert main(["compare", "experiment=smoke", *SMALL, *arguments, f"run_dir={folder}"]) == 2
    return " ".join(capsys.readouterr().err.split())
