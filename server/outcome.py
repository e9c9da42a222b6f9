"""The outcome of a run: whether any client's update was used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsvd.errors import RunError

_MAX_REASONS = 5


def check_updates_used(history: Sequence[Mapping[str, Any]], refusal: str = "", *, hides_clients: bool = False) -> None:
    """Check that the model is the result of training.

    Args:
        history: The rows of ``metrics.jsonl``, including those of earlier processes.
        refusal: Why the last round changed nothing; empty if it did.
        hides_clients: Whether nothing may depend on which clients were sampled (`PrivacyConfig.hides_sampling`). A run
            whose rounds have taken steps then succeeds, also if these were noise alone: that it fails would tell that
            no client took part, with a probability that no ε covers.

    Raises:
        RunError: No client's update was used in any round; with ``hides_clients``, all rounds were skipped.
    """
    rounds = [row for row in history if row["server_round"]]
    trained = [not row["skipped"] if hides_clients else row["clients_used"] > 0 for row in rounds]
    if not rounds or any(trained):
        return
    reasons: dict[str, str] = {}
    for row in () if hides_clients else rounds:
        reasons = {**row["clients_refused"], **reasons}
    details = list_reasons(reasons) or refusal or "no client was sampled, or too few replied"
    raise RunError(
        f"no client's update was used in {'any round' if len(rounds) > 1 else 'the only round'}, so the model was not "
        f"trained ({details}). "
        "Remove the cause, then start a new run."
    )


def list_reasons(reasons: Mapping[Any, str]) -> str:
    """Return why clients could not take part, by their numbers, for an error message."""
    listed = [f"client {name}: {reason.rstrip('.')}" for name, reason in list(reasons.items())[:_MAX_REASONS]]
    more = [f"and {len(reasons) - _MAX_REASONS} more clients"] if len(reasons) > _MAX_REASONS else []
    return "; ".join([*listed, *more])
