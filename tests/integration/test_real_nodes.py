"""A real SuperLink and three real SuperNodes: a secure run, then a run whose processes are killed with SIGKILL."""

import os
import re
import signal
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from factors import weight_updates
from loopback import SUPEREXEC, SUPERLINK, Loopback, wait_until

import fedsvd
from fedsvd.runs.folder import read_json, read_rows

pytestmark = pytest.mark.slow
NUM_NODES = 3
RUN = ["experiment=smoke", f"federation.num_clients={NUM_NODES}", "plots=false"]
NOT_PRIVATE = ["privacy=none", "train.head=private", "train.num_rounds=1"]
# Rounds that last long enough to be killed within one.
KILLED = [
    "train.num_rounds=3", "train.local_steps=40", "privacy.accountant=rdp", "privacy.noise_multiplier=2",
    "privacy.target_epsilon=100", "federation.round_timeout_s=150", "federation.retries=0",
]  # fmt: skip


@dataclass(frozen=True)
class Federation:
    folder: Path
    services: Loopback

    def ledger(self, number: int) -> Path:
        return self.folder / f"ledger-{number}.sqlite"

    def charged_rounds(self, number: int) -> list[int]:
        """Return the rounds charged in a node's ledger, while its client may write to it."""
        if not self.ledger(number).exists():
            return []
        with closing(sqlite3.connect(f"file:{self.ledger(number)}?mode=ro", uri=True, timeout=30)) as connection:
            try:
                return [row[0] for row in connection.execute("SELECT server_round FROM spend ORDER BY 1")]
            except sqlite3.OperationalError:
                return []

    def trainers(self) -> dict[int, int]:
        """Return the trainer process by node."""
        services = {f"node-{number}": number for number in range(NUM_NODES)}
        nodes = {process.pid: services[name] for name, process in self.services.processes.items() if name in services}
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes().split(b"\0")
                if b"fedsvd.trainer.service" in command:
                    number = nodes.get(
                        ancestor(int(command[command.index(b"--executor") + 1].partition(b":")[0]), nodes)
                    )
                    if number is not None:
                        found[number] = int(process.name)
        return found

    def all_charged(self, server_round: int) -> bool:
        return all(server_round in self.charged_rounds(number) for number in range(NUM_NODES))

    def wait_for_rounds(self, run: Path, count: int) -> None:
        rows = run / "metrics.jsonl"
        self.services.wait(lambda: rows.exists() and len(read_rows(rows)) > count, 300, f"round {count}")

    def wait_for_end(self, run: Path) -> None:
        self.services.wait((run / "adapter" / "adapter_config.json").exists, 300, "the end of the run")


def ancestor(process: int, wanted: Collection[int]) -> int:
    """Return the nearest ancestor of a process, or itself, that is wanted; 0 if there is none."""
    while process > 1 and process not in wanted:
        status = Path(f"/proc/{process}/status").read_text()
        process = int(re.findall(r"^PPid:\s*(\d+)", status, re.MULTILINE)[0])
    return process if process in wanted else 0


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    node_configs = [
        f'partition-id={number} num-partitions={NUM_NODES} ledger="{folder}/ledger-{number}.sqlite"'
        for number in range(NUM_NODES)
    ]
    with Loopback(folder / "flower", node_configs, keep_state=True) as services:
        federation = Federation(folder, services)
        yield federation
        trainers = federation.trainers().values()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in trainers), 60, "the trainers to end")


@pytest.fixture(scope="module")
def secure_run(federation: Federation) -> Path:
    run = federation.folder / "secure"
    federation.services.train(run, *RUN, *NOT_PRIVATE, "federation.secure_aggregation=true")
    federation.wait_for_end(run)
    return run


def test_secure_run_gives_the_model_of_a_plain_run(secure_run: Path, tmp_path: Path) -> None:
    assert read_rows(secure_run / "metrics.jsonl")[1]["clients_used"] == NUM_NODES
    fedsvd.train(*RUN, *NOT_PRIVATE, run_dir=tmp_path)
    updates, expected = weight_updates(secure_run), weight_updates(tmp_path)
    assert updates.keys() == expected.keys()
    for name, tensor in expected.items():
        # Values of a secure sum have a resolution of 2⁻²⁴.
        assert (updates[name] - tensor).abs().max() < 0.1 * tensor.abs().max()


def test_killed_superlink_loses_no_round_and_killed_trainer_and_node_lose_one_each(
    federation: Federation, secure_run: Path
) -> None:
    run, services = federation.folder / "killed", federation.services
    earlier = federation.trainers()
    assert earlier.keys() == set(range(NUM_NODES))
    services.train(run, *RUN, *KILLED)

    # In round 1 a trainer is killed after its node was charged.
    services.wait(lambda: 1 in federation.charged_rounds(0), 240, "the first round")
    killed = federation.trainers()[0]
    os.kill(killed, signal.SIGKILL)
    federation.wait_for_rounds(run, 1)

    # In round 2 the SuperLink is killed and restarted after all clients were charged, before their results arrive.
    services.wait(lambda: federation.all_charged(2), 240, "the second round")
    before = federation.trainers()
    services.kill(SUPERLINK)
    for name in ("node-0", SUPEREXEC):
        services.wait(lambda name=name: "Connection attempt failed" in services.log(name), 60, f"{name} to notice")  # type: ignore[misc]
    services.start_superlink()

    # In round 3 one client is killed after it was charged, before its result leaves. It does not return.
    services.wait(lambda: 3 in federation.charged_rounds(1), 240, "the third round")
    after = federation.trainers()
    services.kill("node-1")
    federation.wait_for_end(run)

    rows = read_rows(run / "metrics.jsonl")
    assert [row["server_round"] for row in rows] == [0, 1, 2, 3]
    assert [row["clients_used"] for row in rows[1:]] == [2, 3, 2]
    # A trainer works for one run, and the next message replaces one that ended.
    assert after == before
    assert {*before.values()}.isdisjoint({*earlier.values(), killed})
    [(number, reason)] = rows[1]["clients_refused"].items()
    assert number == "0"
    assert f"declined: TrainerError: the node's trainer (process {killed}) ended while it worked" in reason
    assert f"the trainer (process {killed}) ended" in services.log("node-0")
    # Flower may notice the missing heartbeat before the request times out.
    assert list(rows[3]["clients_refused"]) == ["1"]
    assert re.search("no reply within|Node Unavailable", rows[3]["clients_refused"]["1"])
    assert "Connection successful after" in services.log("node-0")
    assert "Connection successful after" in services.log(SUPEREXEC)
    # Every result that was used is in the ledger of its client, and so are those that were lost.
    assert all(federation.charged_rounds(number) == [1, 2, 3] for number in range(NUM_NODES))
    clients = read_json(run / "privacy.json")["clients"]
    # The killed trainer's reply is known to be charged; the last message of the killed node is not.
    assert {number: clients[number]["steps"] for number in clients} == {"0": 120, "1": 80, "2": 120}
