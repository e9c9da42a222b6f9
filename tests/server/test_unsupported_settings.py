"""Runs that no ``fedsvd train`` has checked, such as those of ``flwr run``: the ServerApp refuses what it refuses."""

from pathlib import Path

import pytest

from fedsvd.errors import FedSVDError
from fedsvd.launch import load_apps
from fedsvd.launch.in_process import run_local


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("method=fedsa_lora privacy=client_level", "no noise protects them"),
        ("method=flora federation.secure_aggregation=true", "secure_aggregation = True is unsupported"),
        ("method=flexlora aggregation=median", "aggregation.name = median is unsupported"),
        ("method=fedex_lora train.server_optimizer=adam", "train.server_optimizer = adam is unsupported"),
        ("method=fedavg_lora federation.client_ranks=[2,4]", "can be averaged for equal ranks only"),
        ("method.refactorize_every=0", "at least 1"),
        ("privacy.target_delta=1e-12", "too small for the prv accountant"),
    ],
)
def test_server_refuses_an_unsupported_run_before_anything_is_sent(
    overrides: str, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(FedSVDError, match=message):
        run_local(*load_apps(), 2, {"overrides": f"experiment=smoke run_dir={folder} plots=false {overrides}"})
    assert not folder.exists()
