"""The checks of a run's settings that do not depend on where it runs."""

from __future__ import annotations

from fedsvd.config import Config
from fedsvd.errors import ConfigError
from fedsvd.methods import build_run_method, check_method
from fedsvd.privacy.accounting import check_delta


def check_run(config: Config) -> None:
    """Check that the method supports the settings and the accountant the δ, before anything is loaded or spent.

    Whoever starts a run checks it, and so do both apps: a run may be submitted by Flower's own command, and a client
    does not rely on what the submitter or the server has checked.

    Raises:
        ConfigError: A method option is invalid, or the method does not support a setting, or the server would refuse
            valid updates.
        PrivacyError: The accountant does not support the value of δ.
    """
    check_method(build_run_method(config), config)
    # Not part of the schema, by which the settings of earlier runs are read.
    if config.privacy.name == "client_level":
        _check_update_norm(config)
    check_delta(config.privacy.target_delta, config.privacy.accountant)


def _check_update_norm(config: Config) -> None:
    bound, limit = config.privacy.max_update_norm, config.federation.max_reply_norm
    if bound >= limit:
        raise ConfigError(
            f"privacy.max_update_norm = {bound:g} is not possible with federation.max_reply_norm = {limit:g}: the "
            "server would refuse updates that are clipped as they should be. Lower the first or raise the second."
        )
