"""How many simulated clients fit on a machine, and the memory of one, measured on a real step."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.config import Config, FederationConfig
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, RunError
from fedsvd.launch import client_memory, packing, run, simulation
from fedsvd.launch.client_memory import ClientMemory, measure_client_memory
from fedsvd.launch.packing import available_ram, pack, packed_federation

GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "clients", "cores", "ram", "gpus", "expected"),
    [
        # Memory for all: each of 4 clients has 4 of 16 cores. Memory for 10 / 3, that is 3: 16 / 3 cores for each.
        (ClientMemory(2 * GIB, 0), 4, 16, 100 * GIB, [], (4, 0)),
        (ClientMemory(3 * GIB, 0), 8, 16, 12 * GIB, [], (16 / 3, 0)),
        # No more clients than cores.
        (ClientMemory(GIB, 0), 8, 2, 100 * GIB, [], (1, 0)),
        # 36 of 40 GiB hold 3 clients on each of two GPUs.
        (ClientMemory(GIB, 12 * GIB), 8, 16, 100 * GIB, [40 * GIB, 40 * GIB], (16 / 6, 0.3333)),
        (ClientMemory(GIB, 12 * GIB), 3, 16, 100 * GIB, [40 * GIB, 40 * GIB], (16 / 3, 0.5)),
        (ClientMemory(GIB, 30 * GIB), 8, 16, 100 * GIB, [40 * GIB, 40 * GIB], (8, 1)),
    ],
)
def test_by_hand(
    memory: ClientMemory, clients: int, cores: int, ram: int, gpus: list[int], expected: tuple[float, float]
) -> None:
    assert pack(memory, clients, cores, ram, gpus) == pytest.approx(expected)


SIZES = st.integers(1, 100)


@given(ram=SIZES, gpu=SIZES, clients=SIZES, cores=SIZES, free=SIZES, gpus=st.lists(SIZES, min_size=1, max_size=4))
def test_what_runs_at_the_same_time_fits(
    ram: int, gpu: int, clients: int, cores: int, free: int, gpus: list[int]
) -> None:
    memory = ClientMemory(ram * GIB, gpu * GIB)
    try:
        cpus, per_gpu = pack(memory, clients, cores, free * GIB, [size * GIB for size in gpus])
    except RunError:
        assert ram > 0.9 * free or gpu > 0.9 * min(gpus)
        return
    # As Ray counts: by cores, and by the share of each GPU.
    at_once = min(int(cores / cpus + 1e-9), clients, int(1 / per_gpu) * len(gpus))
    assert at_once >= 1
    assert at_once * ram <= 0.9 * free
    assert int(1 / per_gpu) * gpu <= 0.9 * min(gpus)


@pytest.mark.parametrize("gpus", [[], [GIB]])
def test_a_client_that_does_not_fit_is_an_error_with_both_sizes(gpus: list[int]) -> None:
    with pytest.raises(RunError, match=r"a client needs 8,192 MiB of main memory.* 4,096 MiB.* are available"):
        pack(ClientMemory(8 * GIB, 2 * GIB), 2, 4, 4 * GIB, gpus)


def test_the_available_memory_is_less_than_a_terabyte_per_core() -> None:
    assert 100 << 20 < available_ram() < 1 << 45


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["dp_sgd", "none"])
def test_the_memory_of_a_real_step_is_measured_and_nothing_is_charged(privacy: str, tmp_path: Path) -> None:
    overrides = ["experiment=smoke", f"privacy={privacy}", f"privacy.ledger_dir={tmp_path / 'ledgers'}"]
    memory = measure_client_memory([*overrides, "train.prefix_cache_mib=0"])
    with_cache = measure_client_memory([*overrides, "train.prefix_cache_mib=2048"])

    # Python with torch and transformers, and a tiny model.
    assert 100 << 20 < memory.ram < 4 * GIB
    assert memory.gpu == 0
    assert with_cache.ram - memory.ram == pytest.approx(2 * GIB, rel=0.1)
    assert not (tmp_path / "ledgers").exists()


def test_the_cache_of_frozen_layers_counts_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands in for a GPU.
    monkeypatch.setattr("fedsvd.runtime.model.resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: GIB)
    monkeypatch.setattr(client_memory, "_take_step", lambda config: None)
    sizes = [
        client_memory._measure(compose(["experiment=smoke", f"train.prefix_cache_mib={mib}"])).gpu for mib in (0, 2048)
    ]

    # The context of CUDA in each process takes half a GiB.
    assert sizes == [1.5 * GIB, 3.5 * GIB]


def test_a_step_that_fails_is_an_error_with_its_reason() -> None:
    with pytest.raises(RunError, match=r"memory of a client could not be measured: .*missing\.csv"):
        measure_client_memory(["experiment=smoke", "data=csv", "data.path=missing.csv"])


def test_only_auto_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(overrides: object) -> ClientMemory:
        return ClientMemory(GIB, 0)

    monkeypatch.setattr(packing, "measure_client_memory", measured)
    monkeypatch.setattr(packing, "available_ram", lambda: 3 * GIB)
    monkeypatch.setattr("os.cpu_count", lambda: 8)

    def packed(*overrides: str) -> tuple[object, object]:
        config: Config = compose(["experiment=smoke", "federation=simulation", "federation.num_clients=4", *overrides])
        federation = packed_federation(config, [])
        return federation.client_num_cpus, federation.client_num_gpus

    assert packed("federation.client_num_cpus=3") == (3, 0)
    assert "packing" not in capsys.readouterr().out
    assert packed("federation.client_num_cpus=auto") == (4, 0)
    assert "packing: 4 cores and 0 GPUs for each client, which takes up to 1,024 MiB" in capsys.readouterr().out
    assert packed("federation.client_num_cpus=1", "federation.client_num_gpus=auto") == (1, 0)
    capsys.readouterr()
    # No client trains.
    both = ["federation.client_num_cpus=auto", "federation.client_num_gpus=auto"]
    assert packed("train.trains=none", *both) == (1, 0)
    assert "packing" not in capsys.readouterr().out


def test_the_engine_gets_the_measured_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packing, "available_ram", lambda: 3 * GIB)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    overrides = ["experiment=smoke", "federation=simulation", "federation.client_num_cpus=auto"]
    measured: list[Sequence[str]] = []
    federations: list[FederationConfig] = []

    def measure(given: Sequence[str]) -> ClientMemory:
        measured.append(given)
        return ClientMemory(GIB, 0)

    def simulate(server_app: object, client_app: object, federation: FederationConfig, run_config: object) -> None:
        federations.append(federation)
        raise RunError("no client has trained.")

    monkeypatch.setattr(packing, "measure_client_memory", measure)
    monkeypatch.setattr(simulation, "run_simulation", simulate)
    config: Config = compose(overrides)
    with pytest.raises(RunError, match="no client has trained"):
        run(config, [*overrides, f"run_dir={tmp_path}"], tmp_path)

    assert measured == [[*overrides, "device=cpu"]]
    assert federations == [replace(config.federation, client_num_cpus=4)]


@pytest.mark.parametrize(("gpus", "measured"), [("0", ["seed=1", "device=cpu"]), ("auto", ["seed=1"])])
def test_clients_without_gpus_are_measured_on_the_cpu(
    gpus: str, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(packing, "measure_client_memory", lambda items: seen.append(items) or ClientMemory(GIB, 0))
    config = compose(["experiment=smoke", "federation=simulation", "federation.client_num_cpus=auto",
                      f"federation.client_num_gpus={gpus}"])  # fmt: skip
    packed_federation(config, ["seed=1"])

    assert seen == [measured]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("federation.ray_address=127.0.0.1:6379", "memory is measured on this machine, not on a cluster"),
        ("train.physical_batch_size=auto", r"Give train\.physical_batch_size as a number"),
    ],
)
def test_settings_with_which_memory_cannot_be_measured_are_refused(override: str, message: str) -> None:
    config = compose(["experiment=smoke", "federation=simulation", "federation.client_num_cpus=auto", override])
    with pytest.raises(ConfigError, match=message):
        packed_federation(config, [])
