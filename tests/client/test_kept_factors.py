"""Personal factors outlive the processes of a run, on a disk that the node's owner keeps, or the client declines."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from tiny_runs import TINY

import fedsvd
from client.app import app
from fedsvd.cli import main
from fedsvd.compat.flower import set_message_id, set_task_identity
from fedsvd.config.compose import compose
from fedsvd.config.quoting import path_override
from fedsvd.lora.adapter import Part
from fedsvd.methods import build_method
from fedsvd.privacy.ledger import Ledger
from fedsvd.runs.folder import RunFolder, read_rows
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import TrainTask
from server.personal_factors import PersonalFactors

pytestmark = pytest.mark.slow

OVERRIDES = [*TINY, "method=fedsa_lora", "privacy.accountant=rdp", "privacy.max_epsilon=100"]
TRAINED: frozenset[Part] = frozenset({"A", "B"})
UPLINK: frozenset[Part] = frozenset({"A"})
RUN, OTHER_RUN = "0" * 32, "1" * 32


def reason(
    ledger: str,
    account: str = RUN,
    server_round: int = 1,
    replied: int = 0,
    run_dir: str = "/app/runs/a run",
    node: Mapping[str, str | bool] | None = None,
) -> str | None:
    """Request a round of a node; return why it declined, or None."""
    overrides = [*OVERRIDES, path_override("run_dir", Path(run_dir))]
    config = compose(overrides)
    factors = payload.pack(initial_adapter(config, build_method(config.method)), UPLINK)
    versions = dict.fromkeys(train_messages.VERSIONED, replied) | {"A": 0, "base": 0}
    task = TrainTask(server_round, TRAINED, UPLINK, account, versions)
    # Flower's run ID is another one in each process of a run.
    set_task_identity(1, server_round, 2)
    message = Message(train_messages.train_request(task, factors), 2, MessageType.TRAIN)
    set_message_id(message, f"{account} {server_round}")
    settings = {"partition-id": 0, "num-partitions": 2, **({"ledger": ledger} if ledger else {}), **(node or {})}
    context = Context(server_round, 2, settings, RecordDict(), {"overrides": " ".join(overrides)})
    return train_messages.declined_reason(app(message, context).content)


def charges(ledger: Path) -> int:
    with Ledger.read(ledger) as opened:
        return len(opened.entries())


def test_a_node_keeps_its_factors_of_each_run_beside_its_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "private" / "ledger.sqlite"
    assert reason(str(ledger)) is None
    kept = ledger.parent / "personal" / RUN / "0.safetensors"
    first = kept.read_bytes()

    assert reason(str(ledger), OTHER_RUN) is None
    assert kept.read_bytes() == first
    assert {path.name for path in kept.parents[1].iterdir()} == {RUN, OTHER_RUN}

    assert reason(str(ledger), RUN, server_round=2, replied=1) is None
    assert kept.read_bytes() != first
    assert kept.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("shares", [True, False])
def test_a_node_whose_factors_are_lost_declines_before_the_charge(
    shares: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    assert reason(str(ledger)) is None
    kept = tmp_path / "personal" / RUN / "0.safetensors"
    kept.unlink()

    with caplog.at_level(logging.ERROR):
        why = reason(str(ledger), server_round=2, replied=1, node={"share-errors": shares})

    assert why is not None
    assert "RunError: the personal factors of client 0 are missing" in why
    assert "Restore the file from a backup" in why
    assert (str(tmp_path) in why) == shares
    assert str(kept) in caplog.text
    assert charges(ledger) == 1
    # A client whose replies were all lost has nothing to restore.
    assert reason(str(ledger), server_round=2, replied=0) is None


def test_a_directory_that_cannot_be_written_is_found_before_the_charge(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    (tmp_path / "personal").write_text("")
    why = reason(str(ledger))
    assert why is not None
    assert "this client cannot keep its personal factors" in why
    assert not ledger.exists()

    # Without a ledger of its own, a node would keep them in the directory of the run on the server.
    (tmp_path / "file").write_text("")
    why = reason("", run_dir=f"{tmp_path}/file/run")
    assert why is not None
    assert "set ledger in its node configuration to a file in a directory that is kept" in why


@pytest.mark.parametrize("account", ["", "../../elsewhere", f"{RUN}/../../../elsewhere"])
def test_the_server_cannot_choose_where_factors_are_stored(account: str, tmp_path: Path) -> None:
    why = reason(str(tmp_path / "ledger.sqlite"), account)
    assert why is not None
    assert "PayloadError: train message has the account" in why
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_says_which_clients_must_have_their_factors(tmp_path: Path) -> None:
    overrides = [*OVERRIDES, "privacy=none"]
    fedsvd.train(*overrides, "train.num_rounds=1", run_dir=tmp_path)
    lost = tmp_path / "clients" / "1" / "personal.safetensors"
    lost.unlink()

    assert main(["train", f"resume={tmp_path}", "train.num_rounds=2"]) == 0

    last = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert last["clients_used"] == 1
    assert "personal factors of client 1 are missing" in last["clients_refused"]["1"]
    assert not lost.exists()


@pytest.mark.parametrize(("head_rounds", "last"), [(0, 2), (2, 0)])
def test_rows_of_an_earlier_version_say_who_has_replied(head_rounds: int, last: int, tmp_path: Path) -> None:
    row = {"clients_used": 2, "client_epsilons": {"0": None, "1": None}}
    rows = [{**row, "server_round": 1}, {**row, "server_round": 2}]

    known = PersonalFactors.of_run(build_method({"name": "fedsa_lora"}), RunFolder(tmp_path), {}, rows, head_rounds)

    assert [known.versions(client)["B"] for client in (0, 1, 2)] == [last, last, 0]


def test_a_run_with_personal_factors_has_one_name_and_others_have_none(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    fedsvd.train(*OVERRIDES, "privacy=none", "train.num_rounds=1", run_dir=run)
    name = (run / "server" / "account").read_text()
    assert main(["train", f"resume={run}", "train.num_rounds=2"]) == 0
    assert (run / "server" / "account").read_text() == name
    assert read_rows(run / "metrics.jsonl")[-1]["clients_used"] == 2

    fedsvd.train(*TINY, "privacy=none", "train.num_rounds=1", run_dir=other)
    assert not (other / "server").exists()
