"""Composition inside a Hydra application, sweeps, and the location of conf/."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedsvd.config.compose import app_root, check_overrides
from fedsvd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


SWEEPS = [
    (["privacy.target_epsilon=1,3,6", "method=fedsvd,ffa_lora"], None),
    (["privacy.target_epsilon=1,3,-6", "method=fedsvd,ffa_lora"], "privacy.target_epsilon = -6"),
    (["method=fedsvd,ffa", "seed=1"], "method = 'ffa'"),
    (["seed=1,2", "train.batch_size=8,many"], "train.batch_size = 'many'"),
    (["train.num_rounds=range(1,4)"], None),
    (["train.num_rounds=range(2,-1,-1)"], "train.num_rounds = 0"),
    (["seed=range(3,3)"], "no values to sweep over"),
    (["seed=range(1,9,0)"], "cannot be swept"),
    (["model=choice(tiny,tinny)"], "did you mean tiny?"),
    (["method=glob(*)"], None),
    (["method=glob(x*)"], "no values to sweep over"),
    (["train.learning_rate=interval(0.1,1)"], None),
    (["train.learning_rate=interval(0,1)"], "train.learning_rate = 0.0"),
    (["federation.num_clients=4,2", "federation.clients_per_round=3"], "clients_per_round = 3"),
    (["hydra.sweep.dir=here", "+hydra/sweeper=basic", "seed=1,2"], None),
    (["hydra/launcher=joblib", "train.num_rounds=0"], "train.num_rounds = 0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "message"), SWEEPS, ids=[" ".join(row[0]) for row in SWEEPS])
def test_every_choice_of_a_sweep_is_checked(overrides: list[str], message: str | None) -> None:
    if message is None:
        check_overrides(overrides, multirun=True)
    else:
        with pytest.raises(ConfigError, match=re.escape(message)):
            check_overrides(overrides, multirun=True)


def test_a_sweep_needs_multirun() -> None:
    with pytest.raises(ConfigError, match="add -m"):
        check_overrides(["seed=1,2"], multirun=False)
    check_overrides(["seed=1", "hydra.run.dir=here"], multirun=False)


APP = """
import sys
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from fedsvd.config.compose import compose, conf_dir, from_dictconfig

@hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
def job(cfg):
    running = GlobalHydra.instance().hydra
    task = list(HydraConfig.get().overrides.task)
    assert compose(task) == from_dictconfig(cfg)
    assert compose("seed=99").seed == 99
    assert GlobalHydra.instance().hydra is running is not None
    assert list(HydraConfig.get().overrides.task) == task
    import logging
    logging.getLogger("quiet").info("to the file")
    logging.getLogger("loud").warning("also to the console")

job()
"""


def run_python(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=folder, env={"PYTHONPATH": str(ROOT)}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def test_compose_inside_a_hydra_application(tmp_path: Path) -> None:
    result = run_python(["-c", APP, "experiment=smoke", "seed=5", "run_dir='a b'"], tmp_path)
    assert result.returncode == 0, result.stderr
    (log,) = tmp_path.glob("runs/*/*/*.log")
    assert "to the file" in log.read_text(encoding="utf-8")
    assert "to the file" not in result.stdout + result.stderr
    assert "also to the console" in result.stderr


@pytest.mark.slow
def test_a_sweep_creates_one_directory_per_job(tmp_path: Path) -> None:
    result = run_python(["-c", APP, "-m", "seed=1,2"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(path.parent.name for path in tmp_path.glob("runs/sweep/*/*/*/.hydra")) == ["seed=1", "seed=2"]


@pytest.mark.parametrize(("layout", "root"), [("fedsvd/_app", "fedsvd/_app"), (".", "."), (None, None)])
def test_location_of_conf(layout: str | None, root: str | None, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fedsvd", tmp_path / "fedsvd", ignore=shutil.ignore_patterns("__pycache__", "_app"))
    if layout is not None:
        shutil.copytree(ROOT / "conf", tmp_path / layout / "conf")
    if layout == "fedsvd/_app":
        # The conf/ of another package, next to an installed one.
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "config.yaml").write_text("zebra: 1\n", encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from fedsvd.config.compose import app_root, compose\n"
        "compose(), print(app_root())"
    )
    result = run_python(["-c", code], tmp_path)
    if root is None:
        assert "reinstall" in result.stderr
        assert "ConfigError" in result.stderr
    else:
        assert Path(result.stdout.strip()) == (tmp_path / root).resolve(), result.stderr


def test_the_checkout_is_the_root() -> None:
    assert app_root() == ROOT
