"""Secure sums in whole runs: the same model as in the open, in this process and on real nodes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compose_processes import free_ports
from safetensors.torch import load_file

from fedsvd.cli import main
from fedsvd.run_folder import read_rows

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["experiment=smoke", "privacy=none", "train.head=private", "train.num_rounds=1", "federation.num_clients=3"]
SECURE = "federation.secure_aggregation=true"


def products(folder: Path) -> dict[str, torch.Tensor]:
    """B A of every site, which (unlike its factors) is one matrix, and the head."""
    found = load_file(folder / "adapter" / "adapter_model.safetensors")
    sites = {name.removesuffix(".lora_A.weight") for name in found if name.endswith(".lora_A.weight")}
    matrices = {site: found[f"{site}.lora_B.weight"] @ found[f"{site}.lora_A.weight"] for site in sites}
    return matrices | {name: tensor for name, tensor in found.items() if ".lora_" not in name}


def train(folder: Path, *overrides: str) -> Path:
    assert main(["train", *WORDS, f"hydra.run.dir={folder}", *overrides]) == 0
    return folder


def assert_same(found: Path, expected: Path) -> None:
    one, other = products(found), products(expected)
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["fedsvd", "ffa_lora", "fedavg_lora"])
def test_a_secure_run_gives_the_model_of_an_open_one(method: str, tmp_path: Path) -> None:
    words = [f"method={method}", "train.num_rounds=3"]
    hidden, seen = train(tmp_path / "hidden", *words, SECURE), train(tmp_path / "seen", *words)

    assert_same(hidden, seen)
    rows = read_rows(hidden / "metrics.jsonl")
    assert [row["clients_used"] for row in rows] == [0, 3, 3, 3]
    # Eight bytes a value rather than four, beside what little a message has around it.
    assert 1.7 < rows[1]["bytes_up"] / read_rows(seen / "metrics.jsonl")[1]["bytes_up"] < 2.1


@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level"])
def test_shared_noise_tells_no_sizes_and_what_it_hangs_on(
    privacy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(
        tmp_path, SECURE, f"privacy={privacy}", "privacy.noise_share=true", "privacy.noise_multiplier=2",
        "train.local_steps=1",
    )  # fmt: skip

    told = json.loads((folder / "privacy.json").read_text())
    assert told["noise_share"]
    assert any("honest but curious" in assumption for assumption in told["assumptions"])
    for client in told["clients"].values():
        assert client["num_examples"] is None
        assert client["sample_rate"] is None
        assert 0 < client["epsilon"] <= 6
    printed = capsys.readouterr().out
    assert "ε holds if the server follows the protocol" in printed
    assert "│      0 │        – │           – │                – │" in printed


def test_clients_that_decline_leave_a_round_skipped_with_their_reasons(tmp_path: Path) -> None:
    train(tmp_path, SECURE, "privacy=dp_sgd", "privacy.target_epsilon=0.5", "privacy.noise_multiplier=0.5")

    row = read_rows(tmp_path / "metrics.jsonl")[1]
    assert row["skipped"]
    assert row["clients_used"] == 0
    assert all("BudgetExceededError" in reason for reason in row["clients_refused"].values())


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperLink and three SuperNodes on loopback; yields the environment in which ``flwr run`` finds them."""
    home = tmp_path / "flower-home"
    home.mkdir()
    ports = free_ports(4)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{ports[0]}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    commands = [["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(ports[0])]]
    for number, port in enumerate(ports[1:]):
        node_config = f'partition-id={number} num-partitions=3 ledger="{tmp_path}/ledger-{number}.sqlite" max-steps=3'
        commands.append(
            ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{ports[0]}", "--host", "127.0.0.1",
             "--port", str(port), "--node-config", node_config]
        )  # fmt: skip
    processes = []
    try:
        for command in commands:
            log = (tmp_path / f"{command[0]}-{len(processes)}.log").open("wb")
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path))
            log.close()
            wait_for(ports[len(processes) - 1])
        yield environment
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.mark.slow
def test_real_nodes_give_the_model_of_an_open_run_and_keep_their_own_limits(
    nodes: dict[str, str], tmp_path: Path
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for name in ("fedsvd", "server", "client", "conf", "pyproject.toml", "README.md"):
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, app / name, ignore=ignored) if source.is_dir() else shutil.copy(source, app / name)
    folder, greedy = tmp_path / "run", tmp_path / "greedy"
    submit(app, nodes, folder, [*WORDS, SECURE])
    submit(app, nodes, greedy, [*WORDS, "train.local_steps=4"])

    assert read_rows(folder / "metrics.jsonl")[1]["clients_used"] == 3
    assert_same(folder, train(tmp_path / "seen"))
    # More steps than the nodes' own configuration allows, whatever the run's says.
    row = read_rows(greedy / "metrics.jsonl")[1]
    assert row["skipped"]
    assert set(row["clients_refused"]) == {"0", "1", "2"}
    assert all("local_steps = 4, but this client allows at most 3" in why for why in row["clients_refused"].values())


def submit(app: Path, nodes: dict[str, str], folder: Path, words: list[str]) -> None:
    """Hand a run to the SuperLink, and wait until its folder is whole."""
    line = " ".join([*words, f"run_dir={folder}"])
    done = subprocess.run(
        ["flwr", "run", ".", "loop", "--run-config", f'overrides="{line}"'],
        cwd=app, env=nodes, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 300
    while not (folder / "plots" / "accuracy.png").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
