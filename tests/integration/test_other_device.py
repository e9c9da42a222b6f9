"""Whole runs with the model on another device than the CPU: no step combines tensors of two devices.

torch's meta device stands in for a GPU, so the values are made up, but shapes and devices are those of a run.
"""

from pathlib import Path

import pytest
from other_device import META, reads_from_meta, use_meta_device

from client.clipped_update import clipped_update
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.methods import METHODS, build_run_method
from fedsvd.runs.folder import RunFolder, read_rows
from fedsvd.runtime import model
from fedsvd.runtime.model import clear_model_cache, initial_adapter

SMALL = [
    "experiment=smoke",
    "train.head=private",
    "train.local_steps=1",
    "data.max_train_examples=60",
    "data.max_test_examples=20",
    "privacy.accountant=rdp",
    "plots=false",
]
CASES = {
    **{name: [f"method={name}"] for name in METHODS},
    "public directions": [
        "method.init_a=public_pca",
        "model.standardize=public",
        "privacy.project_public_mean=true",
        "train.head_init=zero_shot",
        "train.head_rounds=1",
    ],
    "hooks and bfloat16": ["train.grad_sample_mode=hooks", "model.dtype=bfloat16"],
    "first token": ["model.pooling=first", "model.lora_layers=top_1"],
    "client level": ["privacy=client_level"],
    "secure aggregation": ["federation.secure_aggregation=true", "federation.weighting=uniform"],
    "without privacy": ["privacy=none", "train=adamw", "train.num_rounds=2", "train.server_optimizer=adam"],
    "language model": [
        "model=tiny_llama",
        "train.head=frozen",
        "data.prompt_template='Review: {text}\\nSentiment:'",
        "model.lora_layers=top_1",
    ],
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    use_meta_device(monkeypatch)
    clear_model_cache()


@pytest.mark.slow
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("case", CASES)
def test_no_run_mixes_devices(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reads_from_meta() as found:
        status = main(["train", *SMALL, *CASES[case], f"run_dir={tmp_path}"])

    assert status == 0, capsys.readouterr().err
    assert [row["clients_used"] for row in read_rows(RunFolder(tmp_path).metrics)] == [0, 2, 2]
    # The model was on that device.
    assert found["fedsvd/lora/adapter.py"] > 0


@pytest.mark.usefixtures("device")
def test_the_probe_of_the_first_token_runs_on_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    monkeypatch.setattr(model, "use_first_token_only", lambda adapted: devices.append(adapted.device))
    with reads_from_meta():
        model.load_model(compose(["experiment=smoke", "model.pooling=first"]))

    # Flash attention runs on a GPU only.
    assert devices == [META]


def test_the_update_of_received_factors_on_another_device_is_clipped() -> None:
    config = compose(["experiment=smoke", "privacy=client_level"])
    received = initial_adapter(config, build_run_method(config))
    trained = received.to(META)
    with reads_from_meta():
        update = clipped_update(received, trained, frozenset({"B"}), config)

    assert {tensor.device for tensor in update.B.values()} == {META}
