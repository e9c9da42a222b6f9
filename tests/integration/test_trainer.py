"""A real node with a trainer beside one without: the same numbers, one process per run, and a kill costs one reply."""

import os
import signal
from pathlib import Path

import pytest
import torch
from factors import weight_updates
from loopback import Loopback
from test_kills import charged_rounds

from fedsvd.cli import main
from fedsvd.runs.folder import read_json, read_rows

pytestmark = pytest.mark.slow
ROUNDS = 2
RUN = ["experiment=smoke", f"train.num_rounds={ROUNDS}", "federation.num_clients=2", "plots=false"]
ADAPTER = "adapter/adapter_model.safetensors"
# Rounds that last long enough to be killed within one.
LONG = ["privacy.accountant=rdp", "privacy.noise_multiplier=2", "privacy.target_epsilon=100", "train.local_steps=40"]


def trainers(folder: Path) -> list[int]:
    """Return the trainers of a federation, which all of its processes know by Flower's home directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if b"fedsvd.trainer.service" in command and f"FLWR_HOME={folder}/".encode() in environment:
            found.append(int(process.name))
    return found


def wait_for_rounds(nodes: Loopback, run: Path, count: int) -> None:
    rows = run / "metrics.jsonl"
    nodes.wait(lambda: rows.exists() and len(read_rows(rows)) > count, 300, f"round {count}")


def test_trainer_gives_the_same_numbers_and_a_kill_costs_one_reply(tmp_path: Path) -> None:
    plain, private, local = (tmp_path / name for name in ("plain", "private", "local"))
    ledgers = [tmp_path / f"ledger-{number}.sqlite" for number in (0, 1)]
    settings = ["", ' trainer="none"']
    node_configs = [
        f'partition-id={number} num-partitions=2 ledger="{ledgers[number]}"{settings[number]}' for number in (0, 1)
    ]
    with Loopback(tmp_path / "flower", node_configs) as nodes:
        nodes.train(plain, *RUN, "privacy=none")
        seen = []
        for server_round in range(1, ROUNDS + 1):
            wait_for_rounds(nodes, plain, server_round)
            seen.append(trainers(tmp_path))
        nodes.wait((plain / ADAPTER).exists, 120, "the end of the first run")

        nodes.train(private, *RUN, *LONG)
        nodes.wait(lambda: 1 in charged_rounds(ledgers[0]), 300, "the charge of round 1")
        (second,) = trainers(tmp_path)
        os.kill(second, signal.SIGKILL)
        wait_for_rounds(nodes, private, ROUNDS)
        (third,) = trainers(tmp_path)
        nodes.wait((private / ADAPTER).exists, 120, "the end of the second run")
    assert not trainers(tmp_path)

    # One process for a run, another one for the next.
    assert seen == [seen[0]] * ROUNDS
    assert len({*seen[0], second, third}) == 3
    assert main(["train", *RUN, "privacy=none", f"hydra.run.dir={local}"]) == 0
    updates, expected = weight_updates(plain), weight_updates(local)
    assert updates.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(updates[name], tensor, atol=0, rtol=0)

    rows = read_rows(private / "metrics.jsonl")
    assert [row["clients_used"] for row in rows[1:]] == [1, 2]
    reason = rows[1]["clients_refused"]["0"]
    assert f"declined: TrainerError: the node's trainer (process {second}) ended while it worked" in reason
    assert f"the trainer (process {second}) ended" in nodes.log("node-0")
    # The lost reply was charged, is counted, and was not trained again.
    assert [charged_rounds(ledger) for ledger in ledgers] == [[1, 2], [1, 2]]
    clients = read_json(private / "privacy.json")["clients"]
    assert [clients[number]["steps"] for number in ("0", "1")] == [80, 80]
