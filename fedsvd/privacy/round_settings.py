"""The privacy settings that every row of a run records, so that an accountant can recompute what the run has spent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsvd.config.privacy import PrivacyConfig

# The key of a row of ``metrics.jsonl`` that holds the settings and the charges of its round.
ROW_KEY = "privacy"
UNITS = {"dp_sgd": "example", "client_level": "client"}
MECHANISMS = {
    "dp_sgd": "DP-SGD on each client (Poisson sampling, per-example clipping, Gaussian noise)",
    "client_level": "DP-FedAvg on the server (Poisson sampling of clients, clipped updates, Gaussian noise)",
}
_NORMS = {"dp_sgd": "max_grad_norm", "client_level": "max_update_norm"}
_KEYS = (
    "target_epsilon",
    "max_epsilon",
    "target_delta",
    "accountant",
    "secure_random",
    "noise_share",
    "clipping_statistics",
)


def round_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine the guarantee of a round; None for those without effect.

    Args:
        config: Configuration values by dotted key; a key that an earlier version did not have has its default.
    """

    def value(key: str) -> Any:
        return config.get(f"privacy.{key}", getattr(PrivacyConfig, key, None))

    name = str(config["privacy.name"])
    is_private, is_secure = name in UNITS, bool(config.get("federation.secure_aggregation"))
    ledger_dir = value("ledger_dir")
    return {
        "name": name,
        "unit": UNITS.get(name),
        "mechanism": MECHANISMS.get(name),
        **{key: value(key) if is_private else None for key in _KEYS},
        "clipping_norm": value(_NORMS[name]) if is_private else None,
        "ledger_dir": str(Path(ledger_dir).resolve()) if is_private and ledger_dir else None,
        "secure_aggregation": is_secure,
        "min_survivors": config.get("federation.min_survivors") if is_secure else None,
    }


def recorded_settings(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings in a row; None if an earlier version of fedsvd wrote it."""
    record = row.get(ROW_KEY)
    if not isinstance(record, Mapping):
        return None
    return {key: value for key, value in record.items() if key not in ("start", "interrupted", "charges", "presumed")}
