"""``fedsvd compare`` on real runs, small; how rates are chosen and means are told, by hand."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fedsvd.cli import main
from fedsvd.comparison import (
    chosen_learning_rates,
    final_jobs,
    nearest_budget,
    overrides,
    read_rows,
    split_jobs,
    tuning_jobs,
)
from fedsvd.comparison.workers import Job, take_job_group
from fedsvd.config.compare import CompareConfig
from fedsvd.config.compose import compose, compose_compare
from fedsvd.errors import ConfigError
from fedsvd.report.comparison import mean_and_error, paired_difference, write_report

SMALL = [
    "compare.only_contenders=[fedsvd,flora]", "compare.only_tasks=[movies]", "compare.epsilons=[0,3]",
    "compare.seeds=[0,1]", "compare.learning_rates=[0.5,1]",
]  # fmt: skip


def settings(*words: str) -> CompareConfig:
    return compose_compare([*SMALL, *words])[1]


@pytest.mark.slow
def test_a_small_comparison_ends_in_a_table_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["+compare.contenders.merged=['method=flora']", "compare.only_contenders=[fedsvd,merged]"]
    words = ["compare", "experiment=smoke", *SMALL, *own, f"run_dir={tmp_path}"]
    assert main(words) == 0

    rows = read_rows(tmp_path / "results.jsonl")
    # 2 contenders × 2 budgets × 2 rates, then 2 × 2 × 2 seeds.
    assert [row["phase"] for row in rows].count("tuning") == 8
    assert [row["phase"] for row in rows].count("final") == 8
    assert all(0 < row["epsilon_spent"] <= 3 for row in rows if row["epsilon"] == 3)
    told = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| fedsvd | " in told
    assert "| merged | " in told
    assert told.count("±") >= 4
    with Image.open(tmp_path / "comparison.png") as image:
        assert image.size[0] > 500
    capsys.readouterr()

    # As if it had been killed while the last row was written.
    path = tmp_path / "results.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-20], encoding="utf-8")
    assert main(words) == 0
    again = read_rows(path)
    assert len(again) == 16
    assert {json.dumps(row["overrides"]) for row in again} == {json.dumps(row["overrides"]) for row in rows}

    # Of what the folder holds, a table takes what was asked for: one seed has no standard error.
    assert main([*words, "compare.seeds=[1]"]) == 0
    assert "over 1 seeds" in (one_seed := (tmp_path / "comparison.md").read_text(encoding="utf-8"))
    assert one_seed.count("±") == 1
    assert len(read_rows(path)) == 16

    # The same names for other runs.
    capsys.readouterr()
    assert main([*words, "train.local_steps=2"]) == 2
    assert "other overrides" in " ".join(capsys.readouterr().err.split())


def test_a_process_goes_on_with_the_task_whose_texts_it_holds() -> None:
    movies, domains, more = ([Job("final", task, "fedsvd", 3.0, 0, 1.0)] for task in ("movies", "domains", "domains"))
    left = [movies, domains, more]
    assert take_job_group(left, "domains") is domains
    assert take_job_group(left, "news") is movies
    assert take_job_group(left, None) is more
    assert take_job_group(left, "movies") == ()


def test_every_run_composes_as_a_run_of_its_own() -> None:
    whole = compose_compare(
        [
            "compare.learning_rates=[0.3]",
            "compare.seeds=[0]",
            "compare.epsilons=[0,3]",
        ]
    )[1]
    for job in tuning_jobs(whole):
        config = compose(overrides(job, ["experiment=compare"], whole))
        assert config.data.evaluate_on == "validation"
        assert (config.privacy.name == "none") == (job.epsilon == 0)
        assert config.train.learning_rate == job.learning_rate
    rates = dict.fromkeys(
        [(t, c, e) for t in whole.tasks for c in whole.contenders for e in whole.tuning_epsilons], 0.3
    )
    jobs = final_jobs(whole, rates)
    assert len(jobs) == len(whole.tasks) * len(whole.contenders) * 2
    assert all(overrides(job, [], whole)[-1] == "data.evaluate_on=test" for job in jobs)


def test_one_task_may_choose_the_rates_of_all() -> None:
    whole = compose_compare(["compare.tuning_task=domains"])[1]
    assert {job.task for job in tuning_jobs(whole)} == {"domains"}
    rates = {("domains", c, e): 1.0 + e for c in whole.contenders for e in whole.tuning_epsilons}
    assert {(job.task, job.learning_rate) for job in final_jobs(whole, rates) if job.epsilon == 3} == {
        ("movies", 4.0), ("domains", 4.0),
    }  # fmt: skip


def test_a_worker_keeps_to_one_task_and_seed_where_there_are_enough() -> None:
    jobs = [Job("final", task, name, 3, seed, 1.0) for task in "ab" for seed in (0, 1) for name in ("x", "y", "z")]

    dealt = split_jobs(jobs, 2)
    assert sorted(map(len, dealt)) == [3, 3, 3, 3]
    assert all(len({(job.task, job.seed) for job in share}) == 1 for share in dealt)
    # One task and seed for two workers: both get a part.
    assert sorted(len(share) for share in split_jobs(jobs[:3], 2)) == [1, 2]


def test_experiment_best_is_the_contender_of_that_name() -> None:
    contender = compose(["experiment=compare", "privacy.target_epsilon=3", *compose_compare([])[1].contenders["best"]])
    best = compose(["experiment=best"])
    assert dataclasses.replace(best, train=contender.train) == contender
    assert dataclasses.replace(best.train, learning_rate=contender.train.learning_rate) == contender.train


def row(contender: str, accuracy: float, rate: float = 0.5, **given: object) -> dict[str, object]:
    base = {"phase": "tuning", "task": "movies", "contender": contender, "epsilon": 3, "seed": 100}
    return {**base, "learning_rate": rate, "accuracy": accuracy, **given}


def test_the_best_rate_is_chosen_and_of_equals_the_smallest() -> None:
    rows = [row("fedsvd", 0.6, 1.0), row("fedsvd", 0.6, 0.5), row("flora", 0.5, 0.5), row("flora", 0.7, 1.0)]
    assert chosen_learning_rates(rows) == {("movies", "fedsvd", 3): 0.5, ("movies", "flora", 3): 1.0}


@pytest.mark.parametrize(("epsilon", "expected"), [(0, 0), (6, 3), (1, 3), (3, 3)])
def test_each_budget_takes_the_choice_at_the_nearest(epsilon: float, expected: float) -> None:
    assert nearest_budget(epsilon, settings()) == expected


def test_means_errors_and_paired_differences_by_hand() -> None:
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(mean_and_error([1.0])[1])
    # Differences 1, 2, 3: mean 2, error 1/√3, t = 2√3 with 2 degrees of freedom.
    mean, error, p = paired_difference({0: 2.0, 1: 4.0, 2: 6.0, 7: 0.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (mean, error) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert p == pytest.approx(0.0742, abs=1e-4)


def test_cells_that_have_not_run_yet_are_dashes(tmp_path: Path) -> None:
    rows = [row("fedsvd", 0.6, phase="final", seed=seed) for seed in (0, 1)]
    told = write_report(rows, settings(), tmp_path, "a command").read_text(encoding="utf-8")
    assert "| fedsvd | – | 60.0 ± 0.0 | private: 0.5 |" in told
    assert "| flora | – | – |  |" in told


WRONG: dict[str, Callable[[], object]] = {
    "compare.baseline = 'other' is not among": lambda: settings("compare.baseline=other"),
    "chosen on a split must not be reported": lambda: settings("compare.tuning_seed=1"),
    "only_contenders names nobody": lambda: settings("compare.only_contenders=[nobody]"),
    "compare.learning_rates": lambda: settings("compare.learning_rates=[0]"),
    "each with a list of overrides": lambda: settings("compare.tasks.movies=5"),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_wrong_is_said_before_anything_runs(said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WRONG[said]()
