"""Extending a sweep by a key that it did not vary before: its runs are found again, whatever their directories."""

import json
from pathlib import Path

import pytest

from fedsvd.config.compose import compose, hydra_settings, to_yaml
from fedsvd.config.run_names import run_name
from fedsvd.errors import ConfigError
from fedsvd.launch.sweep import SweepPlan, plan_sweep
from fedsvd.runs.folder import write_json

TINY = ["experiment=smoke", "model=tiny"]


def extend(folder: Path, *overrides: str) -> SweepPlan:
    return plan_sweep([f"resume={folder}", *overrides])


def write_overrides(folder: Path, *overrides: str) -> None:
    write_json(folder / "overrides.json", [*TINY, *overrides])


def directory_of(plan: SweepPlan, *overrides: str) -> str:
    """Return the directory that Hydra gives a run of the sweep."""
    [excluded] = [item for item in plan.arguments if "exclude_keys" in item]
    settings = hydra_settings([*TINY, *overrides, excluded, f"hydra.sweep.dir='{plan.folder}'"])
    return str(settings.hydra.sweep.subdir)


@pytest.mark.parametrize("seed", [["seed=0"], []], ids=["given", "default"])
def test_finished_runs_are_kept_when_a_sweep_gets_additional_seeds(seed: list[str], tmp_path: Path) -> None:
    plan_sweep([*TINY, "method=fedsvd,ffa_lora", *seed, f"hydra.sweep.dir='{tmp_path}'"])
    for method in ("fedsvd", "ffa_lora"):
        write_overrides(tmp_path / f"method={method}", f"method={method}", *seed)

    # The second time, the sweep varies the seed already.
    for seeds in ("seed=0,1", "seed=0,1,2"):
        plan = extend(tmp_path, seeds)
        directories = {(m, n): directory_of(plan, f"method={m}", f"seed={n}") for m in ("fedsvd", "ffa_lora")
                       for n in (0, 1)}  # fmt: skip
        assert directories == {
            ("fedsvd", 0): "method=fedsvd", ("fedsvd", 1): "method=fedsvd,seed=1",
            ("ffa_lora", 0): "method=ffa_lora", ("ffa_lora", 1): "method=ffa_lora,seed=1",
        }  # fmt: skip
    assert plan.total == 6


def test_runs_of_an_earlier_version_are_recognized_by_its_defaults(tmp_path: Path) -> None:
    plan_sweep([*TINY, "seed=0,1", f"hydra.sweep.dir='{tmp_path}'"])
    for seed in (0, 1):
        write_overrides(tmp_path / f"seed={seed}", f"seed={seed}")
        recorded = compose([*TINY, f"seed={seed}", "train.head_init=random"])
        (tmp_path / f"seed={seed}" / "config.yaml").write_text(to_yaml(recorded), encoding="utf-8")

    plan = extend(tmp_path, "train.head_init=auto,random")

    directories = {name: directory_of(plan, "seed=0", f"train.head_init={name}") for name in ("auto", "random")}
    assert directories == {"auto": "seed=0,train.head_init=auto", "random": "seed=0"}


def test_the_only_run_of_a_sweep_is_kept_when_the_sweep_is_reduced_to_it(tmp_path: Path) -> None:
    plan_sweep([*TINY, "seed=0,1", f"hydra.sweep.dir='{tmp_path}'"])
    write_overrides(tmp_path / "seed=0", "seed=0")

    assert directory_of(extend(tmp_path, "seed=0"), "seed=0") == "seed=0"


def test_runs_that_an_extended_sweep_does_not_contain_stay(tmp_path: Path) -> None:
    plan_sweep([*TINY, "method=fedsvd,ffa_lora", "seed=0", f"hydra.sweep.dir='{tmp_path}'"])
    write_overrides(tmp_path / "method=fedsvd", "method=fedsvd", "seed=0")

    plan = extend(tmp_path, "seed=1,2")

    assert directory_of(plan, "method=fedsvd", "seed=1") == "method=fedsvd,seed=1"
    assert json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["names"] == {}


def test_relative_paths_that_a_sweep_varies_are_those_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    files = ["data=csv", "data.path=a.csv,b.csv", "partition=iid"]
    plan_sweep([*TINY, *files, f"hydra.sweep.dir='{tmp_path}/S'"])
    run = ["data=csv", "partition=iid", f"data.path='{tmp_path}/there/a.csv'"]
    write_overrides(tmp_path / "S" / "data.path=a.csv", *run)
    monkeypatch.chdir(tmp_path)

    plan = extend(tmp_path / "S", "seed=0,1")

    assert run_name("data.path=a.csv,seed=0", str(plan.folder)) == "data.path=a.csv"


def test_a_sweep_is_refused_where_a_single_run_would_be_repeated(tmp_path: Path) -> None:
    plan_sweep([*TINY, "seed=0", f"hydra.sweep.dir='{tmp_path}'"])
    write_overrides(tmp_path, "seed=0")
    before = (tmp_path / "sweep.json").read_bytes()

    with pytest.raises(ConfigError, match=r"holds a single run itself.* over seed: choose another directory"):
        extend(tmp_path, "seed=0,1")
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_a_sweep_that_an_earlier_version_extended_is_resumed_where_it_repeated_a_run(tmp_path: Path) -> None:
    plan_sweep([*TINY, "method=fedsvd,ffa_lora", "seed=0,1", f"hydra.sweep.dir='{tmp_path}'"])
    for name in ("method=fedsvd", "method=fedsvd,seed=0", "method=ffa_lora"):
        write_overrides(tmp_path / name, name.split(",")[0], "seed=0")

    plan = extend(tmp_path)

    directories = [directory_of(plan, f"method={name}", "seed=0") for name in ("fedsvd", "ffa_lora")]
    assert directories == ["method=fedsvd,seed=0", "method=ffa_lora"]


def test_a_sweep_that_repeated_a_single_run_is_resumed_beside_it(tmp_path: Path) -> None:
    plan_sweep([*TINY, "seed=0,1", f"hydra.sweep.dir='{tmp_path}'"])
    write_overrides(tmp_path, "seed=0")
    for seed in (0, 1):
        write_overrides(tmp_path / f"seed={seed}", f"seed={seed}")

    plan = extend(tmp_path)

    assert [directory_of(plan, f"seed={seed}") for seed in (0, 1)] == ["seed=0", "seed=1"]


def test_a_search_is_not_extended_by_a_key_that_its_trials_did_not_vary(tmp_path: Path) -> None:
    search = [*TINY, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "model.rank=2,4"]
    plan_sweep([*search, "seed=0", f"hydra.sweep.dir='{tmp_path}'"])
    write_overrides(tmp_path / "model.rank=2", "model.rank=2", "seed=0")

    assert extend(tmp_path, "hydra.sweeper.n_trials=3").total == 3
    with pytest.raises(ConfigError, match=r"model.rank=2 is a trial of a search that did not vary seed"):
        extend(tmp_path, "seed=0,1")
    # As after an extension by an earlier version.
    write_overrides(tmp_path / "model.rank=2,seed=1", "model.rank=2", "seed=1")
    assert extend(tmp_path, "seed=0,1").total == 3
