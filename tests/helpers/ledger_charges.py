"""The charge of the tests of ledgers, and ε of several."""

from fedsvd.privacy.accounting import Spend, epsilon

SPEND, DELTA = Spend(1.0, 0.05, 5), 1e-5


def epsilon_of(count: int) -> float:
    """Return ε of ``count`` charges."""
    return epsilon([SPEND] * count, DELTA, "rdp")
