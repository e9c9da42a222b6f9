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
