"""Federations on Flower's engine: `flwr run` gives the model of a run in process; failures are errors with a cause."""

import socket
import subprocess
from pathlib import Path

import pytest
import torch
from factors import load_adapter
from flower_home import flower_home
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from loopback import copy_app, wait_until

from fedsvd.cli import main
from fedsvd.config import FederationConfig
from fedsvd.errors import RunError
from fedsvd.launch import load_apps
from fedsvd.launch.in_process import run_local
from fedsvd.launch.simulation import run_simulation

OVERRIDES = ["experiment=smoke", "privacy=none", "train.head=private", "method=fedsvd", "plots=false"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("local")
    assert main(["train", *OVERRIDES, f"hydra.run.dir={folder}"]) == 0
    return load_adapter(folder)


def assert_same_model(adapter: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert adapter.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(adapter[name], tensor, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("key", ["client_num_cpus", "client_num_gpus"])
def test_client_that_does_not_fit_on_the_machine_fails_before_ray_starts(key: str) -> None:
    federation = FederationConfig("simulation", num_clients=2, **{key: 4096.0})  # type: ignore[arg-type]
    with pytest.raises(RunError, match=rf"federation\.{key} = 4096: this machine has \d+, so no client can start"):
        run_simulation(ServerApp(), ClientApp(), federation, {"overrides": ""})


def test_failure_of_the_engine_is_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        try:
            raise MemoryError("no space for the object store")
        except MemoryError as error:
            raise RuntimeError("An error was encountered. Ending simulation.") from error

    monkeypatch.setattr("flwr.simulation.run_simulation", fail)
    with pytest.raises(RunError, match="simulation engine failed: no space for the object store"):
        run_simulation(ServerApp(), ClientApp(), FederationConfig("simulation", num_clients=2), {"overrides": ""})


def test_missing_ray_cluster_fails_immediately_with_its_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    federation = FederationConfig("simulation", num_clients=2, ray_address=address)
    with pytest.raises(RunError, match=rf"ray_address = {address}: no Ray cluster answers"):
        run_simulation(ServerApp(), ClientApp(), federation, {"overrides": ""})


@pytest.mark.slow
def test_flwr_run_gives_the_same_model(local: dict[str, torch.Tensor], tmp_path: Path) -> None:
    app = tmp_path / "app"
    copy_app(app)
    folder = tmp_path / "run"
    overrides = " ".join([*OVERRIDES, f"run_dir={folder}"])
    with flower_home(tmp_path / "flower-home") as environment:
        completed = subprocess.run(
            ["flwr", "run", ".", "--run-config", f'overrides="{overrides}"'],
            cwd=app, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert completed.returncode == 0, completed.stdout + completed.stderr
        # Written after the tensors.
        wait_until((folder / "adapter" / "adapter_config.json").exists, 240, "the run to end")

    assert_same_model(load_adapter(folder), local)


def test_federation_without_clients_fails_after_the_time_limit(tmp_path: Path) -> None:
    overrides = " ".join([*OVERRIDES, f"run_dir={tmp_path}", "federation.connect_timeout_s=0.2"])

    with pytest.raises(RunError, match="start the clients"):
        run_local(*load_apps(), 0, {"overrides": overrides})
    assert not (tmp_path / "adapter").exists()
