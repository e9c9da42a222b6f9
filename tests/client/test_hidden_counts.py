"""What clients that do not disclose their number of examples report and answer: nothing that tells it."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from client.identity import ClientIdentity
from client.ledger_charge import charge_round, charge_whole_run
from client.local_round import run_local_round
from client.node_limits import NodeLimits
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import BudgetExceededError, LedgerError, LimitError, PrivacyError
from fedsvd.lora.adapter import Part
from fedsvd.methods import build_method
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Ledger
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.description import describe_reports
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import ClientReport, TrainTask

B: frozenset[Part] = frozenset({"B"})
RUN = ["experiment=smoke", "privacy.accountant=rdp", "partition=iid"]
UNIFORM, SECURE = "federation.weighting=uniform", "federation.secure_aggregation=true"


@pytest.fixture
def identity(tmp_path: Path) -> ClientIdentity:
    return ClientIdentity(0, 7, tmp_path / "ledger.sqlite")


def run_round(config: Config, identity: ClientIdentity, server_round: int = 1) -> ClientReport:
    factors = payload.pack(initial_adapter(config, build_method(config.method)), B)
    message_id = f"run {identity.run_id} round {server_round}"
    content = run_local_round(config, identity, TrainTask(server_round, B, B), factors, message_id)
    return train_messages.read_train_reply(content)[0]


def charged(config: Config, identity: ClientIdentity) -> list[Spend]:
    with Ledger.open(identity.ledger, load_client_data(config, 0).fingerprint) as ledger:
        return ledger.history()


@pytest.mark.parametrize("hidden", [UNIFORM, SECURE])
@pytest.mark.parametrize("noise", [[], ["privacy.noise_multiplier=3"]])
def test_reported_epsilon_does_not_depend_on_the_number_of_examples(
    hidden: str, noise: list[str], identity: ClientIdentity, tmp_path: Path
) -> None:
    for size in (90, 91, 200):
        config = compose([*RUN, hidden, *noise, f"data.max_train_examples={size}"])
        own = replace(identity, ledger=tmp_path / f"{size}.sqlite")
        for server_round in (1, 2):
            report = run_round(config, own, server_round)
            assert report.epsilon == config.privacy.target_epsilon
            # Beside a secure sum, the last stage hides these numbers.
            if hidden == UNIFORM:
                assert (report.num_examples, report.noise_multiplier, report.sample_rate) == (None, None, None)
            assert epsilon(charged(config, own), 1e-5, "rdp") <= config.privacy.target_epsilon


def test_no_statistic_of_clipping_is_sent_beside_a_secure_sum(identity: ClientIdentity, tmp_path: Path) -> None:
    # Its noise is drawn anew in each round, and has a standard deviation that follows from the number of examples.
    secret = run_round(compose([*RUN, SECURE]), identity)
    assert (secret.clipped_share, secret.mean_grad_norm) == (None, None)
    public = run_round(compose(RUN), replace(identity, ledger=tmp_path / "public.sqlite"))
    assert None not in (public.clipped_share, public.mean_grad_norm)


def test_reported_epsilon_is_at_most_the_limit(identity: ClientIdentity) -> None:
    run = [*RUN, UNIFORM, "privacy.target_epsilon=6", "privacy.max_epsilon=7"]
    for server_round in (1, 2):
        assert run_round(compose(run), identity, server_round).epsilon == 6
    another = compose([*run, "privacy.noise_multiplier=1"])

    assert run_round(another, replace(identity, run_id=8)).epsilon == 7
    assert 6 < epsilon(charged(another, identity), 1e-5, "rdp") < 7


def test_limit_at_another_delta_is_no_bound_on_the_reported_epsilon(identity: ClientIdentity) -> None:
    def reported(config: Config, run_id: int, server_round: int) -> float:
        data, message_id = load_client_data(config, 0), f"run {run_id} round {server_round}"
        own = replace(identity, run_id=run_id, limits=NodeLimits(max_epsilon=6.0, max_delta=1e-4))
        return charge_round(config, own, data.fingerprint, len(data.examples), server_round, message_id).epsilon

    assert [reported(compose([*RUN, UNIFORM]), 7, server_round) for server_round in (1, 2)] == [6, 6]
    another = compose([*RUN, UNIFORM, "privacy.noise_multiplier=1.5"])

    # ε of all charges is at most 6 at the owner's δ, and more than 6 at the run's.
    assert reported(another, 8, 1) == 12
    assert 6 < epsilon(charged(another, identity), 1e-5, "rdp") < 12


def test_epsilon_is_exact_if_it_tells_nothing(identity: ClientIdentity, tmp_path: Path) -> None:
    for overrides in ([], [UNIFORM, "train.sample_rate=0.2"], [UNIFORM, "privacy=client_level"]):
        config = compose([*RUN, *overrides])
        own = replace(identity, ledger=tmp_path / f"{len(overrides)} {overrides[-1:]}.sqlite")
        factors = payload.pack(initial_adapter(config, build_method(config.method)), B)
        content = run_local_round(config, own, TrainTask(1, B, B, account="a run"), factors, "message")
        report = train_messages.read_train_reply(content)[0]
        assert report.epsilon == epsilon(charged(config, own), 1e-5, "rdp")


def test_earlier_charges_tell_nothing_either(identity: ClientIdentity) -> None:
    earlier = compose([*RUN, UNIFORM])
    run_round(earlier, identity)
    config = compose([*RUN, UNIFORM, "train.sample_rate=0.2", "privacy.max_epsilon=30"])
    for server_round in (1, 2):
        report = run_round(config, replace(identity, run_id=8), server_round)
        spent = epsilon(charged(config, identity), 1e-5, "rdp")
        assert report.epsilon == (6.0 if spent <= 6 else 12.0)
    assert 6 < spent <= 12


@pytest.mark.parametrize(
    ("limits", "overrides", "error", "number"),
    [
        (NodeLimits(), ["privacy.noise_multiplier=0.3"], BudgetExceededError, "at sample rate 0.16"),
        (NodeLimits(min_noise_multiplier=9.0), [], LimitError, "noise multiplier = 0."),
        (NodeLimits(), ["privacy.target_epsilon=1e-9"], PrivacyError, "at sample rate 0.16"),
    ],
)
def test_numbers_that_tell_it_are_in_the_log_only(
    limits: NodeLimits,
    overrides: list[str],
    error: type[PrivacyError],
    number: str,
    identity: ClientIdentity,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = [*RUN, "data.max_train_examples=200", *overrides]

    with caplog.at_level(logging.ERROR), pytest.raises(error) as caught:
        run_round(compose([*run, UNIFORM]), replace(identity, limits=limits))

    assert type(caught.value) is error
    assert str(caught.value).startswith("this client cannot train this round within its limits. Its log has")
    assert not any(character.isdigit() for character in str(caught.value))
    assert number in caplog.text
    # The owner may let the server have the numbers, and so does a run that discloses them anyway.
    for config, own in (
        (compose([*run, UNIFORM]), replace(limits, share_errors=True)),
        (compose(run), limits),
    ):
        with pytest.raises(error, match=number):
            run_round(config, replace(identity, limits=own))


def test_run_says_that_epsilon_is_rounded_up() -> None:
    [note] = describe_reports(compose([*RUN, UNIFORM]))
    assert "rounded up to a multiple of privacy.target_epsilon = 6, or to a client's limit if that is less" in note
    [note] = describe_reports(compose([*RUN, UNIFORM, "privacy.max_epsilon=7"]))
    assert "(privacy.max_epsilon = 7, or its own)" in note
    for others in ([], [UNIFORM, "train.sample_rate=0.2"], [UNIFORM, "privacy=none"], [SECURE, "privacy=client_level"]):
        assert not list(describe_reports(compose([*RUN, *others])))


def test_refusal_of_changed_data_has_neither_their_digest_nor_the_path(
    identity: ClientIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    strict = replace(identity, strict_ledger=True)
    run_round(compose([*RUN, UNIFORM]), strict)
    changed = compose([*RUN, UNIFORM, "seed=1"])
    digests = [load_client_data(config, 0).fingerprint[:12] for config in (compose([*RUN, UNIFORM]), changed)]

    with pytest.raises(LedgerError, match="the privacy ledger of this client belongs to other data") as caught:
        run_round(changed, strict)

    for secret in (*digests, str(identity.ledger)):
        assert secret not in str(caught.value)
        assert secret in caplog.text
    with pytest.raises(LedgerError, match=re.escape(str(identity.ledger))) as shared:
        run_round(changed, replace(strict, limits=NodeLimits(share_errors=True)))
    assert not any(digest in str(shared.value) for digest in digests)


@pytest.mark.parametrize("is_damaged", [True, False])
def test_refusal_of_a_ledger_that_cannot_be_used_has_no_path(
    is_damaged: bool, identity: ClientIdentity, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A file where a folder should be: the error names a parent of the ledger.
    (tmp_path / "private").write_text("no ledger", encoding="utf-8")
    unusable = replace(identity, ledger=tmp_path / ("private" if is_damaged else "private/ledger.sqlite"))
    config = compose([*RUN, "privacy=client_level"])
    fingerprint = load_client_data(config, 0).fingerprint

    with pytest.raises(LedgerError, match=r"of this client cannot be used. Its log has the reason\.$") as caught:
        charge_whole_run(config, unusable, fingerprint, "a run")

    assert str(tmp_path) not in str(caught.value)
    assert str(unusable.ledger) in caplog.text
    with pytest.raises(LedgerError, match=re.escape(str(unusable.ledger))):
        charge_whole_run(config, replace(unusable, limits=NodeLimits(share_errors=True)), fingerprint, "a run")
