"""``fedsvd compare`` on small runs; the choice of learning rates and the statistics, against values by hand."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedsvd import comparison
from fedsvd.cli import main
from fedsvd.comparison import final_jobs, overrides, read_rows, split_jobs
from fedsvd.comparison.tuning import Choice, choose, clipping_jobs, nearest_budget, tuning_jobs
from fedsvd.comparison.workers import Job, Workers, _run_job, take_job_group
from fedsvd.config.compare import CompareConfig
from fedsvd.config.compose import compose, compose_compare
from fedsvd.errors import ConfigError, RunError
from fedsvd.report.comparison import mean_ranks, write_report
from fedsvd.report.plateau import late_gain
from fedsvd.report.statistics import mean_and_error, paired_difference

SMALL = [
    "compare.only_contenders=[fedsvd,flora]", "compare.only_tasks=[movies]", "compare.epsilons=[0,3]",
    "compare.seeds=[0,1]", "compare.learning_rates=[0.5,1]", "compare.clipping_factors=null",
    "compare.without_privacy={all:['train.head_rounds=0']}", "compare.learning_rates_without_privacy=[0.25]",
]  # fmt: skip


def settings(*overrides: str) -> CompareConfig:
    return compose_compare([*SMALL, *overrides])[1]


@pytest.mark.slow
def test_comparison_writes_a_table_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["+compare.contenders.merged=['method=flora']", "compare.only_contenders=[fedsvd,merged]"]
    arguments = ["compare", "experiment=smoke", *SMALL, *own, "compare.tuning_epsilons=[3]", f"run_dir={tmp_path}"]
    assert main(arguments) == 0

    rows = read_rows(tmp_path / "results.jsonl")
    # 2 contenders × 2 rates, then 2 × 2 budgets × 2 seeds.
    assert [row["phase"] for row in rows].count("tuning") == 4
    assert [row["phase"] for row in rows].count("final") == 8
    assert all(0 < row["epsilon_spent"] <= 3 for row in rows if row["epsilon"] == 3)
    table = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| fedsvd | " in table
    assert "| merged | " in table
    assert table.count("±") >= 4
    with Image.open(tmp_path / "comparison.png") as image:
        assert image.size[0] > 500
    capsys.readouterr()

    # Simulate a crash while the last row was written.
    path = tmp_path / "results.jsonl"
    content = path.read_text(encoding="utf-8")
    path.write_text(content[:-20], encoding="utf-8")
    assert main([*arguments, "compare.num_workers=1"]) == 0
    again = read_rows(path)
    assert len(again) == 12
    assert {json.dumps(row["overrides"]) for row in again} == {json.dumps(row["overrides"]) for row in rows}

    # The table contains only the requested results. A single seed has no standard error.
    assert main([*arguments, "compare.seeds=[1]"]) == 0
    assert "over 1 seeds" in (one_seed := (tmp_path / "comparison.md").read_text(encoding="utf-8"))
    assert one_seed.count("±") == 3  # in the three headings
    assert len(read_rows(path)) == 12

    # The same names with other overrides.
    capsys.readouterr()
    assert main([*arguments, "train.local_steps=2"]) == 2
    assert "other overrides" in " ".join(capsys.readouterr().err.split())


def test_worker_prefers_the_task_that_it_has_loaded() -> None:
    movies, domains, more = ([Job("final", task, "fedsvd", 3.0, 0, 1.0)] for task in ("movies", "domains", "domains"))
    left = [movies, domains, more]
    assert take_job_group(left, "domains") is domains
    assert take_job_group(left, "news") is movies
    assert take_job_group(left, None) is more
    assert take_job_group(left, "movies") == ()


@pytest.mark.slow
def test_every_run_composes_as_a_separate_run() -> None:
    config = compose_compare(
        [
            "compare.learning_rates=[0.3]",
            "compare.seeds=[0]",
            "compare.epsilons=[0,3]",
        ]
    )[1]
    tuning = tuning_jobs(config)
    assert {job.contender for job in tuning} == {c for c in config.contenders if config.own_learning_rate(c) is None}
    for job in tuning:
        run = compose(overrides(job, ["experiment=compare"], config))
        assert run.data.evaluate_on == "validation"
        assert (run.privacy.name == "none") == (job.epsilon == 0)
        assert run.train.learning_rate == job.learning_rate
    tuned = {job.contender for job in tuning}
    rates = dict.fromkeys([(t, c, e) for t in config.tasks for c in tuned for e in config.tuning_epsilons], Choice(0.3))
    for job in clipping_jobs(config, rates):
        run, original = (
            compose(overrides(j, ["experiment=compare"], config))
            for j in (job, dataclasses.replace(job, clipping_factor=1))
        )
        assert run.privacy.max_grad_norm == pytest.approx(job.clipping_factor * original.privacy.max_grad_norm)
        assert run.train.learning_rate == pytest.approx(0.3 / job.clipping_factor)
        head = original.train.head_learning_rate
        assert head is not None
        assert run.train.head_learning_rate == pytest.approx(head / job.clipping_factor, rel=1e-5)
    jobs = final_jobs(config, rates)
    # Each contender at two budgets, but the variants with shared noise only at the private one.
    assert len(jobs) == len(config.tasks) * (2 * len(config.contenders) - len(config.with_shared_noise or ()))
    assert all(overrides(job, [], config)[-1] == "data.evaluate_on=test" for job in jobs)


def test_one_task_can_choose_the_rates_of_all() -> None:
    config = compose_compare(["compare.tuning_task=domains"])[1]
    assert {job.task for job in tuning_jobs(config)} == {"domains"}
    rates = {("domains", c, e): Choice(1.0 + e) for c in config.contenders for e in config.tuning_epsilons}
    assert {(job.task, job.learning_rate) for job in final_jobs(config, rates) if job.epsilon == 3} == {
        (task, rate)
        for task in config.tasks
        for rate in (4.0, 1.0)  # 1.0: those with a rate of their own
    }


def test_jobs_are_split_by_task_and_seed_if_there_are_enough() -> None:
    jobs = [Job("final", task, name, 3, seed, 1.0) for task in "ab" for seed in (0, 1) for name in ("x", "y", "z")]

    dealt = split_jobs(jobs, 2)
    assert sorted(map(len, dealt)) == [3, 3, 3, 3]
    assert all(len({(job.task, job.seed) for job in share}) == 1 for share in dealt)
    # Two workers share one task and seed.
    assert sorted(len(share) for share in split_jobs(jobs[:3], 2)) == [1, 2]


def test_runs_read_the_features_of_experiment_best() -> None:
    run, best = compose(["experiment=compare"]), compose(["experiment=best"])
    own = {"max_length": best.model.max_length, "target_modules": best.model.target_modules}
    assert dataclasses.replace(run.model, **own) == best.model
    assert (run.train.sample_rate, run.train.optimizer) == (best.train.sample_rate, best.train.optimizer)
    assert run.privacy.max_grad_norm == best.privacy.max_grad_norm


def test_variants_with_shared_noise_add_its_overrides() -> None:
    own = "+compare.contenders.mine=['method=ffa_lora']"
    config = settings(own, "compare.with_shared_noise=[mine,head_only]", "compare.only_contenders=[mine_shared_noise]")

    (job, *_) = tuning_jobs(config)
    run = compose(overrides(job, ["experiment=compare"], config))
    assert run.method["name"] == "ffa_lora"
    assert run.federation.secure_aggregation
    assert config.own_learning_rate("head_only_shared_noise") == 1
    assert "fedsvd_shared_noise" not in config.contenders
    with pytest.raises(ConfigError, match=r"compare\.with_shared_noise names other, which is not among the contenders"):
        settings("compare.with_shared_noise=[other]")
    assert "fedsvd_shared_noise" not in settings("compare.with_shared_noise=null").contenders


def test_contender_with_a_learning_rate_of_its_own_is_not_tuned(tmp_path: Path) -> None:
    own = "+compare.contenders.fixed=['method=ffa_lora','train.learning_rate=7']"
    config = settings(
        own, "compare.only_contenders=[fixed,flora]", "compare.epsilons=[3]", "compare.tuning_epsilons=[3]"
    )

    assert {job.contender for job in tuning_jobs(config)} == {"flora"}
    jobs = final_jobs(config, {("movies", "flora", 3): Choice(0.5)})

    assert {(job.contender, job.learning_rate) for job in jobs} == {("fixed", 7.0), ("flora", 0.5)}
    table = write_report([], config, tmp_path, "fedsvd compare").read_text(encoding="utf-8")
    assert "| fixed | – | not tuned |" in table
    for job in jobs:
        assert compose(overrides(job, ["experiment=compare"], config)).train.learning_rate == job.learning_rate


@pytest.mark.parametrize("rate", ["x", "0", "-1", "nan"])
def test_invalid_learning_rate_of_a_contender_is_rejected(rate: str) -> None:
    config = settings(f"+compare.contenders.odd=['train.learning_rate={rate}']", "compare.only_contenders=[odd]")
    with pytest.raises(ConfigError, match=f"odd sets train.learning_rate={rate}, which is invalid"):
        tuning_jobs(config)


def row(contender: str, accuracy: float, rate: float = 0.5, **given: object) -> dict[str, object]:
    base = {"phase": "tuning", "task": "movies", "contender": contender, "epsilon": 3, "seed": 100}
    return {**base, "learning_rate": rate, "accuracy": accuracy, **given}


def test_best_rate_is_chosen_and_ties_take_the_smallest() -> None:
    rows = [row("fedsvd", 0.6, 1.0), row("fedsvd", 0.6, 0.5), row("flora", 0.5, 0.5), row("flora", 0.7, 1.0)]
    assert choose(rows) == {("movies", "fedsvd", 3): Choice(0.5), ("movies", "flora", 3): Choice(1.0)}


def test_clipping_norms_are_tried_at_the_chosen_rate_and_the_best_is_used_with_privacy() -> None:
    config = settings("compare.clipping_factors=[0.5,4]")
    tried = clipping_jobs(config, {("movies", "fedsvd", 0): Choice(2.0), ("movies", "fedsvd", 3): Choice(1.0)})
    assert [(job.epsilon, job.learning_rate, job.clipping_factor) for job in tried] == [(3, 2.0, 0.5), (3, 0.25, 4)]

    rows = [row("fedsvd", 0.6, 1.0), row("fedsvd", 0.7, 0.25, clipping_factor=4), row("flora", 0.6)]
    rows += [row(name, 0.8, 2.0, epsilon=0) for name in ("fedsvd", "flora")]
    final = final_jobs(config, choose(rows))
    chosen = {(job.contender, job.epsilon): (job.learning_rate, job.clipping_factor) for job in final}
    assert chosen == {("fedsvd", 3): (0.25, 4), ("fedsvd", 0): (2.0, 1), ("flora", 3): (0.5, 1), ("flora", 0): (2.0, 1)}


@pytest.mark.parametrize(("epsilon", "expected"), [(0, 0), (6, 3), (1, 3), (3, 3)])
def test_each_budget_uses_the_choice_of_the_nearest_tuned_budget(epsilon: float, expected: float) -> None:
    assert nearest_budget(epsilon, settings()) == expected


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


def test_runs_without_privacy_have_their_own_settings_and_rates_and_no_variant_with_shared_noise() -> None:
    names = "compare.only_contenders=[tangent,tangent_shared_noise,fedsvd_a,fedsvd_a_shared_noise,fedsvd]"
    config = compose_compare([
        names, "compare.only_tasks=[movies]", "compare.epsilons=[0,3]", "compare.learning_rates_of={fedsvd_a:[0.7]}",
        "compare.learning_rates=[0.1]", "compare.learning_rates_without_privacy=[0.02]",
    ])[1]  # fmt: skip
    tuning = {(job.contender, job.epsilon): job for job in tuning_jobs(config)}
    rates = {key: job.learning_rate for key, job in tuning.items()}
    private = {
        "tangent": 0.1,
        "tangent_shared_noise": 0.1,
        "fedsvd_a": 0.7,
        "fedsvd_a_shared_noise": 0.7,
        "fedsvd": 0.1,
    }
    assert rates == {(name, 3): rate for name, rate in private.items()} | {
        (name, 0): 0.02 for name in ("tangent", "fedsvd_a", "fedsvd")
    }
    runs = {key: compose(overrides(job, ["experiment=compare"], config)) for key, job in tuning.items()}
    assert (runs["fedsvd", 0].train.optimizer, runs["fedsvd", 0].train.local_steps) == ("adamw", 10)
    assert (runs["tangent", 0].train.optimizer, runs["tangent", 0].train.local_steps) == ("adamw", 1)
    assert (runs["tangent", 3].train.optimizer, runs["tangent", 3].train.num_rounds) == ("sgd", 40)
    for key in ("learning_rates_of.other=[1]", "without_privacy.other=['seed=1']"):
        with pytest.raises(ConfigError, match="names other, which is not among the contenders"):
            compose_compare([f"+compare.{key}"])


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


def test_contenders_of_different_tasks_are_rejected(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = "+compare.contenders.answers=['model=tiny_llama']"
    arguments = ["compare", "experiment=smoke", *SMALL, other, "compare.only_contenders=[fedsvd,answers]"]
    assert main([*arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "answers predicts for model.task = causal_lm what others on compare.tasks.movies predict for" in message


def test_cells_without_a_run_are_dashes(tmp_path: Path) -> None:
    rows = [row("fedsvd", 0.6, phase="final", seed=seed) for seed in (0, 1)]
    table = write_report(rows, settings(), tmp_path, "a command").read_text(encoding="utf-8")
    assert "| fedsvd | – | 60.0 ± 0.0 | private: 0.5 |" in table
    assert "| flora | – | – |  |" in table


@pytest.mark.slow
def test_only_divergence_counts_as_accuracy_zero(tmp_path: Path) -> None:
    smoke = ["experiment=smoke", "plots=false", "train.num_rounds=1"]
    diverged = _run_job([*smoke, "privacy=none", "train.learning_rate=1e30", "train.local_steps=20"])
    failed = _run_job([*smoke, "privacy=none", "data=csv", f"data.path={tmp_path / 'missing.csv'}"])
    no_clients = _run_job([*smoke, "privacy.noise_multiplier=0.3", "privacy.target_epsilon=0.1"])

    assert (diverged["accuracy"], "diverged" in diverged["diverged"]) == (0.0, True)
    assert failed["accuracy"] is None
    assert "missing.csv" in failed["failed"]
    assert no_clients["accuracy"] is None
    assert "no client's update was used" in no_clients["failed"]


def test_failed_runs_have_no_accuracy_and_are_marked(tmp_path: Path) -> None:
    lost = {"accuracy": None, "failed": "RunError: away"}
    rows = [row("fedsvd", 0.6, phase="final", seed=0), {**row("fedsvd", 0, phase="final", seed=1), **lost}]
    rows += [{**row("flora", 0, phase="final", seed=0), **lost}]
    table = write_report(rows, settings(), tmp_path, "a command").read_text(encoding="utf-8")
    assert "| fedsvd | – | 60.0 (1 failed) | private: 0.5 |" in table
    assert "| flora | – | – (1 failed) |" in table
    tuning = [row("fedsvd", 0.1, 1.0), {**row("fedsvd", 0, 0.5), **lost}]
    assert choose(tuning) == {("movies", "fedsvd", 3): Choice(1.0)}


def test_a_failed_run_is_run_again_and_a_contender_without_results_ends_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = settings(
        "compare.only_contenders=[fedsvd]", "compare.epsilons=[0]", "compare.tuning_epsilons=[0]",
        "compare.learning_rates_without_privacy=[0.5,1]",
    )  # fmt: skip
    ran: list[Job] = []

    class FailingWorkers(Workers):
        def run(self, groups: Any, overrides: Any, save: Any) -> None:
            for job in (job for group in groups for job in group):
                ran.append(job)
                save(job, {"accuracy": None, "failed": "RunError: away", "overrides": overrides(job)})

    monkeypatch.setattr(comparison, "Workers", FailingWorkers)
    for _ in range(2):
        with pytest.raises(RunError, match=r"no learning rate of fedsvd on movies at ε = inf .*RunError: away"):
            comparison.run_comparison(["experiment=smoke"], small, tmp_path, lambda *_: None)
    assert len(ran) == 4
    assert len(read_rows(tmp_path / "results.jsonl")) == 2


INVALID: dict[str, Callable[[], object]] = {
    "compare.baseline = 'other' is not among": lambda: settings("compare.baseline=other"),
    "chosen on a split must not be reported": lambda: settings("compare.tuning_seed=1"),
    "only_contenders names nobody": lambda: settings("compare.only_contenders=[nobody]"),
    "compare.learning_rates": lambda: settings("compare.learning_rates=[0]"),
    "each with a list of overrides": lambda: settings("compare.tasks.movies=5"),
}


@pytest.mark.parametrize("message", INVALID)
def test_invalid_settings_raise_before_any_run(message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        INVALID[message]()
