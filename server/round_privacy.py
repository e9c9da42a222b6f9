"""The privacy of each round: the settings and charges in its row, and the content of ``privacy.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedsvd.config import Config
from fedsvd.config.compose import as_dict
from fedsvd.config.flat import flatten
from fedsvd.errors import ReplayedMessageError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.claim import Claim, format_rounds, weakest_claim
from fedsvd.privacy.noise_share import ASSUMPTIONS
from fedsvd.privacy.recorded_charges import attempts_per_round, recorded_charges
from fedsvd.privacy.round_settings import ROW_KEY, recorded_settings, round_settings
from server.replies import DECLINED, RoundRecord

Row = Mapping[str, Any]


def round_privacy(
    config: Config,
    record: RoundRecord,
    history: Sequence[Row],
    start: int,
    interrupted: int,
    server_spend: Spend | None = None,
) -> dict[str, Any]:
    """Return the entry of a round's row that an accountant needs to recompute what the round spent.

    Args:
        config: The configuration that the round ran under.
        record: The round's communication.
        history: The rows of the earlier rounds.
        start: Number of times that the run was resumed before this round. Between two processes, a ledger can be
            replaced, so ε is then recomputed from the rows.
        interrupted: Number of earlier processes that did not finish.
        server_spend: The mechanism of client-level privacy.
    """
    charges: dict[str, Any] = {}
    presumed: dict[str, int] = {}
    if config.privacy.name == "dp_sgd":
        for report in record.reports:
            charges[str(report.partition_id)] = {
                "noise_multiplier": report.noise_multiplier,
                "sample_rate": report.sample_rate,
                "steps": config.train.local_steps,
                "ledger_steps": report.steps,
            }
        presumed = _presumed_steps(config, record, interrupted - last_value(history, "interrupted"))
    elif server_spend is not None:
        # The ledger may have more charges than the rows: those of rounds that were interrupted, and repeated.
        before = sum(spend.steps for spend in recorded_charges(history).get("server", ()))
        if steps := max(int(record.is_charged), record.server_rounds - before):
            charges["server"] = {**asdict(server_spend), "steps": steps}
    return {**_settings(config), "start": start, "interrupted": interrupted, "charges": charges, "presumed": presumed}


def _presumed_steps(config: Config, record: RoundRecord, interrupted: int) -> dict[str, int]:
    """Return the steps that clients without an accepted report may have been charged for, and sent an update of.

    These are those of lost and rejected replies, and those of ``interrupted`` earlier processes in the same round: a
    client whose budget they used up declines now. A client that reports accounts for all its charges.
    """
    most = attempts_per_round(flatten(as_dict(config)))
    silent = sorted({*record.sampled_clients} - {report.partition_id for report in record.reports})
    attempts = {number: _attempts_without_result(record, number, most) + most * interrupted for number in silent}
    return {str(number): config.train.local_steps * count for number, count in attempts.items() if count}


def _attempts_without_result(record: RoundRecord, client: int, most: int) -> int:
    """Return how many attempts a client without an accepted report may have been charged for in a round, at most."""
    reason = record.refused.get(client, "")
    if not reason.startswith(DECLINED):
        return most
    # A client charges nothing when it declines, but it may decline because of what lost attempts have cost, or because
    # it was charged for the same message before.
    return record.lost_before_refusal.get(client, 0) + reason.startswith(f"{DECLINED}{ReplayedMessageError.__name__}")


def last_value(history: Sequence[Row], key: str) -> int:
    """Return the largest value of a counter, ``start`` or ``interrupted``, in the rows; 0 if none has it."""
    return max(((row.get(ROW_KEY) or {}).get(key, 0) for row in history), default=0)


def claim_of(config: Config, history: Sequence[Row], clients: Mapping[str, Any]) -> Claim:
    """Return the guarantee of all rounds so far."""
    return weakest_claim(history, flatten(as_dict(config)), clients)


def largest_epsilon(config: Config, history: Sequence[Row], clients: Mapping[str, Any]) -> float | None:
    """Return ε after the last of the rows, at least what the accountant computes; None without a guarantee."""
    claim, last = claim_of(config, history, clients), history[-1]
    if not claim.is_given or last["epsilon"] is None:
        return None
    # Under client-level privacy, the clients report what they were charged in advance for the whole run.
    names = ["server"] if claim.unit == "client" else list(claim.client_epsilons)
    return max(
        [float(last["epsilon"]), *(claim.client_epsilons[name] for name in names if name in claim.client_epsilons)]
    )


def privacy_document(config: Config, history: Sequence[Row], clients: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``privacy.json``: the guarantee of the whole run, and each client's spending."""
    privacy, claim, settings = config.privacy, claim_of(config, history, clients), _settings(config)
    return {
        "unit": claim.unit,
        "mechanism": settings["mechanism"] if claim.is_given else None,
        "guarantee": {
            "status": claim.status,
            "reason": claim.reason or None,
            "epsilon": claim.epsilon,
            "delta": claim.delta if claim.is_given else None,
        },
        "segments": _segments(history),
        "target_epsilon": settings["target_epsilon"],
        "target_delta": settings["target_delta"],
        "max_grad_norm": privacy.max_grad_norm if privacy.name == "dp_sgd" else None,
        "max_update_norm": privacy.max_update_norm if privacy.name == "client_level" else None,
        "accountant": settings["accountant"],
        "secure_aggregation": config.federation.secure_aggregation,
        "noise_share": privacy.noise_share,
        "assumptions": list(ASSUMPTIONS) if privacy.noise_share else [],
        "clients": {name: _client(client, name, claim) for name, client in clients.items()},
    }


def _client(client: Mapping[str, Any], name: str, claim: Claim) -> dict[str, Any]:
    """Return a client's entry, with ε of the whole run (None without a guarantee) and with all its mechanisms."""
    charges = [asdict(spend) for spend in claim.charges.get(name, ())]
    return {**client, "epsilon": claim.client_epsilons.get(name), "charges": charges}


def _segments(history: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the settings of the rounds, one entry for consecutive rounds with equal ones."""
    segments: list[tuple[dict[str, Any] | None, list[int]]] = []
    for row in history:
        settings = recorded_settings(row)
        if row["server_round"] and segments and segments[-1][0] == settings:
            segments[-1][1].append(row["server_round"])
        elif row["server_round"]:
            segments.append((settings, [row["server_round"]]))
    return [{"rounds": format_rounds(rounds), **(settings or {"name": None})} for settings, rounds in segments]


def _settings(config: Config) -> dict[str, Any]:
    return round_settings(flatten(as_dict(config)))
