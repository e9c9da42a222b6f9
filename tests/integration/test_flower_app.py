"""The Flower app of docs/library.md, as printed, on Flower's simulation engine."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from documented import ROOT
from flower_home import flower_home
from orthonormality import is_orthonormal
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from fedsvd import Ledger, epsilon
from fedsvd.models.embedded import resolve_source

NUM_CLIENTS, ROUNDS = 2, 2


def write_app(folder: Path) -> None:
    """Write the files that the page shows, each below its name."""
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    files = re.findall(r"^\*\*`(\w+\.\w+)`\*\*\n\n```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["pyproject.toml", "server_app.py", "client_app.py"]
    folder.mkdir()
    for name, text in files:
        (folder / name).write_text(text, encoding="utf-8")


def write_inputs(folder: Path) -> None:
    """Write a small BERT, and one file of texts per client."""
    source = resolve_source("embedded:tiny")
    AutoModel.from_pretrained(source).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "model")
    for client in range(NUM_CLIENTS):
        rows = [f'"a {("dull", "fine")[n % 2]} case of client {client}, number {n}",{n % 2}\n' for n in range(48)]
        (folder / f"letters-{client}.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")


@pytest.mark.slow
def test_the_printed_app_trains_an_adapter_within_its_budget(tmp_path: Path) -> None:
    write_app(tmp_path / "app")
    write_inputs(tmp_path)
    settings = {"model": "model", "data": "letters-{}.csv", "output": "adapter"}
    run_config = [f'{key}="{tmp_path / name}"' for key, name in settings.items()]
    # One worker process for all clients.
    federation = f"num-supernodes={NUM_CLIENTS} client-resources-num-cpus={os.cpu_count()}"
    command = ["flwr", "run", ".", "--stream", "--federation-config", federation, "--run-config"]
    with flower_home(tmp_path / "flower-home") as environment:
        completed = subprocess.run(
            [*command, " ".join([*run_config, f"num-rounds={ROUNDS}"])],
            cwd=tmp_path / "app", env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    saved = tmp_path / "adapter" / "adapter_model.safetensors"
    assert saved.exists(), completed.stdout[-3000:] + completed.stderr[-3000:]
    adapter = load_file(saved)
    rows = [tensor for key, tensor in adapter.items() if ".lora_A." in key]
    assert len(rows) == 4
    assert all(is_orthonormal(tensor) for tensor in rows)
    assert all(bool(tensor.any()) for key, tensor in adapter.items() if ".lora_B." in key)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
    loaded = get_peft_model_state_dict(PeftModel.from_pretrained(base, saved.parent))
    assert all(torch.equal(loaded[key], tensor) for key, tensor in adapter.items())
    for client in range(NUM_CLIENTS):
        with Ledger.read(tmp_path / f"letters-{client}.csv.ledger") as ledger:
            history = ledger.history()
        assert [spend.steps for spend in history] == [3] * ROUNDS
        assert 7 < epsilon(history, 1e-5) <= 8
