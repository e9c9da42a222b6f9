"""What runs are called, and the reference lines of their plots."""

from pathlib import Path

import pytest

from fedsvd.config.task import TASKS, last_value
from fedsvd.privacy.claim import Claim
from fedsvd.report.labels import (
    HEAD_ONLY,
    UNTRAINED,
    ZERO_SHOT,
    clients_label,
    method_label,
    planned_rounds,
    trains_factors,
)
from fedsvd.report.loaded_runs import Run, best_run
from fedsvd.report.plots import accuracy_figure, reference_accuracies

CONFIG = {"method.name": "fedsvd", "train.num_rounds": 4}


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "fedsvd"),
        ({"train.trains": "factors"}, "fedsvd"),
        ({"train.head_rounds": 3}, "fedsvd"),
        ({"train.head_rounds": 4}, HEAD_ONLY),
        ({"train.trains": "head"}, HEAD_ONLY),
        ({"train.trains": "none", "train.head_init": "zero_shot"}, ZERO_SHOT),
        ({"train.trains": "none"}, UNTRAINED),
    ],
    ids=str,
)
def test_a_run_without_factors_is_not_called_by_its_method(changes: dict[str, object], label: str) -> None:
    config = {**CONFIG, **changes}
    assert method_label(config) == label
    assert trains_factors(config) == (label == "fedsvd")
    assert planned_rounds(config) == (0 if changes.get("train.trains") == "none" else 4)


def test_reference_lines_are_measured_or_configured() -> None:
    rows = [{"server_round": n, "accuracy": 0.5 + 0.1 * n, "epsilon": None} for n in range(3)]
    assert reference_accuracies(rows, CONFIG) == {}
    assert reference_accuracies(rows[1:], {"train.head_init": "zero_shot"}) == {}
    lines = reference_accuracies(rows, {"train.head_init": "zero_shot", "reference_accuracy": 0.84})
    assert lines == {"zero-shot": 0.5, "without privacy": 0.84}
    axes = accuracy_figure(rows, lines).axes[0]
    assert [text.get_text() for text in axes.texts] == ["70.0%", "zero-shot 50.0%", "without privacy 84.0%"]
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [0.5, 0.84]


def test_a_score_is_that_of_the_last_evaluation_or_none() -> None:
    spearman = TASKS["regression"].metrics[0]
    rows: list[dict[str, float | None]] = [{"loss": 1.0, "spearman": 0.2}, {"loss": None}]

    assert last_value(rows, spearman) == 0.2
    # Undefined, or not computed: the value before training is not that of the trained model.
    assert last_value([*rows, {"loss": 0.5}, {"loss": None}], spearman) is None


def test_no_run_is_the_best_of_different_metrics() -> None:
    def run(task: str, key: str, value: float) -> Run:
        row = {"server_round": 0, "loss": 1.0, key: value}
        config = {"model.task": task, "train.num_rounds": 1}
        record = {"state": "finished"}
        return Run(Path(), task, config, [], [row], {}, Claim("none", "", None, None, 1e-5, ()), record, [])

    low, high = (run("regression", "spearman", value) for value in (0.1, 0.3))
    assert best_run([low, high]) is high
    assert best_run([low, run("token_classification", "span_f1", 0.9)]) is None


@pytest.mark.parametrize(("participants", "label"), [({}, "4 clients"), ({"federation.participants": [2]}, "1 client")])
def test_clients_that_take_part_are_counted(participants: dict[str, list[int]], label: str) -> None:
    assert clients_label({"federation.num_clients": 4, **participants}) == label
