"""Each run of a comparison has the privacy under which the report shows it."""

from pathlib import Path

import pytest
from comparison_rows import NoWorkers, refused, settings

from fedsvd import comparison
from fedsvd.comparison import overrides
from fedsvd.comparison.workers import Job
from fedsvd.config import Config
from fedsvd.config.compose import compose


def composed(contender: list[str], epsilon: float) -> Config:
    own = ",".join(f"'{item}'" for item in contender)
    config = settings(f"+compare.contenders.mine=[{own}]", "compare.only_contenders=[mine]")
    return compose(overrides(Job("final", "movies", "mine", epsilon, 0, 0.1), ["experiment=smoke"], config))


@pytest.mark.parametrize(
    "given",
    [
        ["privacy=client_level"],
        ["privacy.name=client_level"],
        ["++privacy.name=client_level", "++privacy.max_update_norm=2"],
        ["privacy=client_level", "privacy.noise_share=true", "federation.secure_aggregation=true"],
    ],
    ids=" ".join,
)
def test_a_contender_with_a_mechanism_of_its_own_has_none_without_privacy(given: list[str]) -> None:
    contender = ["method=ffa_lora", *given]
    private = composed(contender, 3.0)
    assert (private.privacy.name, private.privacy.target_epsilon) == ("client_level", 3.0)
    public = composed(contender, 0.0)
    assert (public.method["name"], public.privacy.name) == ("ffa_lora", "none")


def test_an_experiment_of_a_contender_cannot_change_the_privacy_of_its_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Workers", NoWorkers)
    (tmp_path / "experiment").mkdir()
    experiment = tmp_path / "experiment" / "mine.yaml"
    mine = ["+compare.contenders.mine=['experiment=mine']", "compare.only_contenders=[mine]", "compare.epsilons=[0]"]
    config, folder = settings(*mine), f"hydra.searchpath=[file://{tmp_path}]"
    experiment.write_text("# @package _global_\ndefaults:\n  - override /privacy: client_level\n", encoding="utf-8")
    run = overrides(Job("final", "movies", "mine", 0.0, 0, 0.1), [folder, "experiment=smoke"], config)
    assert compose(run).privacy.name == "none"

    experiment.write_text("# @package _global_\nprivacy:\n  name: client_level\n", encoding="utf-8")
    message = refused([*mine, "--config-dir", str(tmp_path)], tmp_path / "run", capsys)
    assert (
        "has privacy.name = client_level and privacy.target_epsilon = 6, but the report shows it under ε = inf"
        in message
    )


def test_weights_by_the_noise_are_left_out_without_privacy() -> None:
    contender = ["privacy=dp_sgd", "federation.weighting=inverse_variance"]
    assert composed(contender, 3.0).federation.weighting == "inverse_variance"
    public = composed(contender, 0.0)
    assert (public.privacy.name, public.federation.weighting) == ("none", "examples")
    assert composed(["federation.weighting=uniform"], 0.0).federation.weighting == "uniform"


@pytest.mark.parametrize("given", ["privacy=none", "privacy.name=none"])
def test_a_contender_cannot_run_without_privacy_at_a_budget(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Workers", NoWorkers)
    mine = [f"+compare.contenders.mine=['{given}']", "compare.only_contenders=[mine]", "compare.epsilons=[3]"]
    message = refused(mine, tmp_path, capsys)
    assert "compare.contenders.mine on compare.tasks.movies has privacy.name = none" in message
    assert "the report shows it under ε = 3: leave privacy to compare.epsilons" in message
