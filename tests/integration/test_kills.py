"""A real SuperLink and real SuperNodes, killed with SIGKILL within a round: the run continues and all is charged."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from loopback import SUPEREXEC, SUPERLINK, Loopback

from fedsvd.runs.folder import read_json, read_rows

ROUNDS = 3
OVERRIDES = [
    "experiment=smoke", f"train.num_rounds={ROUNDS}", "privacy.accountant=rdp", "privacy.noise_multiplier=2",
    "privacy.target_epsilon=100", "federation.num_clients=2", "federation.round_timeout_s=60", "federation.retries=0",
]  # fmt: skip


def charged_rounds(ledger: Path) -> list[int]:
    """Return the rounds charged in a ledger, while its client may write to it."""
    if not ledger.exists():
        return []
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return [row[0] for row in connection.execute("SELECT server_round FROM spend ORDER BY 1")]
        except sqlite3.OperationalError:
            return []


@pytest.mark.slow
def test_killed_superlink_loses_no_round_and_killed_node_loses_one(tmp_path: Path) -> None:
    run, ledgers = tmp_path / "run", [tmp_path / f"ledger-{number}.sqlite" for number in (0, 1)]
    node_configs = [f'partition-id={number} num-partitions=2 ledger="{path}"' for number, path in enumerate(ledgers)]
    with Loopback(tmp_path / "flower", node_configs, keep_state=True) as nodes:
        nodes.train(run, *OVERRIDES)

        # In round 2 the SuperLink is killed and restarted after both clients were charged, before their results arrive.
        nodes.wait(lambda: all(2 in charged_rounds(ledger) for ledger in ledgers), 240, "the second round")
        nodes.kill(SUPERLINK)
        for name in ("node-0", SUPEREXEC):
            nodes.wait(lambda name=name: "Connection attempt failed" in nodes.log(name), 60, f"{name} to notice")  # type: ignore[misc]
        nodes.start_superlink()

        # In round 3 one client is killed after it was charged, before its result leaves. It does not return.
        nodes.wait(lambda: 3 in charged_rounds(ledgers[1]), 240, "the third round")
        nodes.kill("node-1")
        nodes.wait((run / "plots" / "accuracy.png").exists, 600, "the end of the run")

    rows = read_rows(run / "metrics.jsonl")
    assert [row["server_round"] for row in rows] == [0, 1, 2, 3]
    assert [row["clients_used"] for row in rows[1:]] == [2, 2, 1]
    assert list(rows[3]["clients_refused"]) == ["1"]
    clients = read_json(run / "privacy.json")["clients"]
    # Every result that was used is in the ledger of its client, and so is the one that was lost.
    assert [charged_rounds(ledger) for ledger in ledgers] == [[1, 2, 3], [1, 2, 3]]
    assert [clients[number]["steps"] for number in ("0", "1")] == [6, 4]
    # Each event is logged.
    assert "Connection successful after" in nodes.log("node-0")
    assert "Connection successful after" in nodes.log(SUPEREXEC)
    # Flower may notice the missing heartbeat before the request times out.
    assert re.search("no reply within|Node Unavailable", rows[3]["clients_refused"]["1"])
