"""The budgets that are checked before a run is resumed."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedsvd import data
from fedsvd.config.compose import compose
from fedsvd.errors import BudgetExceededError
from fedsvd.launch.budget import check_remaining_budget, plan_run
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger
from fedsvd.privacy.plan import calibrate_run, configured_budget
from fedsvd.runs.folder import RunFolder, write_text
from fedsvd.runtime.data import load_partition

RUN = ["experiment=smoke", "privacy.accountant=rdp"]


@pytest.mark.parametrize("spent", [0, 1])
def test_clients_that_do_not_take_part_have_no_budget_to_check(spent: int, tmp_path: Path) -> None:
    ledgers = f"privacy.ledger_dir={tmp_path}"
    config = compose([*RUN, ledgers, f"resume={tmp_path / 'run'}", "federation.participants=[1]"])
    for number in (0, 1):
        with Ledger.open(tmp_path / f"{number}.sqlite", data.fingerprint(load_partition(config, number))) as ledger:
            if number == spent:
                ledger.reserve("earlier", 1, "1", Spend(1.0, 1.0, 9), Budget(90.0, 1e-5, 90.0, 1e-5, "rdp"))

    assert list(plan_run(config).clients) == [1]
    if spent == 0:
        assert check_remaining_budget(config) == []
    else:
        with pytest.raises(BudgetExceededError, match="no client's budget holds one of the 2 remaining rounds"):
            check_remaining_budget(config)
    everybody = compose([*RUN, ledgers, f"resume={tmp_path / 'run'}"])
    [warning] = check_remaining_budget(everybody)
    assert warning.startswith(f"client {spent}: its budget holds 0 of the 2 remaining rounds")


def test_a_run_with_shared_noise_ends_by_itself_when_its_budget_is_used_up(tmp_path: Path) -> None:
    shared = ["privacy=client_level", "privacy.noise_share=true", "federation.secure_aggregation=true"]
    config = compose([*RUN, *shared, f"privacy.ledger_dir={tmp_path}", f"resume={tmp_path / 'run'}"])
    for number in (0, 1):
        with Ledger.open(tmp_path / f"{number}.sqlite", data.fingerprint(load_partition(config, number))) as ledger:
            ledger.reserve("a run", 1, "1", calibrate_run(config, 1), configured_budget(config.privacy))

    warnings = check_remaining_budget(config)

    assert [warning.partition(":")[0] for warning in warnings] == ["client 0", "client 1"]
    assert all("its budget holds 0 of the 2 remaining rounds" in warning for warning in warnings)


def test_a_run_whose_rounds_exceed_its_own_target_is_not_resumed(tmp_path: Path) -> None:
    fixed = ["privacy.noise_multiplier=0.5", "privacy.target_epsilon=2", "privacy.max_epsilon=50"]
    config = compose([*RUN, *fixed, f"privacy.ledger_dir={tmp_path}", f"resume={tmp_path / 'run'}"])
    for number in (0, 1):
        with Ledger.open(tmp_path / f"{number}.sqlite", data.fingerprint(load_partition(config, number))):
            pass

    with pytest.raises(BudgetExceededError, match=r"remaining rounds .* One round alone would exceed .*epsilon = 2"):
        check_remaining_budget(config)


def test_only_charges_of_the_named_run_count_against_its_target(tmp_path: Path) -> None:
    shared = ["privacy=client_level", "privacy.noise_share=true", "federation.secure_aggregation=true"]
    limits = ["privacy.max_epsilon=50", f"privacy.ledger_dir={tmp_path}", f"resume={tmp_path / 'run'}"]
    config, folder = compose([*RUN, *shared, *limits]), RunFolder(tmp_path / "run")
    (folder.checkpoints / "round-000001").mkdir(parents=True)
    run, budget = calibrate_run(config, 1), configured_budget(config.privacy)
    with Ledger.open(tmp_path / "0.sqlite", data.fingerprint(load_partition(config, 0))) as ledger:
        ledger.reserve("half done", 1, "1", replace(run, steps=1), budget)
        ledger.reserve("done", 1, "2", run, budget)

    # Each run may take two rounds.
    for name, rounds in (("half done", 1), ("done", 0), ("new", 1)):
        write_text(folder.account, name)
        assert plan_run(config).clients[0].affordable_rounds == rounds


@pytest.mark.parametrize(("name", "is_charged"), [("charged", True), ("new", False)])
def test_a_charge_in_advance_pays_for_the_run_that_it_names(name: str, is_charged: bool, tmp_path: Path) -> None:
    limits = ["privacy.max_epsilon=50", f"privacy.ledger_dir={tmp_path}", f"resume={tmp_path / 'run'}"]
    config = compose([*RUN, "privacy=client_level", *limits])
    run, budget = calibrate_run(config, 1), configured_budget(config.privacy)
    with Ledger.open(tmp_path / "0.sqlite", data.fingerprint(load_partition(config, 0))) as ledger:
        ledger.reserve_run("charged", run, budget)
        ledger.reserve_run("other", run, budget)

    write_text(RunFolder(tmp_path / "run").account, name)

    plan = plan_run(config).clients[0]
    assert (plan.epsilon_after == plan.epsilon_before) is is_charged
