"""What the server keeps of the clients' reports on their spending."""

from fedsvd.wire.train_messages import ClientReport
from server.evaluation import RoundEndCallback
from server.replies import RoundRecord


def reported(*epsilons: float | None) -> tuple[float | None, int | None]:
    """Return ε and steps of client 0 after one report per round."""
    callback = RoundEndCallback.__new__(RoundEndCallback)
    callback.clients = {}
    for number, epsilon in enumerate(epsilons, 1):
        steps = None if epsilon is None else 10 * number
        report = ClientReport(0, 20, 0.0, epsilon, 1.0, 0.5, steps)
        callback._update_spends(RoundRecord(number, 1, reports=[report]))
    client = callback.clients["0"]
    return client["epsilon"], client["steps"]


def test_epsilon_of_a_client_grows_with_its_reports() -> None:
    assert reported(1.0, 2.0, 2.0) == (2.0, 30)
    assert reported(None, 2.0) == (2.0, 20)


def test_new_account_during_a_run_does_not_lower_the_reported_epsilon() -> None:
    # The claim covers the charges to both accounts: tests/unit/privacy/test_claim.py.
    assert reported(1.0, 3.0, 0.5, 0.7) == (3.0, 20)
    assert reported(3.0, 0.5, 4.0) == (4.0, 30)
