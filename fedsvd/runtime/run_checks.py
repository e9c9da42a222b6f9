"""The checks of a run's settings that do not depend on where it runs."""

from __future__ import annotations

from fedsvd.config import Config
from fedsvd.methods import build_run_method, check_method
from fedsvd.privacy.accounting import check_delta


def check_run(config: Config) -> None:
    """Check that the method supports the settings and the accountant the δ, before anything is loaded or spent.

    Whoever starts a run checks it, and so do both apps: a run may be submitted by Flower's own command, and a client
    does not rely on what the submitter or the server has checked.

    Raises:
        ConfigError: A method option is invalid, or the method does not support a setting.
        PrivacyError: The accountant does not support the value of δ.
    """
    check_method(build_run_method(config), config)
    check_delta(config.privacy.target_delta, config.privacy.accountant)
