"""A node with privacy limits accepts only noise that nobody can find."""

from typing import Any

import pytest
from node_messages import SMOKE
from test_node_limits import LIMITS, SHARED

from client.node_limits import read_limits
from fedsvd.config.compose import compose
from fedsvd.errors import LimitError


@pytest.mark.parametrize(
    ("limit", "run"),
    [
        ({"require-privacy": True}, []),
        ({"max-grad-norm": 4}, []),
        (LIMITS, []),
        ({"min-survivors": 2, "max-grad-norm": 4}, SHARED),
    ],
)
def test_privacy_limits_require_noise_that_cannot_be_found(limit: dict[str, Any], run: list[str]) -> None:
    weak = compose([*SMOKE, *run, "privacy.secure_random=false"])
    with pytest.raises(LimitError, match=r"secure_random = False, .* trying their 2\^32 seeds: set privacy"):
        read_limits(limit).check(weak)
    read_limits({"max-steps": 2}).check(weak)
