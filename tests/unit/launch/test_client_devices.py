"""The devices of simulated clients: what they see, and settings with which they would see none."""

import os
from types import SimpleNamespace

import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsvd.config import FederationConfig
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.launch import check_config
from fedsvd.launch.client_devices import cpu_notice
from fedsvd.launch.simulation import run_simulation

SIMULATION = ("experiment=smoke", "federation=simulation")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["device=cuda"], r"device = cuda is not possible with federation\.client_num_gpus = 0"),
        (["device=cuda:1", "federation.client_num_gpus=1"], r"device = cuda:1 is not .*Set device=cuda, and CUDA_VIS"),
        (["model.device_map=auto", "federation.client_num_gpus=1"], r"client_num_gpus = 1.*: it distributes a model"),
        (["model.device_map=auto", "federation.client_num_gpus=auto"], r"client_num_gpus = auto: it distributes"),
    ],
)
def test_devices_that_clients_do_not_see_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(compose([*SIMULATION, *overrides]))


@pytest.mark.usefixtures("gpus")
def test_devices_that_clients_see_are_accepted() -> None:
    for overrides in (
        ["device=cuda", "federation.client_num_gpus=0.5"],
        ["device=cuda", "federation.client_num_gpus=auto"],
    ):
        check_config(compose([*SIMULATION, *overrides]))
    check_config(compose(["experiment=smoke", "federation=local", "device=cuda:1"]))


@pytest.mark.usefixtures("gpus")
def test_clients_that_leave_a_gpu_idle_are_announced() -> None:
    notice = cpu_notice(compose(SIMULATION))
    assert notice is not None
    assert "train on the CPU: federation.client_num_gpus = 0" in notice
    assert cpu_notice(compose([*SIMULATION, "federation.client_num_gpus=0.25"])) is None
    assert cpu_notice(compose([*SIMULATION, "device=cpu"])) is None


def test_ray_hides_gpus_from_clients_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private.utils import set_visible_accelerator_ids

    seen = []

    def engine(**_: object) -> None:
        # What Ray does when an actor starts, with no GPU assigned to it.
        monkeypatch.setattr(
            ray, "get_runtime_context", lambda: SimpleNamespace(get_accelerator_ids=lambda: {"GPU": []})
        )
        set_visible_accelerator_ids()
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("flwr.simulation.run_simulation", engine)
    run_simulation(ServerApp(), ClientApp(), FederationConfig("simulation", num_clients=2), {"overrides": ""})

    assert seen == [""]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
