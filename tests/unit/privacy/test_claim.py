"""The guarantee of a whole run: the weakest of its rounds, and never below what an accountant finds in the rows."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resumed_runs import accounted

from fedsvd.config.compose import as_dict, compose
from fedsvd.config.flat import flatten
from fedsvd.errors import PrivacyError
from fedsvd.privacy import recorded_charges as charges_module
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.claim import format_rounds, unprotected_rounds, weakest_claim
from fedsvd.privacy.round_settings import ROW_KEY, round_settings
from fedsvd.report.claim_text import caveats, privacy_line

DP, CLIENT, NONE = (
    flatten(as_dict(compose([f"privacy={name}", "privacy.accountant=rdp"])))
    for name in ("dp_sgd", "client_level", "none")
)


def charge(noise: float, steps: int = 2, rate: float = 0.1, ledger_steps: int | None = None) -> dict[str, Any]:
    return {"noise_multiplier": noise, "sample_rate": rate, "steps": steps, "ledger_steps": ledger_steps}


def row(
    number: int,
    config: Mapping[str, Any] | None,
    epsilons: Mapping[str, float | None] | None = None,
    charges: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return a row as a run with this configuration writes it; with None, as an earlier version of fedsvd did."""
    spent = [value for value in (epsilons or {}).values() if value is not None]
    record = {"start": changes.pop("start", 0), "charges": charges or {}, "presumed": changes.pop("presumed", {})}
    recorded = {} if config is None else {ROW_KEY: {**round_settings(config), **record}}
    return {
        "server_round": number, "epsilon": max(spent, default=None), "client_epsilons": epsilons or {},
        "clients_used": len(epsilons or {}), "train_loss": None, **recorded, **changes,
    }  # fmt: skip


def test_private_rounds_give_the_largest_reported_epsilon() -> None:
    rows = [row(0, DP), row(1, DP, {"0": 1.0, "1": 2.0}), row(2, DP, {"0": 1.5, "1": 2.5})]
    claim = weakest_claim(rows, DP)

    assert (claim.status, claim.unit, claim.epsilon, claim.delta) == ("private", "example", 2.5, 1e-5)
    assert claim.client_epsilons == {"0": 1.5, "1": 2.5}
    assert weakest_claim(rows, DP, {"1": {"epsilon": 3.5}}).epsilon == 3.5


@pytest.mark.parametrize("config", [DP, CLIENT, NONE])
def test_one_round_without_privacy_leaves_no_guarantee_whatever_the_configuration_says(config: dict[str, Any]) -> None:
    rows = [row(0, DP), row(1, DP, {"0": 1.0}), row(2, NONE, {"0": None}), row(3, DP, {"0": 2.0})]
    claim = weakest_claim(rows, config)

    assert (claim.status, claim.epsilon, claim.unit) == ("none", None, None)
    assert "round 2 ran without differential privacy" in claim.reason
    assert "no guarantee" in privacy_line(claim)


def test_rounds_with_different_units_have_no_common_guarantee() -> None:
    claim = weakest_claim([row(1, DP, {"0": 1.0}), row(2, CLIENT, {"0": 2.0})], CLIENT)

    assert claim.status == "none"
    assert "different units" in claim.reason


@pytest.mark.parametrize(
    "changes",
    [{"train_loss": 0.5, "client_epsilons": {}}, {"client_epsilons": {"0": None}, "clients_used": 1}],
)
def test_rows_of_earlier_versions_prove_that_a_round_was_not_private(changes: dict[str, Any]) -> None:
    rows = [row(1, None, **changes), row(2, None, {"0": 4.8})]

    assert unprotected_rounds(rows) == [1]
    assert weakest_claim(rows, DP).status == "none"


def test_rows_of_earlier_versions_do_not_prove_that_rounds_were_private() -> None:
    claim = weakest_claim([row(0, None), row(1, None, {"0": 2.0}), row(2, DP, {"0": 3.0}, start=1)], DP)

    assert (claim.status, claim.epsilon) == ("unrecorded", 3.0)
    assert "round 1" in claim.reason
    assert "only if the run was never resumed with other settings" in privacy_line(claim)


def test_weakest_settings_count() -> None:
    weak = {**DP, "privacy.secure_random": False, "privacy.target_delta": 1e-4, "privacy.max_grad_norm": 9.0}
    rows = [row(1, weak, {"0": 1.0}), row(2, DP, {"0": 2.0}, start=1)]
    claim = weakest_claim(rows, DP)

    assert not claim.every("secure_random")
    assert claim.some("secure_random")
    assert claim.delta == 1e-4
    assert max(claim.values("clipping_norm")) == 9.0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=6))
def test_a_replaced_ledger_of_a_client_that_hides_its_mechanism_adds_to_the_ones_before(rounds: list[Any]) -> None:
    rows, ledgers = [], [0]
    for number, (is_replaced, steps) in enumerate(rounds, start=1):
        ledgers = [*ledgers, 0] if is_replaced and number > 1 else ledgers
        ledgers[-1] += steps
        hidden = {"noise_multiplier": None, "sample_rate": None, "steps": steps, "ledger_steps": ledgers[-1]}
        # Any increasing function of a ledger's steps stands for its ε.
        rows.append(row(number, DP, {"0": 0.5 * ledgers[-1]}, {"0": hidden}, start=len(ledgers)))
    claim = weakest_claim(rows, DP, {"0": {"epsilon": 0.5 * ledgers[-1]}})

    assert claim.epsilon == pytest.approx(0.5 * sum(ledgers))
    assert claim.delta == pytest.approx(1e-5 * len(ledgers))
    assert (claim.ledgers == {"0": len(ledgers)}) == (len(ledgers) > 1)
    assert any("was replaced during the run" in str(block) for block in caveats(claim)) == (len(ledgers) > 1)


def test_a_replaced_ledger_does_not_lower_epsilon() -> None:
    rows = [
        row(1, DP, {"0": 2.0}, {"0": charge(1.0, ledger_steps=2)}),
        row(2, DP, {"0": 2.0}, {"0": charge(1.0, ledger_steps=2)}, start=1),
    ]
    claim = weakest_claim(rows, DP)

    assert claim.epsilon == epsilon([Spend(1.0, 0.1, 4)], 1e-5, "rdp") > 2.0
    # The ledger's number of steps shows it, too, if the process was the same.
    assert weakest_claim([rows[0], {**rows[1], ROW_KEY: {**rows[1][ROW_KEY], "start": 0}}], DP) == claim


def test_all_mechanisms_of_a_client_are_listed() -> None:
    charges = [{"0": charge(1.0)}, {"0": charge(1.0)}, {"0": charge(2.0)}]
    rows = [row(i + 1, DP, {"0": 9.0}, item, start=i // 2) for i, item in enumerate(charges)]

    assert weakest_claim(rows, DP).charges == {"0": [Spend(1.0, 0.1, 4), Spend(2.0, 0.1, 2)]}


def test_lost_replies_after_the_last_report_count() -> None:
    rows = [
        row(1, DP, {"0": 1.0}, {"0": charge(1.0, ledger_steps=4)}, presumed={"1": 8}),
        row(2, DP, {"0": 1.0}, presumed={"0": 4, "1": 8}),
    ]
    claim = weakest_claim(rows, DP)

    # Two steps of the row, two that only the ledger has, and four of the lost reply.
    assert claim.epsilon == epsilon([Spend(1.0, 0.1, 8)], 1e-5, "rdp")
    assert claim.presumed == ["0", "1"]
    # A later report covers them.
    rows.append(row(3, DP, {"0": 5.0}, {"0": charge(1.0, ledger_steps=10)}))
    assert weakest_claim(rows, DP).client_epsilons["0"] == 5.0


def test_lost_replies_count_at_the_weakest_of_several_mechanisms() -> None:
    charges = [charge(4.0, rate=0.2), charge(1.0)]
    rows = [row(number, DP, {"0": 0.5}, {"0": one}) for number, one in enumerate(charges, 1)]
    rows.append(row(3, DP, {"0": 0.5}, presumed={"0": 2}))
    spent = [Spend(4.0, 0.2, 2), Spend(1.0, 0.1, 2), Spend(1.0, 0.2, 2)]
    assert weakest_claim(rows, DP).epsilon == epsilon(spent, 1e-5, "rdp")


def test_without_a_guarantee_nothing_is_said_of_epsilon_in_a_run_without_rounds() -> None:
    assert weakest_claim([row(0, NONE)], NONE).status == "none"
    claim = weakest_claim([row(0, DP)], DP)
    assert (claim.status, claim.epsilon, claim.num_rounds) == ("private", None, 0)


@pytest.mark.parametrize(
    ("rounds", "text"), [([3], "round 3"), ([1, 2, 3], "rounds 1–3"), ([1, 2, 5, 7, 8], "rounds 1–2, 5, 7–8")]
)
def test_rounds_are_formatted_as_spans(rounds: list[int], text: str) -> None:
    assert format_rounds(rounds) == text


_ROUNDS = st.tuples(
    st.sampled_from([DP, DP, DP, DP, CLIENT, NONE, None]),
    st.sampled_from([0.8, 1.0, 4.0]),
    st.sampled_from(["same process", "resumed", "another ledger"]),
    st.sampled_from(["accepted", "accepted", "lost", "declined"]),
)


@settings(max_examples=200)
@given(st.lists(_ROUNDS, min_size=1, max_size=7), st.sampled_from([DP, CLIENT, NONE]))
def test_a_claim_is_never_below_the_accountant_or_a_report(rounds: list[Any], config: dict[str, Any]) -> None:
    rows, start, ledger, sent, reported = [], 0, [], [], 0.0
    for number, (own, noise, before, reply) in enumerate(rounds, 1):
        start += before != "same process"
        ledger = [] if before == "another ledger" else ledger
        charges: dict[str, Any] = {}
        if own in (DP, CLIENT) and reply != "declined":
            ledger, spend = [*ledger, Spend(noise, 0.1, 2)], Spend(noise, 0.1, 2)
            if reply == "accepted":
                reported = accounted(ledger)
                charges = {"0": charge(noise, ledger_steps=2 * len(ledger))}
            # Before its first accepted reply, nothing but a client's own ledger records its mechanism.
            sent += [spend] if charges or sent else []
        epsilons = {"0": None if own is NONE else reported}
        presumed = {"0": 2} if reply == "lost" and own is DP else {}
        rows.append(row(number, own, epsilons, charges, start=start, presumed=presumed))
    claim = weakest_claim(rows, config)

    kinds, units = [item[0] for item in rounds], {item["unit"] for item in claim.settings}
    if NONE in kinds or len(units) > 1 or None in units:
        assert (claim.status, claim.epsilon) == ("none", None)
        return
    assert claim.status == ("unrecorded" if None in kinds else "private")
    assert claim.epsilon is not None
    assert claim.epsilon >= max(item["epsilon"] for item in rows)
    same_noise, any_lost = len({item[1] for item in rounds}) == 1, "lost" in {item[3] for item in rounds}
    if units == {"example"} and (same_noise or not any_lost):
        assert claim.epsilon >= accounted(sent) - 1e-9


def test_a_charge_that_is_disclosed_in_part_is_not_accounted() -> None:
    partly = [{**charge(1.0), "noise_multiplier": None}, {**charge(1.0), "sample_rate": None}]
    for hidden in partly:
        claim = weakest_claim([row(1, DP, {"0": 0.5}, {"0": hidden})], DP)
        assert (claim.status, claim.epsilon, dict(claim.charges)) == ("private", 0.5, {})


def test_within_one_process_the_reported_epsilon_is_not_accounted_again() -> None:
    claim = weakest_claim([row(1, DP, {"0": 0.5}, {"0": charge(0.8, ledger_steps=2)})], DP)
    assert claim.client_epsilons == {"0": 0.5}


def test_an_interrupted_round_counts_all_steps_and_retries_of_the_configuration() -> None:
    rows = [row(1, DP, {"0": 0.1}, {"0": charge(1.0, ledger_steps=2)})]
    config = {**DP, "train.local_steps": 3, "federation.retries": 1}
    claim = weakest_claim(rows, config, interrupted=2)
    assert claim.presumed == ["0"]
    assert claim.epsilon == epsilon([Spend(1.0, 0.1, 2), Spend(1.0, 0.1, 3 * 2 * 2)], 1e-5, "rdp")


def test_charges_without_a_finite_epsilon_are_no_guarantee(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bound(*_: object) -> float:
        raise PrivacyError("too little noise")

    monkeypatch.setattr(charges_module, "epsilon", no_bound)
    rows = [row(1, DP, {"0": 0.5}, {"0": charge(1.0)}), row(2, DP, {"0": 0.6}, {"0": charge(1.0)}, start=1)]
    claim = weakest_claim(rows, DP)
    assert (claim.status, claim.epsilon, claim.delta) == ("none", None, 1e-5)
    assert claim.reason == "the accountant finds no finite ε for the recorded charges (too little noise)"


def test_rows_of_earlier_versions_without_counts_are_not_unprotected() -> None:
    bare = {"server_round": 1, "epsilon": None, "client_epsilons": {"0": None}}
    assert unprotected_rounds([bare]) == []
    assert unprotected_rounds([{**bare, "clients_used": 1}]) == [1]
    assert weakest_claim([row(1, NONE)], NONE).reason == "it was trained without differential privacy (privacy=none)"
