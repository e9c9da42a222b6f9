"""Resumed runs: what they refuse, and that no statement about their privacy is false."""

import csv
import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import COMMON, PRIVATE, KilledError, accounted, claimed, recorded, strip_settings

import fedsvd
import server.evaluation
from fedsvd.cli import main
from fedsvd.privacy.ledger import Ledger
from fedsvd.report.privacy_statement import guarantee_line, statement_markdown
from fedsvd.runs.folder import RunFolder, read_json, read_rows, write_json, write_rows
from fedsvd.runtime.base_model import load_public_corpus
from fedsvd.runtime.data import clear_data_cache

pytestmark = pytest.mark.slow


def train(folder: Path, *overrides: str) -> Path:
    fedsvd.train(*COMMON, *overrides, run_dir=folder)
    return folder


@pytest.fixture(scope="module")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("open") / "run", "privacy=none")


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("private") / "run", *PRIVATE)


def digest(folder: Path) -> dict[str, str]:
    """Return the content of all files of a run but the logs."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".hydra" not in path.parts]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix != ".log" and path.name != ".running"
    }


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("privacy=dp_sgd", "privacy.name from none to dp_sgd"),
        ("seed=5", "seed from 0 to 5"),
        ("train.num_rounds=1", "train.num_rounds = 1 is below the 2 rounds"),
        ("method=ffa_lora", "method.name from fedsvd to ffa_lora"),
        ("partition=iid", "partition.name from dirichlet to iid"),
    ],
)
def test_refused_changes_of_an_open_run_change_nothing(
    override: str, change: str, open_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(open_run)

    assert main(["train", f"resume={open_run}", override]) == 2
    assert (
        main(["train", f"resume={open_run}", override, *(["train.num_rounds=4"] if "rounds" not in override else [])])
        == 2
    )

    printed = capsys.readouterr().err
    assert printed.count(change) == 2
    assert "Traceback" not in printed
    assert digest(open_run) == before


def test_an_open_run_can_have_more_rounds_and_gives_no_guarantee(open_run: Path, tmp_path: Path) -> None:
    shutil.copytree(open_run, tmp_path / "run")
    assert main(["train", f"resume={tmp_path / 'run'}", "train.num_rounds=3"]) == 0

    assert [row["privacy"]["name"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == ["none"] * 4
    assert claimed(tmp_path / "run") is None
    assert read_json(tmp_path / "run" / "privacy.json")["guarantee"]["status"] == "none"


def test_more_rounds_show_both_noise_multipliers_and_are_accounted_for(
    private_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(private_run, tmp_path / "run")
    assert main(["train", f"resume={folder}", "train.num_rounds=4"]) == 0
    printed = capsys.readouterr().out

    charges, statement = recorded(read_rows(folder / "metrics.jsonl")), statement_markdown(folder)
    for name, spends in charges.items():
        multipliers = {f"{spend.noise_multiplier:.3f} (2 steps)" for spend in spends}
        assert len(multipliers) == 2
        assert all(text in statement for text in multipliers)
        assert len(read_json(folder / "privacy.json")["clients"][name]["charges"]) == 2
    exact = max(accounted(spends) for spends in charges.values())
    assert exact <= (claimed(folder) or 0) <= exact + 0.01
    assert "ε = 6 each time that the run was started, and ε = 40 in total" in statement
    assert f"privacy: ε ≤ {claimed(folder):.2f} at δ = 1e-05 per example of a client" in printed


def test_deleted_ledgers_do_not_lower_the_claim(private_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(private_run, tmp_path / "run")
    shutil.rmtree(folder / "clients")
    assert main(["train", f"resume={folder}", "train.num_rounds=4"]) == 0

    rows = read_rows(folder / "metrics.jsonl")
    exact = max(accounted(spends) for spends in recorded(rows).values())
    assert exact <= (claimed(folder) or 0) <= exact + 0.01
    assert rows[-1]["epsilon"] >= exact
    assert read_json(folder / "privacy.json")["guarantee"]["epsilon"] >= exact


def test_a_killed_round_counts_although_the_run_cannot_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without room for a second attempt of the last round.
    folder, saved = tmp_path / "run", server.evaluation.save_checkpoint

    def kill(path: Path, checkpoint: Any, keep: int | None) -> None:
        if checkpoint.server_round == 2:
            raise KilledError
        saved(path, checkpoint, keep)

    monkeypatch.setattr(server.evaluation, "save_checkpoint", kill)
    with pytest.raises(KilledError):
        main(["train", *COMMON, f"hydra.run.dir='{folder}'", "privacy.accountant=rdp"])
    monkeypatch.undo()
    (folder / "privacy.json").unlink()  # As if the process had been killed a moment earlier.
    # The budget does not hold the round once more.
    assert main(["train", f"resume={folder}"]) == 1

    rows = read_rows(folder / "metrics.jsonl")
    for number in (0, 1):
        with Ledger.read(RunFolder(folder).ledger(number)) as ledger:
            assert (claimed(folder) or 0) >= accounted(ledger.history())
    assert len(rows) == 2
    assert "in rounds that were interrupted" in statement_markdown(folder)


def write_csv(path: Path, classes: Sequence[str], changed: str = "") -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number in range(80):
            writer.writerow([f"Text {number} of {number % 7}.{changed if number == 3 else ''}", classes[number % 2]])
    # As in another process.
    clear_data_cache()
    return path


def test_other_data_and_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "data.csv", "01")
    folder = train(tmp_path / "run", "data=csv", f"data.path={path}", "privacy=none", "train.num_rounds=1")
    before = digest(folder)

    write_csv(path, "ab")
    assert main(["train", f"resume={folder}", "train.num_rounds=2"]) == 2
    assert "cannot change the classes from 0, 1 to a, b" in capsys.readouterr().err
    write_csv(path, "01", changed=" Changed.")
    assert main(["train", f"resume={folder}", "train.num_rounds=2"]) == 2
    assert re.search(r"cannot change (the held-out examples|the data of client \d) from", capsys.readouterr().err)
    assert digest(folder) == before

    # The same data in another place are the same data.
    path.unlink()
    moved = write_csv(tmp_path / "moved.csv", "01")
    assert main(["train", f"resume={folder}", "train.num_rounds=2", f"data.path={moved}"]) == 0


def write_public_text(path: Path, word: str) -> Path:
    path.write_text("".join(f"The {word} of page {number} is public.\n" for number in range(120)), encoding="utf-8")
    # As in another process.
    load_public_corpus.cache_clear()
    return path


@pytest.mark.parametrize("use", ["model.standardize=public", "method.init_b=public_jacobian"])
def test_another_public_text_is_refused(use: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_public_text(tmp_path / "public.txt", "text")
    options = (use, f"model.public_text={path}", "privacy=none", "train.num_rounds=1")
    folder = train(tmp_path / "run", "model.pooling=mean", *options)
    if "standardize" in use:
        # As an earlier version recorded it.
        write_json(folder / "run.json", {k: v for k, v in read_json(folder / "run.json").items() if k != "public_text"})
    before = digest(folder)

    write_public_text(path, "content")
    assert main(["train", f"resume={folder}", "train.num_rounds=2"]) == 2
    corpus = r"120 texts \(SHA-256 [0-9a-f]{12}…\)"
    message = rf"cannot change the public text \(model\.public_text\) from {corpus} to {corpus}: "
    assert re.search(message, capsys.readouterr().err)
    assert digest(folder) == before

    write_public_text(path, "text")
    assert main(["train", f"resume={folder}", "train.num_rounds=2"]) == 0


def test_predict_and_export_state_the_guarantee(
    open_run: Path, private_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (folder, line) in enumerate(((open_run, "privacy: no guarantee"), (private_run, "privacy: ε ≤ "))):
        capsys.readouterr()
        assert main(["predict", str(folder), "--text", "Fine.", "--json"]) == 0
        printed = capsys.readouterr()
        assert line in printed.err
        assert "privacy:" not in printed.out
        assert main(["export", str(folder), "--to", str(tmp_path / str(number))]) == 0
        assert line in capsys.readouterr().out
        card = (tmp_path / str(number) / "README.md").read_text(encoding="utf-8")
        assert ("- differential-privacy" in card) == (folder == private_run)


def test_runs_of_earlier_versions_claim_no_more_than_their_rows_prove(
    open_run: Path, private_run: Path, tmp_path: Path
) -> None:
    private, mixed = (shutil.copytree(private_run, tmp_path / name) for name in ("private", "mixed"))
    strip_settings(private)
    assert "Not proven by the records" in statement_markdown(private)
    assert "Under this condition, the run is" in statement_markdown(private)
    assert "only if the run was never resumed with other settings" in guarantee_line(private)

    # As after a run without privacy that was resumed with it.
    shutil.copy(open_run / "metrics.jsonl", mixed / "metrics.jsonl")
    rows = [*read_rows(mixed / "metrics.jsonl")[:2], read_rows(private_run / "metrics.jsonl")[2]]
    write_rows(mixed / "metrics.jsonl", rows)
    strip_settings(mixed)
    assert "This run gives no guarantee: round 1 ran without differential privacy" in statement_markdown(mixed)
    assert main(["report", str(mixed)]) == 0
    assert "differentially private for it" not in (mixed / "report.md").read_text(encoding="utf-8")
    # It stays so, whatever follows.
    assert main(["train", f"resume={mixed}", "train.num_rounds=3"]) == 0
