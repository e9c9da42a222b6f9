"""The guarantee of a whole run: the weakest of all its rounds, derived from its rows and never from its configuration.

A resumed run has rounds of several processes. What their rows do not record is not claimed, and ε is never below what
the accountant computes from the recorded charges, whatever the clients reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedsvd.errors import PrivacyError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.recorded_charges import (
    Row,
    accounted_epsilons,
    attempts_per_round,
    needs_accountant,
    record,
    recorded_charges,
    replaced_ledgers,
)
from fedsvd.privacy.round_settings import ROW_KEY, recorded_settings, round_settings

Status = Literal["private", "unrecorded", "none"]


@dataclass(frozen=True)
class Claim:
    """What a run's records say about its privacy.

    Attributes:
        status: ``private``: the guarantee below holds for the whole run. ``unrecorded``: it holds if all rounds ran
            under the settings in the configuration, which rows of earlier versions do not record. ``none``: the run
            gives no guarantee.
        reason: Why the status is not ``private``; a sentence without a period.
        unit: Unit of protection, ``example`` or ``client``; None without a guarantee.
        epsilon: The largest ε that a client has spent; None without a guarantee or if no spend was reported. With unit
            ``client``, it is the ε of this run by the server's account: only clients that were sampled report theirs,
            so that a figure which depends on these reports would tell who was.
        delta: δ of the guarantee.
        settings: The distinct settings of the rounds, in order; those of the configuration if no round has run.
        client_epsilons: ε by client, with unit ``client`` those of all runs in the ledgers of the sampled clients: only
            files of the run directory may show these. The server's account is that of ``server``.
        charges: The recorded charges of each client, one entry per mechanism, in order.
        presumed: Clients that may have been charged for updates that the server did not accept; ε includes these
            charges where the client's mechanism is recorded.
        num_rounds: Number of rounds that were completed.
        ledgers: The number of ledgers of each client whose ledger was replaced and whose mechanism is not recorded.
    """

    status: Status
    reason: str
    unit: str | None
    epsilon: float | None
    delta: float
    settings: Sequence[Mapping[str, Any]]
    client_epsilons: Mapping[str, float] = field(default_factory=dict)
    charges: Mapping[str, Sequence[Spend]] = field(default_factory=dict)
    presumed: Sequence[str] = ()
    num_rounds: int = 0
    ledgers: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_given(self) -> bool:
        """Whether the run claims a guarantee, proven or on the condition that its settings did not change."""
        return self.status != "none"

    def every(self, key: str) -> bool:
        """Return whether a boolean setting was true in all rounds."""
        return all(settings.get(key) for settings in self.settings)

    def some(self, key: str) -> bool:
        """Return whether a boolean setting was true in some round."""
        return any(settings.get(key) for settings in self.settings)

    def values(self, key: str) -> list[Any]:
        """Return the distinct values of a setting, in order."""
        return list(dict.fromkeys(settings.get(key) for settings in self.settings))


def weakest_claim(
    rows: Sequence[Row],
    config: Mapping[str, Any],
    reported: Mapping[str, Mapping[str, Any]] | None = None,
    interrupted: int = 0,
) -> Claim:
    """Derive the guarantee that holds for all rounds of a run.

    Args:
        rows: Rows of ``metrics.jsonl``.
        config: Configuration values by dotted key, for rows of earlier versions and runs without rounds.
        reported: The clients' entries of ``privacy.json``, which may include rounds after the last row.
        interrupted: Number of processes that may have been interrupted in the round after the last row.
    """
    configured = round_settings(config)
    trained = [row for row in rows if row["server_round"] >= 1]
    settings = _distinct([recorded_settings(row) or configured for row in trained] or [configured])
    (status, reason), num_rounds = _status(trained, settings), len(trained)
    if status == "none":
        return Claim(status, reason, None, None, 0.0, settings, num_rounds=num_rounds)
    delta = max(float(item["target_delta"]) for item in settings)
    charges, spent = recorded_charges(trained), _reported_epsilons(rows, reported or {})
    if interrupted and charges:
        # As if a row recorded that every client may have been charged for the next round.
        most = int(config.get("train.local_steps", 1)) * attempts_per_round(config) * interrupted
        presumed_steps = {name: interrupted if name == "server" else most for name in charges}
        last = trained[-1].get(ROW_KEY) or {}
        trained.append({**trained[-1], ROW_KEY: {**last, "charges": {}, "presumed": presumed_steps}})
    presumed = sorted({name for row in trained for name in record(row, "presumed")} - {"server"})
    if needs_accountant(trained):
        try:
            spent |= accounted_epsilons(trained, charges, delta, settings, spent)
        except PrivacyError as error:
            reason = f"the accountant finds no finite ε for the recorded charges ({error})"
            return Claim("none", reason, None, None, delta, settings, num_rounds=num_rounds)
    replaced = replaced_ledgers(trained, reported or {})
    spent |= {name: max(total, spent.get(name, 0.0)) for name, (total, _) in replaced.items()}
    ledgers = {name: count for name, (_, count) in replaced.items()}
    unit = str(settings[0]["unit"])
    counted = [epsilon for name, epsilon in spent.items() if unit == "example" or name == "server"]
    largest = max([*counted, *(row["epsilon"] for row in rows if row["epsilon"] is not None)], default=None)
    delta *= max(ledgers.values(), default=1)
    return Claim(status, reason, unit, largest, delta, settings, spent, charges, presumed, num_rounds, ledgers)


def unprotected_rounds(rows: Iterable[Row]) -> list[int]:
    """Return the rounds that provably ran without privacy, also from rows that record no settings."""
    return [row["server_round"] for row in rows if row["server_round"] >= 1 and _is_unprotected(row)]


def format_rounds(rounds: Sequence[int]) -> str:
    """Format round numbers, such as ``round 3`` or ``rounds 1–2, 5``."""
    spans: list[list[int]] = []
    for number in sorted(rounds):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
    return f"round{'' if len(rounds) == 1 else 's'} {text}"


def _status(trained: Sequence[Row], settings: Sequence[Mapping[str, Any]]) -> tuple[Status, str]:
    unprotected = unprotected_rounds(trained)
    if unprotected and len(unprotected) < len(trained):
        return "none", f"{format_rounds(unprotected)} ran without differential privacy (privacy=none)"
    units = {item["unit"] for item in settings}
    if unprotected or None in units:
        return "none", "it was trained without differential privacy (privacy=none)"
    if len(units) > 1:
        return "none", "its rounds protect different units (examples in some, clients in others)"
    unrecorded = [row["server_round"] for row in trained if recorded_settings(row) is None]
    if unrecorded:
        return "unrecorded", f"an earlier version of fedsvd did not record the settings of {format_rounds(unrecorded)}"
    return "private", ""


def _is_unprotected(row: Row) -> bool:
    settings = recorded_settings(row)
    if settings is not None:
        return settings["unit"] is None
    # Under privacy, clients report no training loss, and every client reports its ε.
    epsilons = row.get("client_epsilons", {})
    return row.get("train_loss") is not None or (row.get("clients_used", 0) > 0 and None in epsilons.values())


def _distinct(settings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    distinct: list[Mapping[str, Any]] = []
    for item in settings:
        if item not in distinct:
            distinct.append(item)
    return distinct


def _reported_epsilons(rows: Sequence[Row], reported: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    pairs = [pair for row in rows for pair in row.get("client_epsilons", {}).items()]
    pairs += [(name, client.get("epsilon")) for name, client in reported.items()]
    spent: dict[str, float] = {}
    for name, value in pairs:
        if value is not None:
            spent[name] = max(value, spent.get(name, 0.0))
    return spent
