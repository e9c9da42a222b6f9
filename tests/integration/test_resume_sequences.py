"""No sequence of training, resuming and killing makes a run claim too little."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resumed_runs import COMMON, PRIVATE, KilledError, accounted, claimed, recorded, strip_settings

import client.local_round
import server.evaluation
from fedsvd.cli import main
from fedsvd.privacy.ledger import Ledger
from fedsvd.runs.folder import RunFolder, read_json, read_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def fast_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the gradient steps and the evaluation; everything else is real."""
    result = type("Result", (), {"metrics": {"accuracy": 0.5}, "loss": 0.7, "seconds": 0.0})()
    monkeypatch.setattr("fedsvd.runtime.private_round.train_privately", lambda *arguments, **options: None)
    monkeypatch.setattr(client.local_round, "train_plain", lambda *arguments, **options: 0.5)
    monkeypatch.setattr(server.evaluation, "evaluate", lambda *arguments, **options: result)


def run_killed(arguments: Sequence[str], kill: str, at_round: int) -> bool:
    """Run a command, and end it at a point of a round; return whether it came to that point."""
    originals = {"save_checkpoint": server.evaluation.save_checkpoint, "write_rows": server.evaluation.write_rows}
    released = client.local_round.mark_released

    def before(name: str, reached: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(*values: Any, **options: Any) -> Any:
            if reached(*values):
                raise KilledError
            return originals[name](*values, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        if kill == "before the checkpoint":
            reached = before("save_checkpoint", lambda path, checkpoint, keep: checkpoint.server_round == at_round)
            patch.setattr(server.evaluation, "save_checkpoint", reached)
        elif kill == "before the rows":
            reached = before("write_rows", lambda path, rows: rows[-1]["server_round"] == at_round)
            patch.setattr(server.evaluation, "write_rows", reached)
        elif kill == "in a client":

            def die(*values: Any) -> None:
                released(*values)
                raise KilledError

            patch.setattr(client.local_round, "mark_released", die)
        try:
            main(list(arguments))
        except KilledError:
            return True
    return False


STARTS = st.sampled_from(
    [("privacy=none",), ("privacy=client_level", "privacy.accountant=rdp"), tuple(PRIVATE), tuple(PRIVATE)]
)
OVERRIDES = (
    "train.num_rounds=1", "train.num_rounds=3", "train.num_rounds=4", "train.num_rounds=5", "privacy=none",
    "privacy=dp_sgd", "privacy=client_level", "privacy.secure_random=false", "privacy.target_delta=1e-3",
    "privacy.target_epsilon=20", "privacy.max_epsilon=60", "privacy.noise_multiplier=0.5", "privacy.ledger_dir=other",
    "privacy.accountant=prv", "train.batch_size=4", "train.local_steps=3", "federation.retries=0", "seed=1",
)  # fmt: skip
STEPS = st.tuples(
    st.lists(st.sampled_from(OVERRIDES), max_size=2),
    st.sampled_from(["", "", "before the checkpoint", "before the rows", "in a client"]),
    st.integers(1, 4),
    st.sampled_from(["", "", "", "ledgers deleted", "an earlier version's rows"]),
)


@pytest.mark.usefixtures("fast_rounds")
@settings(
    max_examples=5, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    start=STARTS,
    first_kill=st.sampled_from(["", "before the checkpoint", "in a client"]),
    steps=st.lists(STEPS, max_size=4),
)
def test_no_sequence_of_train_resume_and_kill_claims_too_little(
    start: Sequence[str], first_kill: str, steps: Sequence[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sequence") / "run"
    run_killed(["train", *COMMON, f"hydra.run.dir='{folder}'", *start], first_kill, 2)
    check(folder, intact=True)
    intact = True
    for overrides, kill, at_round, tampering in steps:
        if tampering == "ledgers deleted":
            shutil.rmtree(folder / "clients", ignore_errors=True)
            intact = False
        elif tampering:
            strip_settings(folder)
        run_killed(["train", f"resume={folder}", *overrides], kill, at_round)
        check(folder, intact)


LONGER = ["train.num_rounds=4", "privacy.max_epsilon=60"]


@pytest.mark.usefixtures("fast_rounds")
@pytest.mark.parametrize(
    ("first_kill", "kill", "tampering"),
    [("in a client", "", ""), ("", "before the rows", ""), ("", "", "ledgers deleted")],
)
def test_a_resumed_private_run_claims_enough(first_kill: str, kill: str, tampering: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_killed(["train", *COMMON, f"hydra.run.dir='{folder}'", *PRIVATE], first_kill, 2) == bool(first_kill)
    if tampering:
        shutil.rmtree(folder / "clients")
    assert run_killed(["train", f"resume={folder}", *LONGER], kill, 3) == bool(kill)
    check(folder, not tampering)
    assert claimed(folder) is not None
    assert not run_killed(["train", f"resume={folder}", *LONGER], "", 0)
    check(folder, not tampering)
    assert read_rows(folder / "metrics.jsonl")[-1]["server_round"] == 4


def check(folder: Path, intact: bool) -> None:
    """Compare the claim of a run with its rows and, unless a process was just interrupted, with its ledgers."""
    rows, claim = read_rows(folder / "metrics.jsonl"), claimed(folder)
    trained = [row for row in rows if row["server_round"]]
    names = {row["privacy"]["name"] for row in trained if "privacy" in row}
    if "none" in names or any(row["train_loss"] is not None for row in trained):
        assert claim is None
    if claim is None:
        return
    charges = recorded(rows)
    assert claim >= max((accounted(spends) for spends in charges.values()), default=0.0)
    assert claim >= max(row["epsilon"] or 0.0 for row in rows)
    assert len(names) <= 1
    if "dp_sgd" in names and intact and read_json(folder / "run.json")["state"] == "finished":
        for name in charges:
            with Ledger.read(RunFolder(folder).ledger(int(name))) as ledger:
                assert claim >= accounted(ledger.history())
    document = json.loads((folder / "privacy.json").read_text())
    assert (document["guarantee"]["status"] == "none") == (document["unit"] is None)
