"""Settings of a comparison that are refused before anything runs."""

from pathlib import Path

import pytest
from comparison_rows import NoWorkers, refused, settings

from fedsvd import comparison
from fedsvd.comparison import final_jobs
from fedsvd.comparison.tuning import Choice, tuning_jobs
from fedsvd.errors import ConfigError

VARIANTS = "compare.only_contenders=[fedsvd_shared_noise,head_only_shared_noise]"
LISTS = {
    "seeds": "[0,0]",
    "epsilons": "[0,3,3.0]",
    "learning_rates": "[0.5,1,0.5]",
    "learning_rates_without_privacy": "[0.25,0.25]",
    "clipping_factors": "[3,3]",
    "tuning_epsilons": "[3,3]",
    "learning_rates_of.fedsvd_a": "[1,1]",
    "only_contenders": "[fedsvd,fedsvd]",
    "only_tasks": "[movies,movies]",
    "with_shared_noise": "[fedsvd,fedsvd]",
}


@pytest.mark.parametrize("key", LISTS)
def test_a_value_that_is_given_twice_is_refused(key: str) -> None:
    name = key.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"compare\.{name} = .* is invalid: expected .*(repetitions|different)"):
        settings(f"compare.{key}={LISTS[key]}")


def test_variants_need_a_tuning_budget_with_noise() -> None:
    tuned = ("compare.only_contenders=[fedsvd,fedsvd_shared_noise,head_only_shared_noise]", "compare.epsilons=[0,3]")
    with pytest.raises(
        ConfigError,
        match=r"compare\.tuning_epsilons = \[0\.0\] has no budget at which .* of fedsvd_shared_noise can be chosen: .*"
        r"Add a budget > 0",
    ):
        settings(*tuned, "compare.tuning_epsilons=[0]")
    with_noise = settings(*tuned, "compare.tuning_epsilons=[0,1]")
    choices = {(job.task, job.contender, job.epsilon): Choice(job.learning_rate) for job in tuning_jobs(with_noise)}
    assert len(final_jobs(with_noise, choices)) == 2 * (2 + 1 + 1)
    # Without a private budget, they have no run. A learning rate of their own needs no tuning.
    settings(tuned[0], "compare.tuning_epsilons=[0]", "compare.epsilons=[0]")
    settings(*tuned, "compare.tuning_epsilons=[0]", "compare.only_contenders=[fedsvd,head_only_shared_noise]")


def test_a_comparison_without_any_run_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"compare\.epsilons = \[0\.0\] leaves no run of fedsvd_shared_noise, head_only_shared_noise: .*"
        r"Give a budget > 0",
    ):
        settings(VARIANTS, "compare.epsilons=[0]", "compare.tuning_epsilons=[3]")


def test_budgets_at_which_rates_are_chosen_are_checked_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Workers", NoWorkers)
    invalid = "compare.without_privacy={all:['train.local_steps=0']}"
    message = refused([invalid, "compare.epsilons=[3]", "compare.tuning_epsilons=[3,0]"], tmp_path, capsys)
    assert "train.local_steps = 0" in message
    elsewhere = ["compare.tuning_task=ratings", "compare.tasks.ratings=['data.min_abs_rating=-1']"]
    assert "data.min_abs_rating = -1" in refused([*elsewhere, "compare.epsilons=[3]"], tmp_path, capsys)
