"""Real SuperLink and SuperNodes, killed with SIGKILL in mid-round: the run goes on, and every result is paid for."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from loopback import SUPEREXEC, SUPERLINK, Loopback

from fedsvd.runs.folder import read_json, read_rows

ROUNDS = 3
WORDS = [
    "experiment=smoke", f"train.num_rounds={ROUNDS}", "privacy.accountant=rdp", "privacy.noise_multiplier=2",
    "privacy.target_epsilon=100", "federation.num_clients=2", "federation.round_timeout_s=60", "federation.retries=0",
]  # fmt: skip


def charged(ledger: Path) -> list[int]:
    """The rounds that a ledger holds a charge for, read beside whoever writes it."""
    if not ledger.exists():
        return []
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return [row[0] for row in connection.execute("SELECT server_round FROM spend ORDER BY 1")]
        except sqlite3.OperationalError:
            return []


@pytest.mark.slow
def test_a_superlink_and_a_node_killed_in_mid_round_cost_no_more_than_their_round(tmp_path: Path) -> None:
    run, ledgers = tmp_path / "run", [tmp_path / f"ledger-{number}.sqlite" for number in (0, 1)]
    node_configs = [f'partition-id={number} num-partitions=2 ledger="{path}"' for number, path in enumerate(ledgers)]
    with Loopback(tmp_path / "flower", node_configs, keep_state=True) as nodes:
        nodes.train(run, *WORDS)

        # In the second, with both clients charged and their results on the way, the SuperLink is gone for a while.
        nodes.wait(lambda: all(2 in charged(ledger) for ledger in ledgers), 240, "the second round")
        nodes.kill(SUPERLINK)
        nodes.start_superlink()

        # In the third, one client is charged and gone before its result has left; it does not come back in this run.
        nodes.wait(lambda: 3 in charged(ledgers[1]), 240, "the third round")
        nodes.kill("node-1")
        nodes.wait((run / "plots" / "accuracy.png").exists, 600, "the end of the run")

    rows = read_rows(run / "metrics.jsonl")
    assert [row["server_round"] for row in rows] == [0, 1, 2, 3]
    assert [row["clients_used"] for row in rows[1:]] == [2, 2, 1]
    assert list(rows[3]["clients_refused"]) == ["1"]
    told = read_json(run / "privacy.json")["clients"]
    # Each result that was used is in the ledger of the client that it came from; so is the one that was lost.
    assert [charged(ledger) for ledger in ledgers] == [[1, 2, 3], [1, 2, 3]]
    assert [told[number]["steps"] for number in ("0", "1")] == [6, 4]
    # One line each of what happened.
    assert "Connection successful after" in nodes.log("node-0")
    assert "Connection successful after" in nodes.log(SUPEREXEC)
    assert "no reply within" in rows[3]["clients_refused"]["1"]
