"""Settings of a comparison that are refused before anything runs."""

import json
import re
from pathlib import Path

import pytest
from comparison_rows import NoWorkers, refused, row, settings

from fedsvd import comparison
from fedsvd.cli import main
from fedsvd.comparison import final_jobs, overrides
from fedsvd.comparison.tuning import Choice, tuning_jobs
from fedsvd.comparison.workers import Job
from fedsvd.config.compare_keys import check_free_keys
from fedsvd.config.compose import compose
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


def test_a_column_of_answers_is_refused_for_the_classifiers_of_a_new_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Workers", NoWorkers)
    own = "compare.tasks.movies=['data=csv','data.path=a.csv','data.response_column=answer']"
    assert "data.response_column = answer has no effect" in refused([own, "compare.epsilons=[3]"], tmp_path, capsys)


# Keys that all runs get from the comparison, with what to give instead.
SHARED = {
    "seed=7": "compare.seeds",
    "++seed=7": "compare.seeds",
    "data.evaluate_on=validation": "results are those of test texts",
    "privacy.target_epsilon=2": "compare.epsilons",
    "privacy=none": "compare.epsilons, where 0 means no privacy",
    "privacy.name=none": "compare.epsilons, where 0 means no privacy",
    "train.learning_rate=0.5": "compare.learning_rates",
    "plots=true": "the directory of a run is deleted",
    "reference_accuracy=0.8": "the directory of a run is deleted",
    "resume=null": "run the same command again",
}


@pytest.mark.parametrize("override", SHARED)
def test_a_key_that_the_comparison_sets_is_refused_for_all_runs(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Workers", NoWorkers)
    folder = tmp_path / "run"
    message = refused([override], folder, capsys)
    assert f"{override} cannot be set in the arguments" in message
    assert SHARED[override] in message
    assert not folder.exists()


def test_help_lists_the_keys_that_the_comparison_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    words = re.split(r"[\s,]+", capsys.readouterr().out)
    assert {override.partition("=")[0].lstrip("+") for override in SHARED} <= {*words}


@pytest.mark.parametrize("override", SHARED)
@pytest.mark.parametrize("key", ["tasks.movies", "without_privacy.all", "shared_noise_of.movies"])
def test_a_key_that_the_comparison_sets_is_refused_for_a_part_of_the_runs(key: str, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(f"++compare.{key}=['{override}']")
    assert f"{override} cannot be set in compare.{key}, because fedsvd compare sets" in str(caught.value)


@pytest.mark.parametrize("override", ["seed=7", "data.evaluate_on=validation", "privacy.target_epsilon=2"])
def test_a_contender_cannot_choose_seed_budget_or_texts(override: str) -> None:
    for key in ("+compare.contenders.mine", "compare.shared_noise"):
        with pytest.raises(ConfigError) as caught:
            settings(f"{key}=['method=fedsvd','{override}']")
        assert f"{override} cannot be set in {key.lstrip('+')}, because" in str(caught.value)


def test_other_keys_apply_where_neither_task_nor_contender_sets_them() -> None:
    base = ["experiment=compare", "method=ffa_lora", "partition=iid", "train.num_rounds=33"]
    check_free_keys("the arguments", base)
    jobs = [Job("final", "movies", name, 3.0, 0, 0.1) for name in ("fedsvd", "head_only", "central_head")]
    runs = [compose(overrides(job, base, settings())) for job in jobs]
    assert [run.method["name"] for run in runs] == ["fedsvd", "ffa_lora", "ffa_lora"]
    assert [run.partition.name for run in runs] == ["dirichlet", "dirichlet", "iid"]
    assert {run.train.num_rounds for run in runs} == {33}


def test_a_refused_comparison_keeps_the_rows_of_failed_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Workers", NoWorkers)
    rows = [
        {**row("fedsvd", 0.7), "overrides": ["method=other"]},
        {**row("flora", 0.7), "accuracy": None, "failed": "RunError: away"},
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f"{json.dumps(item)}\n" for item in rows), encoding="utf-8")
    before = path.read_bytes()

    message = refused(["compare.epsilons=[3]", "compare.tuning_epsilons=[3]"], tmp_path, capsys)

    assert "holds runs of fedsvd on movies with other overrides (method=other)" in message
    assert path.read_bytes() == before
