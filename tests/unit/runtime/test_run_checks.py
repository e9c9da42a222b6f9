"""Tests of the checks that a run passes before it starts, and that earlier runs do not have to pass to be read."""

import pytest

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.runtime.run_checks import check_run


@pytest.mark.parametrize(("limit", "is_refused"), [("1", True), ("1.5", False)])
def test_the_server_must_accept_updates_that_are_clipped(limit: str, is_refused: bool) -> None:
    config = compose(["experiment=smoke", "privacy=client_level", f"federation.max_reply_norm={limit}"])
    if is_refused:
        with pytest.raises(ConfigError, match=r"max_update_norm = 1 is not possible with .*max_reply_norm = 1:"):
            check_run(config)
    else:
        check_run(config)
