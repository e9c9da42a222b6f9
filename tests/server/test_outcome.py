"""Whether any client's update was used in a run."""

from typing import Any

import pytest

from fedsvd.errors import RunError
from server.outcome import check_updates_used


def row(number: int, used: int, **refused: str) -> dict[str, Any]:
    return {"server_round": number, "clients_used": used, "clients_refused": refused}


def test_a_run_without_any_update_fails_with_the_reasons() -> None:
    with pytest.raises(RunError, match=r"no client's update.*\(client a: budget; client b: away\)"):
        check_updates_used([row(0, 0), row(1, 0, a="budget."), row(2, 0, a="later", b="away")])
    with pytest.raises(RunError, match="no client was sampled"):
        check_updates_used([row(0, 0), row(1, 0)])
    with pytest.raises(RunError, match=r"was not trained \(the budget is used up\)"):
        check_updates_used([row(0, 0), row(1, 0)], "the budget is used up")
    with pytest.raises(RunError, match="and 2 more clients"):
        check_updates_used([row(1, 0, **{str(number): "x" for number in range(7)})])


def test_one_update_is_enough() -> None:
    check_updates_used([row(0, 0), row(1, 0, a="budget"), row(2, 1)])
    check_updates_used([row(0, 0)])
