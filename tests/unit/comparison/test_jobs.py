"""The runs of a comparison, and the choice of learning rates and clipping norms."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from comparison_rows import row, settings

from fedsvd.comparison import final_jobs, overrides, split_jobs
from fedsvd.comparison.tuning import Choice, choose, clipping_jobs, extension_jobs, tune, tuning_jobs
from fedsvd.comparison.workers import Job, take_job_group
from fedsvd.config.compose import compose, compose_compare
from fedsvd.errors import ConfigError
from fedsvd.report.comparison import write_report


def test_worker_prefers_the_task_that_it_has_loaded() -> None:
    movies, domains, more = ([Job("final", task, "fedsvd", 3.0, 0, 1.0)] for task in ("movies", "domains", "domains"))
    left = [movies, domains, more]
    assert take_job_group(left, "domains") is domains
    assert take_job_group(left, "news") is movies
    assert take_job_group(left, None) is more
    assert take_job_group(left, "movies") == ()


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
    # Three workers share the fourth task and seed.
    assert [len(share) for share in split_jobs(jobs, 3)] == [3, 3, 3, 1, 1, 1]
    # Two workers share one task and seed.
    assert sorted(len(share) for share in split_jobs(jobs[:3], 2)) == [1, 2]


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


def test_the_divisor_of_shared_noise_is_that_of_the_task() -> None:
    config = settings("compare.only_contenders=[fedsvd_shared_noise]", "compare.only_tasks=null")
    jobs = {job.task: job for job in tuning_jobs(config)}

    sizes = {
        task: compose(overrides(job, ["experiment=compare"], config)).train.batch_size for task, job in jobs.items()
    }
    assert sizes == {"movies": 2000, "domains": 3800, "newsgroups": 2800, "ratings": 2000}
    with pytest.raises(ConfigError, match=r"compare\.shared_noise_of names other, which is not among the tasks: give"):
        settings("+compare.shared_noise_of.other=['train.batch_size=5']")


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


def test_a_learning_rate_that_replaces_any_other_is_not_tuned_either() -> None:
    config = settings("+compare.contenders.mine=['++train.learning_rate=7']", "compare.only_contenders=[mine]")
    assert config.own_learning_rate("mine") == 7


@pytest.mark.parametrize("rate", ["x", "0", "-1", "nan"])
def test_invalid_learning_rate_of_a_contender_is_rejected(rate: str) -> None:
    config = settings(f"+compare.contenders.odd=['train.learning_rate={rate}']", "compare.only_contenders=[odd]")
    with pytest.raises(ConfigError, match=f"odd sets train.learning_rate={rate}, which is invalid"):
        tuning_jobs(config)


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
    assert settings().nearest_tuning_epsilon(epsilon) == expected


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


def test_a_grid_is_extended_while_its_best_rate_is_at_an_end() -> None:
    config = settings("compare.epsilons=[3]", "compare.tuning_epsilons=[3]", "compare.grid_extensions=2")
    best, asked = {"fedsvd": 5.0, "flora": 0.6}, []

    def execute(jobs: Sequence[Job]) -> list[dict[str, object]]:
        asked.append([(job.contender, job.learning_rate) for job in jobs])
        # The nearer a rate is to the contender's best one, the better.
        distances = [abs(math.log(job.learning_rate / best[job.contender])) for job in jobs]
        return [row(job.contender, 1 - d, job.learning_rate) for job, d in zip(jobs, distances, strict=True)]

    chosen = tune(config, execute)

    grid = [(name, rate) for name in ("fedsvd", "flora") for rate in (0.5, 1.0)]
    # With two rates, each of them is at an end.
    assert asked == [grid, [("fedsvd", 2.0), ("flora", 0.25)], [("fedsvd", 4.0)]]
    assert {name: choice.learning_rate for (_, name, _), choice in chosen.items()} == {"fedsvd": 4.0, "flora": 0.5}


def test_a_grid_is_kept_if_it_must_not_be_extended_or_has_one_rate() -> None:
    rows = [row("fedsvd", 0.6, 1.0), row("fedsvd", 0.5, 0.5), row("flora", 0.5, 0.5)]
    assert [job.learning_rate for job in extension_jobs(settings(), rows)] == [2.0]
    assert extension_jobs(settings(), rows[2:]) == []

    executed: list[Job] = []

    def execute(jobs: Sequence[Job]) -> list[dict[str, object]]:
        executed.extend(jobs)
        return [row(job.contender, job.learning_rate, job.learning_rate) for job in jobs]

    tune(settings("compare.grid_extensions=0", "compare.epsilons=[3]", "compare.tuning_epsilons=[3]"), execute)
    assert {job.learning_rate for job in executed} == {0.5, 1.0}


def test_report_marks_a_choice_at_an_end_of_its_grid(tmp_path: Path) -> None:
    config = settings("compare.epsilons=[3]", "compare.tuning_epsilons=[3]")
    rates = {"fedsvd": 1.0, "flora": 1.0}
    rows = [row("fedsvd", rate, rate) for rate in (0.5, 1.0)] + [
        row("flora", 1 - rate / 9, rate) for rate in (0.5, 1, 2)
    ]
    rows += [row(name, 0.7, rate, phase="final", seed=0) for name, rate in rates.items()]
    table = write_report(rows, config, tmp_path, "fedsvd compare").read_text(encoding="utf-8")
    assert "| private: 1, an end of its grid |" in table
    assert "| private: 1 |" in table
    # Another task chose the rates.
    rows = [item | {"task": "domains"} if item["phase"] == "tuning" else item for item in rows]
    elsewhere = settings("compare.epsilons=[3]", "compare.tuning_epsilons=[3]", "compare.tuning_task=domains")
    assert write_report(rows, elsewhere, tmp_path, "fedsvd compare").read_text(encoding="utf-8") == table

    # The chosen clipping norm is another one, and the rate was divided by its factor.
    rows = [row("fedsvd", rate, rate) for rate in (0.5, 1.0)]
    rows += [row("fedsvd", 0.9, 0.25, clipping_factor=4.0, **more) for more in ({}, {"phase": "final", "seed": 0})]
    table = write_report(rows, config, tmp_path, "fedsvd compare").read_text(encoding="utf-8")
    assert "| private: 0.25 (× 4), an end of its grid |" in table
