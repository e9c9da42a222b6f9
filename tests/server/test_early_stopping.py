"""A run that stops early ends as usual, states the privacy that it spent, and can be continued."""

import json
import shutil
from pathlib import Path

import pytest

import fedsvd
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, RunError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.report.loaded_runs import read_run
from fedsvd.report.privacy_statement import statement_markdown
from fedsvd.report.run_sections import summary
from fedsvd.runs.best_round import read_best_round
from fedsvd.runs.folder import RunFolder, read_rows
from server.early_stopping import check_evaluated

# Nothing is learned, so the best round is the one before training, whatever the secret noise is.
OVERRIDES = ["train.num_rounds=8", "train.early_stopping=2", "train.learning_rate=1e-12", "privacy.accountant=rdp"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    fedsvd.train("experiment=smoke", "plots=false", *OVERRIDES, run_dir=folder)
    return folder


def rounds(folder: Path) -> list[int]:
    return [row["server_round"] for row in read_rows(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_the_run_ends_with_its_results_and_the_privacy_of_its_rounds(stopped: Path) -> None:
    record, privacy = (json.loads((stopped / name).read_text()) for name in ("run.json", "privacy.json"))

    assert rounds(stopped) == [0, 1, 2]
    assert record["state"] == "finished"
    assert record["stopped_early"] == {
        "server_round": 2, "num_rounds": 8, "best_round": 0, "metric": "accuracy", "patience": 2,
    }  # fmt: skip
    assert (stopped / "adapter" / "adapter_model.safetensors").is_file()
    best = read_best_round(RunFolder(stopped))
    assert best is not None
    assert best.server_round == 0
    # Two rounds of two steps, with the noise of eight rounds.
    for client in privacy["clients"].values():
        spend = Spend(client["noise_multiplier"], client["sample_rate"], 4)
        assert client["epsilon"] == pytest.approx(epsilon([spend], 1e-5, "rdp"))
        assert client["epsilon"] < 0.8 * 6
    largest = max(client["epsilon"] for client in privacy["clients"].values())
    assert privacy["guarantee"]["epsilon"] == pytest.approx(largest)
    statement = statement_markdown(stopped)
    assert "after round 2 of 8, by a metric of its models on held-out texts. ε is that of the 2 rounds" in statement
    assert "What could be promised before the run, wherever it would end, is ε of all 8 rounds" in statement
    text = summary(read_run(stopped, stopped)).blocks[1].text  # type: ignore[union-attr]
    assert text.startswith("The run stopped early after round 2 of 8: accuracy has not improved since round 0")


@pytest.mark.slow
def test_it_stops_again_unless_it_is_resumed_with_more_patience(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    capsys.readouterr()

    assert main(["train", f"resume={folder}"]) == 0
    assert rounds(folder) == [0, 1, 2]
    assert "stopped early after round 2 of 8" in capsys.readouterr().out
    assert main(["train", f"resume={folder}", "train.early_stopping=3"]) == 0
    assert rounds(folder) == [0, 1, 2, 3]
    assert json.loads((folder / "run.json").read_text())["stopped_early"]["server_round"] == 3


@pytest.mark.slow
def test_rows_that_are_missing_are_noticed(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))

    with pytest.raises(RunError, match="ends with round 1, but the run has finished 2 rounds"):
        read_run(folder, folder)


def test_a_rule_without_a_metric_is_refused() -> None:
    config = compose(["experiment=smoke", "train.early_stopping=2"])

    check_evaluated(config, {"held_out": {"num_examples": 1}})
    with pytest.raises(ConfigError, match=r"train\.early_stopping = 2 is not possible .*holds out no texts"):
        check_evaluated(config, {"held_out": {"num_examples": 0}})
