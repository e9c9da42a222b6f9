"""Client-level privacy with shared noise: no sum is unmasked that the ledgers of server and clients do not contain."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import COMMON, KilledError, claimed

import client.local_round
import server.evaluation
import server.strategy
from fedsvd.cli import main
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Ledger
from fedsvd.runs.folder import RunFolder, read_rows
from server.secure_grid import SecureGrid, _SecureRound

ROUNDS, CLIENTS = 3, 3
PLAIN = [*COMMON, "method=ffa_lora", "privacy=client_level", "privacy.accountant=rdp",
         f"federation.num_clients={CLIENTS}", f"train.num_rounds={ROUNDS}"]  # fmt: skip
SHARED = [*PLAIN, "privacy.noise_share=true", "federation.secure_aggregation=true"]
# The points at which a process is killed: what is called there, in the round that is interrupted.
POINTS = {
    "before the clients train": (SecureGrid, "send_and_receive"),
    "after unmasking": (server.strategy, "valid_replies"),
    # After all clients have trained, also where their replies are read one by one.
    "after the replies": (server.strategy, "aggregate_replies"),
    "after the step": (server.evaluation.RoundEndCallback, "_row"),
    "before the checkpoint": (server.evaluation, "save_checkpoint"),
}


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace gradient steps and evaluation; return a list that grows with every sum that the server has unmasked."""
    result = type("Result", (), {"metrics": {"accuracy": 0.5}, "loss": 0.7, "seconds": 0.0})()
    monkeypatch.setattr(client.local_round, "train_plain", lambda *arguments, **options: 0.5)
    monkeypatch.setattr(server.evaluation, "evaluate", lambda *arguments, **options: result)
    seen: list[int] = []
    run = _SecureRound.run

    def counted(secure_round: _SecureRound) -> Any:
        outcome = run(secure_round)
        seen.append(outcome.contributors)
        return outcome

    monkeypatch.setattr(_SecureRound, "run", counted)
    return seen


def train_killed(arguments: list[str], point: str, in_round: int = 2) -> None:
    """Run the command, and end it like a signal at a point of a round."""
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), 0
    # Row 0 and its checkpoint are written before the first round.
    last_call = in_round + (name in ("_row", "save_checkpoint"))

    def wrapped(*values: Any, **options: Any) -> Any:
        nonlocal calls
        is_counted = name != "send_and_receive" or _asks_to_train(values, options)
        calls += is_counted
        if is_counted and calls == last_call:
            raise KilledError
        return original(*values, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        with pytest.raises(KilledError):
            main(arguments)


def _asks_to_train(values: tuple[Any, ...], options: dict[str, Any]) -> bool:
    messages = options.get("messages", values[1] if len(values) > 1 else ())
    return isinstance(messages, list) and bool(messages) and messages[0].metadata.message_type == "train"


def ledgers(folder: Path) -> Iterator[list[Spend]]:
    """Yield the charges of the server, then those of each client."""
    paths = RunFolder(folder)
    for path in (paths.server_ledger, *(paths.ledger(number) for number in range(CLIENTS))):
        with Ledger.read(path) as ledger:
            yield ledger.history()
            assert all(entry.released_at for entry in ledger.entries())


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_interrupted_round_is_charged_and_the_run_ends_within_its_budget(
    point: str, tmp_path: Path, sums: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train_killed(["train", *SHARED, f"hydra.run.dir={folder}"], point)
    unseen = point == "before the clients train"
    assert len(sums) == (1 if unseen else 2)
    server, *_ = ledgers(folder)
    assert len(server) == 2
    # The killed round is the one after the last row: the claim counts it.
    assert claimed(folder) == pytest.approx(epsilon(server, 1e-5, "rdp"), abs=0.01)

    assert main(["train", f"resume={folder}"]) == 0

    server, *clients = ledgers(folder)
    assert len(server) == ROUNDS
    assert len(sums) == (ROUNDS - 1 if unseen else ROUNDS)
    assert all(len(charges) == len(sums) for charges in clients)
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [False, False, False, True]
    assert [row["clients_sampled"] for row in rows] == [0, CLIENTS, CLIENTS, 0]
    assert sum(row["privacy"]["charges"]["server"]["steps"] for row in rows[1:3]) == ROUNDS
    spent = epsilon(server, 1e-5, "rdp")
    assert (
        rows[-1]["epsilon"] == json.loads((folder / "privacy.json").read_text())["guarantee"]["epsilon"] == spent <= 6
    )
    output = "".join(capsys.readouterr())
    assert "round 3 skipped, model unchanged: the run's budget does not cover another round" in output
    assert "3 rounds were charged, including those that were interrupted and repeated, and 3 were planned" in output
    assert (folder / "adapter").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("sums")
def test_a_run_whose_server_adds_the_noise_resumes_after_its_first_round_was_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_killed(["train", *PLAIN, f"hydra.run.dir={folder}"], "after the replies", in_round=1)

    assert main(["train", f"resume={folder}"]) == 0

    server, *clients = ledgers(folder)
    assert len(server) == ROUNDS
    assert all([charge.steps for charge in charges] == [ROUNDS] for charges in clients)


@pytest.mark.slow
def test_a_larger_budget_pays_for_the_repeated_round(tmp_path: Path, sums: list[int]) -> None:
    folder, noise = tmp_path / "run", 3.0
    budget = [f"privacy.noise_multiplier={noise}", "privacy.target_epsilon=20"]
    train_killed(["train", *SHARED, *budget, f"hydra.run.dir={folder}"], "after unmasking")
    assert main(["train", f"resume={folder}"]) == 0

    assert len(sums) == ROUNDS + 1
    spent = epsilon([Spend(noise, 1.0, len(sums))], 1e-5, "rdp")
    assert all(epsilon(charges, 1e-5, "rdp") == spent for charges in ledgers(folder))
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [False] * (ROUNDS + 1)
    assert [row["privacy"]["charges"]["server"]["steps"] for row in rows[1:]] == [1, 2, 1]
    document = json.loads((folder / "privacy.json").read_text())
    assert rows[-1]["epsilon"] == document["guarantee"]["epsilon"] == spent
    assert {client["epsilon"] for client in document["clients"].values()} == {spent}
    assert claimed(folder) == pytest.approx(spent, abs=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize(("point", "skipped"), [("after the replies", False), ("before the checkpoint", True)])
def test_a_run_whose_server_adds_the_noise_is_charged_when_it_does(point: str, skipped: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_killed(["train", *PLAIN, f"hydra.run.dir={folder}"], point)
    assert main(["train", f"resume={folder}"]) == 0

    server, *clients = ledgers(folder)
    assert len(server) == ROUNDS
    assert all([charge.steps for charge in charges] == [ROUNDS] for charges in clients)
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [False, False, False, skipped]
    assert rows[-1]["clients_sampled"] == (0 if skipped else CLIENTS)
