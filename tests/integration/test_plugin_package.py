"""A package that adds a method, a data set and a head, installed into a fresh environment."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from documented import ROOT
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_its_method_its_data_set_and_its_head_are_used(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    [packages] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # The dependencies and this checkout, without the packages that this environment may have added to fedsvd itself.
    (packages / "dependencies.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    # The build leaves nothing in the checkout.
    source = shutil.copytree(ROOT / "tests" / "helpers" / "lab_package", tmp_path / "lab_package")
    uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    call(*uv, "--python", python, source, cwd=tmp_path)
    shutil.rmtree(source)

    command = (python, "-m", "fedsvd.cli", "train", "experiment=smoke", "method=halved", "method.factor=0.25")
    settings = ("data=letters", "train.num_rounds=1", "privacy=none", "plots=false", "run_dir=run")
    head = ("model.head=wide", "model.pooling=mean", "train.head=private")
    call(*command, *settings, *head, cwd=tmp_path)

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["server_round"] for row in rows] == [0, 1]
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["calm", "urgent"]
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "name: halved\n  factor: 0.25" in text
    assert "name: letters" in text
    assert "head: wide" in text
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    layers = {key.partition("classifier.")[2] for key in adapter if "classifier." in key}
    assert layers == {"0.weight", "0.bias", "2.weight", "2.bias"}
