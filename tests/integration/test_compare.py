"""``fedsvd compare`` on small runs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparison_rows import SMALL, settings
from PIL import Image
from tiny_runs import TINY

from fedsvd import comparison
from fedsvd.cli import main
from fedsvd.comparison import final_jobs, overrides, read_rows
from fedsvd.comparison.tuning import Choice, clipping_jobs, tuning_jobs
from fedsvd.comparison.workers import Job, Workers, _run_job
from fedsvd.config.compose import compose, compose_compare
from fedsvd.errors import ConfigError, RunError


@pytest.mark.slow
def test_comparison_writes_a_table_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["+compare.contenders.merged=['method=flora']", "compare.only_contenders=[fedsvd,merged]"]
    own += ["compare.tuning_epsilons=[3]", "privacy.accountant=rdp"]
    arguments = ["compare", *TINY, *SMALL, *own, f"run_dir={tmp_path}"]
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

    def chosen(job: Job) -> bool:
        # All contenders on one task, and one contender on all tasks: composing a run takes a tenth of a second.
        return job.task == "ratings" or job.contender == "fedsvd"

    for job in filter(chosen, tuning):
        run = compose(overrides(job, ["experiment=compare"], config))
        assert run.data.evaluate_on == "validation"
        assert (run.privacy.name == "none") == (job.epsilon == 0)
        assert run.train.learning_rate == job.learning_rate
    tuned = {job.contender for job in tuning}
    rates = dict.fromkeys([(t, c, e) for t in config.tasks for c in tuned for e in config.tuning_epsilons], Choice(0.3))
    for job in filter(chosen, clipping_jobs(config, rates)):
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


def test_runs_read_the_features_of_experiment_best() -> None:
    run, best = compose(["experiment=compare"]), compose(["experiment=best"])
    own = {"max_length": best.model.max_length, "target_modules": best.model.target_modules}
    assert dataclasses.replace(run.model, **own) == best.model
    assert (run.train.sample_rate, run.train.optimizer) == (best.train.sample_rate, best.train.optimizer)
    assert run.privacy.max_grad_norm == best.privacy.max_grad_norm


def test_contenders_of_different_tasks_are_rejected(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = "+compare.contenders.answers=['model=tiny_llama']"
    arguments = ["compare", "experiment=smoke", *SMALL, other, "compare.only_contenders=[fedsvd,answers]"]
    assert main([*arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "answers predicts for model.task = causal_lm what others on compare.tasks.movies predict for" in message


@pytest.mark.slow
def test_divergence_and_an_undefined_metric_count_as_zero_and_other_failures_do_not(tmp_path: Path) -> None:
    smoke = ["experiment=smoke", "plots=false", "train.num_rounds=1"]
    diverged = _run_job([*smoke, "privacy=none", "train.learning_rate=1e30", "train.local_steps=20"])
    ratings = ["data.min_abs_rating=0", "data.label_range=[-4,4]", "model.task=regression", "partition=iid"]
    constant = _run_job([*smoke, *ratings, "train.trains=none", "train.head_init=zeros"])
    failed = _run_job([*smoke, "privacy=none", "data=csv", f"data.path={tmp_path / 'missing.csv'}"])
    no_clients = _run_job([*smoke, "privacy.noise_multiplier=0.3", "privacy.target_epsilon=0.1"])

    assert (diverged["accuracy"], "diverged" in diverged["diverged"]) == (0.0, True)
    assert (constant["accuracy"], constant["diverged"]) == (0.0, "the Spearman of the last model is undefined")
    assert failed["accuracy"] is None
    assert "missing.csv" in failed["failed"]
    assert no_clients["accuracy"] is None
    assert "no client's update was used" in no_clients["failed"]


def test_models_that_clients_evaluate_themselves_have_results_of_each_evaluated_round() -> None:
    base = ["experiment=smoke", "privacy=none", "train.num_rounds=3", "train.eval_every=2"]
    server, own = (_run_job([*base, f"method={name}"]) for name in ("fedsvd", "fedsa_lora"))
    assert [*server["evaluations"]] == [0, 2, 3]
    assert [*own["evaluations"]] == [0, 2, 3]
    assert own["evaluations"][3] == own["accuracy"]


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
