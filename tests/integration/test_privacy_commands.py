"""``fedsvd privacy``: the plan before a run, and the report on a ledger."""

import re
import sqlite3
from pathlib import Path

import pytest

import fedsvd
from fedsvd.cli import main
from fedsvd.privacy.ledger import Ledger

pytestmark = pytest.mark.slow

RUN = ["experiment=smoke", "plots=false", "privacy.target_epsilon=3", "privacy.max_epsilon=4"]


def client_cells(output: str, client: str) -> list[str]:
    [row] = [line for line in output.splitlines() if re.match(rf"│ +{client} │", line)]
    return [cell.strip() for cell in row.strip("│").split("│")]


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with ledgers that two runs have charged."""
    folder = tmp_path_factory.mktemp("ledgers")
    for name in ("first", "second"):
        fedsvd.train(*RUN, f"privacy.ledger_dir={folder}", run_dir=folder / name)
    return folder


def test_plan_shows_the_cost_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "plan", "experiment=smoke"]) == 0

    output = capsys.readouterr().out
    client, examples, rate, noise, steps, run, before, total = client_cells(output, "0")
    assert (client, steps, before) == ("0", "4", "0.000")
    assert float(rate) == pytest.approx(16 / int(examples), abs=1e-4)
    assert float(noise) > 0.3
    assert 0.98 * 6 < float(run) == float(total) <= 6
    assert "max_grad_norm = 1" in output
    assert "δ = 1e-05" in output
    assert "No ledgers are taken into account" in output


def test_plan_includes_the_charges_of_the_ledgers(ledgers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "plan", *RUN, f"privacy.ledger_dir={ledgers}"]) == 0

    output = capsys.readouterr().out
    with Ledger.read(ledgers / "0.sqlite") as ledger:
        entries = ledger.entries()
    *_, run, before, total = map(float, client_cells(output, "0"))
    assert len({entry.run_id for entry in entries}) == 2
    assert run < before < total
    assert re.search(r"client \d: its budget covers \d of the 2 remaining rounds", output)
    assert "No ledgers are taken into account" not in output


def test_second_run_is_added_and_ends_at_the_budget(ledgers: Path) -> None:
    for number in (0, 1):
        with Ledger.read(ledgers / f"{number}.sqlite") as ledger:
            assert 2 <= len(ledger.entries()) <= 4
    assert not (ledgers / "first" / "clients").exists()


def test_plan_of_a_resumed_run_counts_completed_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fedsvd.train(*RUN, run_dir=tmp_path)
    capsys.readouterr()
    assert main(["privacy", "plan", f"resume={tmp_path}"]) == 0

    output = capsys.readouterr().out
    *_, run, before, total = map(float, client_cells(output, "0"))
    assert run == before == total
    assert "2 rounds, 2 already done" in output

    # The further rounds have another noise multiplier than those that are done.
    assert main(["privacy", "plan", f"resume={tmp_path}", "train.num_rounds=6", "privacy.max_epsilon=9"]) == 0
    *_, run, before, total = map(float, client_cells(capsys.readouterr().out, "0"))
    assert before < run == total > 3


def test_plan_of_a_resumed_run_tells_its_own_charges_from_those_of_others(
    ledgers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "plan", f"resume={ledgers / 'first'}"]) == 0

    *_, run, before, total = map(float, client_cells(capsys.readouterr().out, "0"))
    assert run <= 3 < before == total


def test_plan_warns_of_unusual_settings(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["train.batch_size=500", "privacy.target_delta=0.1"]
    assert main(["privacy", "plan", "experiment=smoke", *overrides]) == 0

    output = capsys.readouterr().out
    assert "privacy.target_delta = 0.1 is at least 1/" in output
    assert "train.batch_size = 500 is more than its" in output


def test_plan_with_a_fixed_noise_multiplier_shows_the_epsilon_of_each_sample_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = ["experiment=smoke", "privacy.accountant=rdp", "privacy.noise_multiplier=0.9", "train.sample_rate=0.4"]
    assert main(["privacy", "plan", *overrides]) == 0

    output = capsys.readouterr().out
    planned, (rate, cost) = client_cells(output, "0")[5], re.findall(r"│ +(0\.4000) │ +([\d.]+) │ +2\.50 │", output)[0]
    assert (rate, cost) == ("0.4000", planned)
    assert "ε by sample rate, for σ = 0.9 at δ = 1e-05 and 4 steps" in output
    assert "Set train.sample_rate" not in output
    assert "No sample rate is recommended" in output


def test_plan_leaves_out_clients_that_do_not_take_part(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=smoke", "privacy.accountant=rdp", "train.batch_size=500"]
    assert main(["privacy", "plan", *overrides]) == 0
    everybody = client_cells(capsys.readouterr().out, "1")
    assert main(["privacy", "plan", *overrides, "federation.participants=[1]"]) == 0

    output = capsys.readouterr().out
    assert client_cells(output, "1") == everybody
    assert not re.search(r"^│ +0 │", output, re.MULTILINE)
    assert "client 0" not in output
    assert re.search(rf"│ 1.0000 │ .* │ +{everybody[1]} │ +1 │", output)
    assert "client 1: train.batch_size = 500 is more than its" in output


def test_plan_of_client_level_privacy_matches_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=smoke", "privacy=client_level", f"privacy.ledger_dir={tmp_path / 'ledgers'}"]
    assert main(["privacy", "plan", *overrides]) == 0
    planned = client_cells(capsys.readouterr().out, "1")
    assert planned[2:3] + planned[4:5] + planned[6:7] == ["1.0000", "2", "0.000"]
    assert 0.98 * 6 < float(planned[5]) <= 6

    assert main(["train", *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    for arguments, message in (
        ([*overrides, f"resume={tmp_path / 'run'}"], "2 rounds, 2 already done"),
        (overrides, "its budget covers 0 of the 2 remaining rounds"),
    ):
        assert main(["privacy", "plan", *arguments]) == 0
        output = capsys.readouterr().out
        assert client_cells(output, "1")[6] == planned[5]
        assert message in output
    for path in (tmp_path / "ledgers" / "1.sqlite", tmp_path / "run" / "server" / "ledger.sqlite"):
        assert main(["privacy", "ledger", str(path)]) == 0
        assert re.search(r"│ +yes │", capsys.readouterr().out)


def test_ledger_is_shown_by_run_and_round(ledgers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (ledgers / "0.sqlite").read_bytes()
    assert main(["privacy", "ledger", str(ledgers / "0.sqlite")]) == 0

    output = capsys.readouterr().out
    with Ledger.read(ledgers / "0.sqlite") as ledger:
        for entry in ledger.entries():
            assert entry.run_id in output
    first, second = (re.findall(rf"│ +{run} │ +\d+ │ +2 │ +4 │ +([\d.]+) │ +([\d.]+) │", output)[0] for run in (1, 2))
    assert float(first[0]) == float(first[1]) == float(second[0]) < float(second[1]) <= 4
    assert "budget at the last charge: ε ≤ 4 in total" in output
    assert (ledgers / "0.sqlite").read_bytes() == content


def test_ledger_is_evaluated_at_another_delta(ledgers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["target_delta=1e-6", "accountant=rdp"]
    assert main(["privacy", "ledger", str(ledgers / "0.sqlite"), *options]) == 0

    assert "δ = 1e-06, rdp accountant" in capsys.readouterr().out


def test_empty_ledger_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger.open(tmp_path / "ledger", "data"):
        pass
    assert main(["privacy", "ledger", str(tmp_path / "ledger")]) == 0

    assert "no privacy has been spent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "fedsvd privacy plan"),
        (["plon"], 2, "invalid arguments"),
        (["ledger"], 2, "ledger PATH"),
        (["plan", "train.lerning_rate=1"], 2, "did you mean train.learning_rate"),
        (["plan", "experiment=smoke", "privacy=none"], 2, "no guarantee to plan"),
        (["plan", "experiment=smoke", "privacy.max_epsilon=1"], 2, "below privacy.target_epsilon"),
        (["plan", "experiment=smoke", "privacy.target_delta=1e-12"], 1, "accountant = rdp"),
        (["plan", "resume=/nowhere"], 2, "not a run directory"),
        (["ledger", "nowhere.sqlite"], 1, "no privacy ledger at"),
    ],
)
def test_invalid_arguments_give_a_readable_error(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", *arguments]) == status

    assert message in capsys.readouterr().err
    assert not Path("nowhere.sqlite").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["delta=1"], "does not accept delta"),
        (["target_delta=x"], "expected a number"),
        (["target_delta=2"], "0 < target_delta < 1"),
        (["accountant=pld"], "expected one of prv, rdp"),
    ],
)
def test_invalid_ledger_options_give_a_readable_error(
    ledgers: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "ledger", str(ledgers / "0.sqlite"), *options]) in (1, 2)

    assert message in capsys.readouterr().err


def test_ledgers_of_other_data_count_and_damaged_ledgers_stop_the_plan(
    ledgers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "plan", *RUN, "seed=1", f"privacy.ledger_dir={ledgers}"]) == 0
    output = capsys.readouterr().out
    assert "client 0: its ledger was last charged for other data" in output
    assert float(client_cells(output, "0")[6]) > 2.9
    sqlite3.connect(tmp_path / "0.sqlite").close()
    (tmp_path / "0.sqlite").write_bytes(b"nothing of the kind")
    assert main(["privacy", "plan", *RUN, f"privacy.ledger_dir={tmp_path}"]) == 1
    assert "cannot be used" in capsys.readouterr().err
    assert main(["privacy", "ledger", str(tmp_path / "0.sqlite")]) == 1
    assert "cannot be used" in capsys.readouterr().err
