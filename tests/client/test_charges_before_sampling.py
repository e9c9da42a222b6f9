"""A run whose clients are sampled costs every client that the server reaches, sampled or not."""

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from client.app import app
from fedsvd.config.compose import compose
from fedsvd.errors import RunError
from fedsvd.launch import load_apps
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.client_level import run_spend
from fedsvd.privacy.ledger import Entry, Ledger
from fedsvd.runs.folder import read_rows
from fedsvd.wire.partition_query import partition_query, read_account
from server.clients import Clients

CLIENTS = 3
LEVEL = [
    "experiment=smoke", "privacy=client_level", "privacy.accountant=rdp", "plots=false",
    f"federation.num_clients={CLIENTS}", "federation.clients_per_round=1",
]  # fmt: skip


def whole_run(*overrides: str) -> Spend:
    config = compose([*LEVEL, *overrides])
    return run_spend(config.privacy, config.train, config.federation)


def charges(folder: Path) -> dict[int, list[Entry]]:
    """Return the charges in each client's ledger."""
    found = {}
    for path in folder.glob("*.sqlite"):
        with Ledger.read(path) as ledger:
            found[int(path.stem)] = ledger.entries()
    return found


def refresh(folder: Path, account: str, *overrides: str) -> Clients:
    """Query all clients of a run, as the server does before it samples any."""
    lines = [*LEVEL, f"privacy.ledger_dir={folder}", f"run_dir={folder / 'run'}", *overrides]
    clients = Clients(compose(lines).federation, account=account)
    clients.refresh(InProcessGrid(app, CLIENTS, {"overrides": " ".join(lines)}))
    return clients


def test_every_client_is_charged_once_for_the_whole_run_when_it_is_queried(tmp_path: Path) -> None:
    for _ in range(2):
        # A resumed run has the same account.
        assert len(refresh(tmp_path, "a run").nodes) == CLIENTS
        spends = {number: [entry.spend for entry in entries] for number, entries in charges(tmp_path).items()}
        assert spends == {number: [whole_run()] for number in range(CLIENTS)}


@pytest.mark.parametrize(
    ("account", "overrides"),
    [
        ("", []),
        ("a run", ["privacy=dp_sgd"]),
        (
            "a run",
            ["privacy.noise_share=true", "federation.secure_aggregation=true", "federation.clients_per_round=null"],
        ),
    ],
)
def test_other_queries_charge_nothing(account: str, overrides: list[str], tmp_path: Path) -> None:
    assert len(refresh(tmp_path, account, *overrides).nodes) == CLIENTS
    assert charges(tmp_path) == {}


def test_a_node_that_is_no_client_of_the_run_is_not_charged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [*LEVEL, f"privacy.ledger_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    grid = InProcessGrid(app, CLIENTS + 1, {"overrides": " ".join(lines)})
    for context in grid._contexts.values():
        del context.node_config["num-partitions"]
    clients = Clients(compose(lines).federation, account="a run")
    clients.refresh(grid)
    assert sorted(clients.partitions.values()) == sorted(charges(tmp_path)) == [0, 1, 2]
    assert f"its partition {CLIENTS} is out of range or taken" in caplog.text


def test_a_client_whose_limits_refuse_the_run_is_not_charged(tmp_path: Path) -> None:
    lines = [*LEVEL, f"privacy.ledger_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    grid = InProcessGrid(app, CLIENTS, {"overrides": " ".join(lines)})
    next(iter(grid._contexts.values())).node_config["require-privacy"] = True
    clients = Clients(compose(lines).federation, account="a run")
    clients.refresh(grid)
    assert len(clients.nodes) == CLIENTS - 1
    assert sorted(charges(tmp_path)) == sorted(clients.partitions[node] for node in clients.nodes)


def test_a_run_that_its_method_does_not_support_is_not_charged(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="client_level is unsupported with"):
        refresh(tmp_path, "a run", "method=flora")
    assert charges(tmp_path) == {}


def test_a_client_whose_budget_does_not_cover_the_run_is_left_out(tmp_path: Path) -> None:
    refresh(tmp_path, "a run")
    (tmp_path / "1.sqlite").unlink()
    clients = refresh(tmp_path, "another run")
    assert [clients.partitions[node] for node in clients.nodes] == [1]
    with pytest.raises(RunError, match=r"no client can take part \(client 0: BudgetExceededError: .*; client 1: "):
        refresh(tmp_path, "a third run")
    assert [len(entries) for _, entries in sorted(charges(tmp_path).items())] == [1, 1, 1]


def test_ledgers_add_up_all_runs_in_which_a_client_could_have_been_sampled(tmp_path: Path) -> None:
    shared = [*LEVEL, "train.num_rounds=1", "privacy.max_epsilon=20", f"privacy.ledger_dir={tmp_path}"]
    server_app, client_app = load_apps()
    for number in range(2):
        overrides = " ".join([*shared, f"run_dir={tmp_path / f'run-{number}'}"])
        grid = InProcessGrid(client_app, CLIENTS, {"overrides": overrides})
        try:
            server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {"overrides": overrides}))
        except RunError as error:
            # By chance, a single round may sample nobody.
            assert "no client's update was used" in str(error)  # noqa: PT017
        assert len(read_rows(tmp_path / f"run-{number}" / "metrics.jsonl")) == 2
    run = whole_run("train.num_rounds=1")
    expected = epsilon([run, run], 1e-5, "rdp")
    for entries in charges(tmp_path).values():
        assert epsilon([entry.spend for entry in entries], 1e-5, "rdp") == expected
    assert len(charges(tmp_path)) == CLIENTS


def test_a_query_of_another_form_names_no_account() -> None:
    assert read_account(partition_query("a run")) == "a run"
    assert read_account(RecordDict()) == ""
