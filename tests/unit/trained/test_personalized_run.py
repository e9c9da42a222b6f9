"""Runs whose clients have models of their own."""

from pathlib import Path

import pytest

import fedsvd
from fedsvd.errors import RunError
from fedsvd.trained.run import read_run


def test_personalized_method_has_no_single_model(tmp_path: Path) -> None:
    overrides = ("experiment=smoke", "plots=false", "method=fedsa_lora", "train.num_rounds=1", "privacy=none")
    fedsvd.train(*overrides, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match="each client keeps its own B"):
        read_run(tmp_path / "run")
