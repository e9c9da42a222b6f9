"""Keys of ``fedsvd train`` that depend on the privacy of a run of ``fedsvd compare``."""

from __future__ import annotations

from collections.abc import Iterable

from fedsvd.config.overrides import override_values
from fedsvd.config.paths import override_key


def without_privacy_keys(overrides: Iterable[str]) -> list[str]:
    """Return the overrides without the choice of a privacy mechanism and the settings that need one.

    Without a mechanism, some of these would be refused, and others would bring it back.
    """
    return [item for item in overrides if not _needs_privacy(item)]


def _needs_privacy(item: str) -> bool:
    key = override_key(item)
    if key == "federation.weighting":
        return override_values([item])[key] == "inverse_variance"
    return key.partition(".")[0] == "privacy"


def protects_clients(overrides: Iterable[str]) -> bool:
    """Return whether overrides choose privacy for each client's whole data set."""
    chosen = override_values(item for item in overrides if override_key(item) in ("privacy", "privacy.name"))
    # A key is set after the file of its group was chosen, in whatever order they are given.
    return chosen.get("privacy.name", chosen.get("privacy")) == "client_level"
