"""What the rows of a run record about its charges, and ε that follows from them where a ledger may lack some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.round_settings import ROW_KEY

Row = Mapping[str, Any]


def record(row: Row, key: str) -> Mapping[str, Any]:
    """Return what a row records by client under ``charges`` or ``presumed``."""
    value = (row.get(ROW_KEY) or {}).get(key)
    return value if isinstance(value, Mapping) else {}


def attempts_per_round(config: Mapping[str, Any]) -> int:
    """Return how often one process may ask a client to train in a round: a stage of secure aggregation is never resent.

    Args:
        config: Configuration values by dotted key.
    """
    is_secure = bool(config.get("federation.secure_aggregation"))
    return 1 if is_secure else 1 + int(config.get("federation.retries", 0))


def _row_charges(trained: Sequence[Row]) -> Iterator[tuple[str, Spend]]:
    for row in trained:
        for name, charge in record(row, "charges").items():
            # Clients that do not disclose the size of their data send neither value.
            if charge["noise_multiplier"] is not None and charge["sample_rate"] is not None:
                yield name, Spend(charge["noise_multiplier"], charge["sample_rate"], charge["steps"])


def recorded_charges(trained: Sequence[Row]) -> dict[str, list[Spend]]:
    """Return the charges of the clients that disclose their mechanism, one entry per mechanism."""
    steps: dict[str, dict[tuple[float, float], int]] = {}
    for name, spend in _row_charges(trained):
        mechanism = (spend.noise_multiplier, spend.sample_rate)
        by_mechanism = steps.setdefault(name, {})
        by_mechanism[mechanism] = by_mechanism.get(mechanism, 0) + spend.steps
    return {name: [Spend(*key, count) for key, count in items.items()] for name, items in steps.items()}


def needs_accountant(trained: Sequence[Row]) -> bool:
    """Return whether a client's ledger may lack charges of this run, so that its reported ε may be too small.

    Only between two processes can a ledger be replaced; within one, the reported ε covers all that the rows record.
    """
    if len({(row.get(ROW_KEY) or {}).get("start", 0) for row in trained}) > 1:
        return True
    charged: dict[str, int] = {}
    for row in trained:
        if record(row, "presumed"):
            return True
        for name, charge in record(row, "charges").items():
            charged[name] = charged.get(name, 0) + charge["steps"]
            if charge.get("ledger_steps") is not None and charge["ledger_steps"] < charged[name]:
                return True
    return False


def accounted_epsilons(
    trained: Sequence[Row],
    charges: Mapping[str, Sequence[Spend]],
    delta: float,
    settings: Sequence[Mapping[str, Any]],
    spent: Mapping[str, float],
) -> dict[str, float]:
    """Return for each client with recorded charges the larger of its reported ε and the accountant's."""
    result = {}
    for name, spends in charges.items():
        history = [*spends, *_presumed_spend(name, trained, spends)]
        bounds = [epsilon(history, delta, str(accountant)) for accountant in {item["accountant"] for item in settings}]
        result[name] = max(spent.get(name, 0.0), *bounds)
    return result


def _presumed_spend(name: str, trained: Sequence[Row], spends: Sequence[Spend]) -> list[Spend]:
    """Return a bound on the charges that neither the rows nor the client's reported ε cover.

    Within one process, an accepted report covers the charges before it. In a resumed run, the ledger that it comes from
    may not be the one that was charged before, so all presumed charges count.
    """
    presumed, charged, ledger_steps = 0, 0, 0
    is_one_process = len({(row.get(ROW_KEY) or {}).get("start", 0) for row in trained}) == 1
    for row in trained:
        charge = record(row, "charges").get(name)
        if charge is not None:
            charged, ledger_steps = charged + charge["steps"], charge.get("ledger_steps") or 0
            # A ledger with fewer steps than the rows is not the one that was charged before.
            presumed = 0 if is_one_process and ledger_steps >= charged else presumed
        presumed += int(record(row, "presumed").get(name, 0))
    if not presumed:
        return []
    # Charges that only the ledger records, such as those of interrupted rounds, count at the weakest mechanism.
    steps = presumed + max(0, ledger_steps - charged)
    weakest = min(spend.noise_multiplier for spend in spends), max(spend.sample_rate for spend in spends)
    return [Spend(*weakest, steps)]


def replaced_ledgers(trained: Sequence[Row], reported: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """Return ε over all ledgers of the clients that do not disclose their mechanism and whose ledger was replaced.

    A ledger with fewer steps than the one before it and the round's own has replaced it. What it reports covers only
    its own charges, so the reports of all ledgers are added, and δ counts once for each (basic composition).

    Returns:
        For each such client, ε and the number of ledgers.
    """
    names = {n for row in trained for n, item in record(row, "charges").items() if item["noise_multiplier"] is None}
    found = {}
    for name in names:
        *replaced, last = _reports_by_ledger(name, trained)
        if replaced:
            last = max(last, reported.get(name, {}).get("epsilon") or 0.0)
            found[name] = (sum(replaced) + last, len(replaced) + 1)
    return found


def _reports_by_ledger(name: str, trained: Sequence[Row]) -> list[float]:
    """Return the largest ε that each ledger of a client has reported, in the order of the ledgers."""
    largest, before = [0.0], 0
    for row in trained:
        charge = record(row, "charges").get(name)
        if charge is None:
            continue
        steps, total = charge["steps"], charge.get("ledger_steps")
        if total is not None and total < before + steps:
            largest.append(0.0)
        before = before + steps if total is None else total
        largest[-1] = max(largest[-1], row.get("client_epsilons", {}).get(name) or 0.0)
    return largest
