"""The time that is left of a round."""

from __future__ import annotations

# A message that is sent when its round is about to end needs a time to live, too.
MIN_TIME_S = 0.1


def time_left(limit_s: float, elapsed_s: float) -> float:
    """Return the seconds until a limit, at least `MIN_TIME_S`.

    Args:
        limit_s: Seconds from the start of the round.
        elapsed_s: Seconds since the start of the round.
    """
    return max(MIN_TIME_S, limit_s - elapsed_s)
