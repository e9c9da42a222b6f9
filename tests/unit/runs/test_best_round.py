"""The best round by its held-out metric."""

from pathlib import Path

import pytest

from fedsvd.runs.best_round import BestRound, best_row, early_stop, read_best_round, write_best_round
from fedsvd.runs.folder import RunFolder


def rows(key: str, *values: float | None) -> list[dict[str, object]]:
    return [{"server_round": number, "accuracy": 0.5, key: value} for number, value in enumerate(values)]


def test_the_first_round_of_highest_accuracy_is_best() -> None:
    best = best_row(rows("accuracy", 0.5, None, 0.7, 0.6, 0.7), "sequence_classification")

    assert best is not None
    assert best["server_round"] == 2
    assert best_row(rows("accuracy", None, None), "sequence_classification") is None
    assert best_row([], "sequence_classification") is None


def test_the_round_of_lowest_perplexity_is_best_for_a_language_model() -> None:
    best = best_row(rows("perplexity", 9.0, 3.0, None, 3.0, 4.0), "causal_lm")

    assert best is not None
    assert best["server_round"] == 1


def test_the_choice_is_stored_with_the_adapter_and_says_what_its_figure_is_worth(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    best = BestRound(7, "accuracy", 0.9125, "91.2%", "test", 1000, 11)
    assert read_best_round(folder) is None
    write_best_round(folder.best_adapter, best)

    assert read_best_round(folder) == best
    assert str(best) == (
        "round 7, the best of 11 evaluated rounds by accuracy on 1,000 held-out texts (91.2%). It was chosen on these "
        "texts, so this figure is optimistic; to measure it without bias, choose it with data.evaluate_on=validation."
    )
    validated = str(BestRound(2, "perplexity", 12.345, "12.345", "validation", 50, 3))
    assert "optimistic" not in str(BestRound(0, "accuracy", 0.5, "50.0%", "test", 10, 1))
    assert "by perplexity on 50 validation texts (12.345)" in validated
    assert "fedsvd evaluate RUN_DIR --best data.evaluate_on=test measures it" in validated


@pytest.mark.parametrize("content", ["", "[]", '{"server_round": 1}'])
def test_a_damaged_file_is_no_choice(content: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.best_adapter.mkdir()
    (folder.best_adapter / "best_round.json").write_text(content)

    assert read_best_round(folder) is None


def test_a_run_stops_once_the_best_round_is_as_long_ago_as_the_patience() -> None:
    task, values = "sequence_classification", [0.5, 0.6, None, 0.7, 0.6, None, 0.7, 0.8]
    history = rows("accuracy", *values)

    def stops(patience: int | None, num_rounds: int = 20) -> list[int]:
        ends = [early_stop(history[: number + 1], task, patience, num_rounds) for number in range(len(history))]
        return [end.server_round for end in ends if end is not None]

    assert stops(None) == []
    # Only after an evaluated round; an equal value is no improvement.
    assert stops(1) == [4, 6]
    assert stops(2) == [6]
    assert stops(4) == []
    # A run that has taken all rounds has not stopped early.
    assert stops(2, num_rounds=6) == []
    assert early_stop([], task, 1, 20) is None
    end = early_stop(history[:7], task, 3, 20)
    assert str(end).startswith(
        "stopped early after round 6 of 20: accuracy has not improved since round 3 (train.early"
    )
    assert early_stop(rows("perplexity", 4.0, 3.0, 3.5), "causal_lm", 1, 20) is not None
    assert early_stop(rows("perplexity", 4.0, 3.0, 2.5), "causal_lm", 1, 20) is None
