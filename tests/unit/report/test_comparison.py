"""The report of a comparison: statistics and tables, against values by hand."""

import math
from pathlib import Path

import pytest
from comparison_rows import row, settings

from fedsvd.comparison.tuning import Choice, choose
from fedsvd.report.comparison import mean_ranks, write_report
from fedsvd.report.plateau import late_gain
from fedsvd.report.statistics import mean_and_error, paired_difference


def test_means_errors_and_paired_differences_match_hand_computed_values() -> None:
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(mean_and_error([1.0])[1])
    # Differences 1, 2, 3: mean 2, error 1/√3, t = 2√3 with 2 degrees of freedom.
    mean, error, p = paired_difference({0: 2.0, 1: 4.0, 2: 6.0, 7: 0.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (mean, error) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert p == pytest.approx(0.0742, abs=1e-4)


def test_mean_ranks_match_hand_computed_values(tmp_path: Path) -> None:
    config = settings("compare.only_tasks=[movies,domains]")
    # Ranks of fedsvd: 1, shared 1.5, 2; domains at seed 1 has one result, so it counts for nobody.
    values = {("movies", 0): (0.8, 0.7), ("movies", 1): (0.6, 0.6), ("domains", 0): (0.5, 0.9), ("domains", 1): (1.0,)}
    rows = [
        row(name, accuracy, phase="final", task=task, seed=seed)
        for (task, seed), pair in values.items()
        for name, accuracy in zip(("fedsvd", "flora"), pair, strict=False)
    ]

    ranks = mean_ranks(rows, config, 3)

    assert ranks == {"fedsvd": pytest.approx((1.5, 0.5 / 3**0.5)), "flora": pytest.approx((1.5, 0.5 / 3**0.5))}
    assert mean_ranks(rows, config, 0) == {}
    table = write_report(rows, config, tmp_path, "fedsvd compare").read_text(encoding="utf-8")
    assert "| fedsvd | – | 1.5 ± 0.3 |" in table
    assert "not tuned" not in table


def test_a_small_p_value_is_not_shown_as_zero(tmp_path: Path) -> None:
    rows = [
        row(name, accuracy, phase="final", seed=seed)
        for seed in range(5)
        for name, accuracy in (("fedsvd", 0.5), ("flora", 0.6 + 1e-4 * seed))
    ]
    table = write_report(rows, settings("compare.epsilons=[3]"), tmp_path, "fedsvd compare").read_text(encoding="utf-8")
    assert "| flora | +10.0 ± 0.0 (p < 0.001) |" in table


def test_the_gain_in_the_second_half_is_the_last_minus_the_middle_evaluation(tmp_path: Path) -> None:
    assert late_gain({"evaluations": {"0": 0.5, "10": 0.7, "20": 0.8, "30": 0.75}}) == pytest.approx(0.05)
    assert late_gain({"evaluations": {"0": 0.5, "40": 0.75}}) is None
    assert late_gain({"evaluations": {"0": 0.5, "20": None, "40": 0.75}}) is None
    assert late_gain({}) is None

    rows = [
        row(name, last, phase="final", seed=seed, epsilon=0, evaluations={"0": 0.5, "2": 0.7, "4": last})
        for name, last in (("fedsvd", 0.71), ("flora", 0.8))
        for seed in (0, 1)
    ]
    table = write_report(rows, settings(), tmp_path, "fedsvd compare").read_text(encoding="utf-8")
    assert "| fedsvd | +1.0 ± 0.0 |" in table
    assert "| flora | +10.0 ± 0.0 |" in table


def test_results_of_another_task_are_in_its_own_metric(tmp_path: Path) -> None:
    config = settings("compare.epsilons=[3]")
    rows = [
        row(name, value + 0.01 * seed, phase="final", seed=seed, model_task="regression")
        for name, value in (("fedsvd", 0.6), ("flora", 0.65))
        for seed in (0, 1)
    ]
    table = write_report(rows, config, tmp_path, "fedsvd compare").read_text(encoding="utf-8")
    assert "Held-out Spearman, mean" in table
    assert "| fedsvd | 0.605 ± 0.005 |" in table
    assert "| flora | +0.050 ± 0.000" in table


def test_cells_without_a_run_are_dashes(tmp_path: Path) -> None:
    rows = [row("fedsvd", 0.6, phase="final", seed=seed) for seed in (0, 1)]
    table = write_report(rows, settings(), tmp_path, "a command").read_text(encoding="utf-8")
    assert "| fedsvd | – | 60.0 ± 0.0 | private: 0.5 |" in table
    assert "| flora | – | – |  |" in table


def test_failed_runs_have_no_accuracy_and_are_marked(tmp_path: Path) -> None:
    lost = {"accuracy": None, "failed": "RunError: away"}
    rows = [row("fedsvd", 0.6, phase="final", seed=0), {**row("fedsvd", 0, phase="final", seed=1), **lost}]
    rows += [{**row("flora", 0, phase="final", seed=0), **lost}]
    table = write_report(rows, settings(), tmp_path, "a command").read_text(encoding="utf-8")
    assert "| fedsvd | – | 60.0 (1 failed) | private: 0.5 |" in table
    assert "| flora | – | – (1 failed) |" in table
    tuning = [row("fedsvd", 0.1, 1.0), {**row("fedsvd", 0, 0.5), **lost}]
    assert choose(tuning) == {("movies", "fedsvd", 3): Choice(1.0)}


def test_contenders_without_a_run_at_a_budget_are_dashes(tmp_path: Path) -> None:
    names = ("fedsvd_shared_noise", "head_only_shared_noise")
    config = settings(f"compare.only_contenders=[{','.join(names)}]", f"compare.baseline={names[1]}")
    rows = [row(name, 0.6 + 0.1 * index, phase="final", seed=0) for index, name in enumerate(names)]

    assert mean_ranks(rows, config, 0) == {}
    table = write_report(rows, config, tmp_path, "a command").read_text(encoding="utf-8")
    assert "| fedsvd_shared_noise | – | 60.0 | private: 0.5 |" in table
    assert "| fedsvd_shared_noise | – | 2.0 |" in table
    assert (tmp_path / "comparison.png").is_file()


def test_rates_of_several_private_budgets_are_shown_by_budget(tmp_path: Path) -> None:
    budgets = ("compare.epsilons=[0,6,3,1]", "compare.only_contenders=[fedsvd]")
    rates = {0: 0.25, 6: 0.5, 3: 0.5, 1: 2.0}
    rows = [row("fedsvd", rate, rate, epsilon=1) for rate in (1.0, 2.0)]
    rows += [row("fedsvd", 0.6, rate, epsilon=epsilon, phase="final", seed=0) for epsilon, rate in rates.items()]

    def table(tuned_at: str) -> str:
        config = settings(*budgets, f"compare.tuning_epsilons={tuned_at}")
        return write_report(rows, config, tmp_path, "a command").read_text(encoding="utf-8")

    # The choice at 6 is used at 3, too.
    assert "| ∞: 0.25, ε = 6: 0.5, ε = 3: 0.5, ε = 1: 2, an end of its grid |" in table("[0,6,1]")
    assert "| ∞: 0.25, private: 2" in table("[0,1]")


def test_report_says_whose_budget_is_of_clients(tmp_path: Path) -> None:
    own = ["+compare.contenders.whole=['privacy=client_level']", "compare.only_contenders=[fedsvd,whole]"]
    rows = [row(name, 0.6, phase="final", seed=0) for name in ("fedsvd", "whole")]
    table = write_report(rows, settings(*own), tmp_path, "a command").read_text(encoding="utf-8")
    assert "ε of whole is for each client's whole data set, all others for each example." in table
    assert "whole data set" not in write_report(rows, settings(), tmp_path, "a command").read_text(encoding="utf-8")
