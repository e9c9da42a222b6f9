"""Keys of ``fedsvd train`` that ``fedsvd compare`` sets in each of its runs, and those that depend on privacy."""

from __future__ import annotations

from collections.abc import Iterable

from fedsvd.config.overrides import override_values
from fedsvd.config.paths import override_key
from fedsvd.errors import ConfigError

_NO_DIRECTORY = "the directory of a run is deleted at its end; leave it out"
# What to do instead of setting a key. These are set after all other overrides, or decide under which ε a run is shown,
# or have an effect only in the directory of a run.
_SET_IN_EACH_RUN = {
    "seed": "give compare.seeds, and compare.tuning_seed for the runs that choose a learning rate",
    "data.evaluate_on": "learning rates are chosen on validation texts, and results are those of test texts; leave it "
    "out",
    "privacy.target_epsilon": "give compare.epsilons",
    "plots": _NO_DIRECTORY,
    "reference_accuracy": _NO_DIRECTORY,
    "resume": "run the same command again to resume a comparison; leave it out",
}
_PRIVACY = "give compare.epsilons, where 0 means no privacy; a contender may set it"
# These are set after all overrides but those of contenders.
_SET_UNLESS_BY_CONTENDER = {
    "privacy": _PRIVACY,
    "privacy.name": _PRIVACY,
    "train.learning_rate": "give compare.learning_rates and compare.learning_rates_without_privacy; a contender may "
    "set it, and is then not tuned",
}


def check_free_keys(place: str, overrides: Iterable[str], *, of_contender: bool = False) -> None:
    """Check that overrides set no key that the comparison sets itself.

    Args:
        place: Where the overrides are given, for the message.
        overrides: Hydra overrides.
        of_contender: Whether a contender sets them.

    Raises:
        ConfigError: One of them does.
    """
    instead = _SET_IN_EACH_RUN if of_contender else _SET_IN_EACH_RUN | _SET_UNLESS_BY_CONTENDER
    for item in overrides:
        key = override_key(item)
        # Each run has this anyway.
        if key in instead and item != "plots=false":
            raise ConfigError(
                f"{item} cannot be set in {place}, because fedsvd compare sets {key} in each run: {instead[key]}."
            )


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
