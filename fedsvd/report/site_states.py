"""Clients' states in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsvd.runs.sites import EXCLUDED, REPLIED, TRAINING, Site


def site_line(clients: Sequence[int], site: Site) -> str:
    """Describe a change on one line, as in ``round 3: client 1 replied after 8.1 s (3.2 s of training)``."""
    subject = f"client{'s' * (len(clients) != 1)} {', '.join(map(str, clients))}"
    prefix = f"round {site.server_round}: " if site.server_round else ""
    if site.state == TRAINING:
        return f"{prefix}waiting for {subject}"
    if site.state == EXCLUDED:
        return f"{prefix}{subject} {state_text(site)}: {site.reason}"
    return f"{prefix}{subject} {state_text(site)}"


def state_text(site: Site) -> str:
    """Describe a client's state without its reason."""
    after = "" if site.seconds is None else f" after {site.seconds:.1f} s"
    if site.state == REPLIED:
        own = "" if site.train_seconds is None else f" ({site.train_seconds:.1f} s of training)"
        return f"replied{after}{own}"
    return f"excluded{after}" if site.state == EXCLUDED else site.state


def sites_line(sites: Mapping[int, Site], now: float) -> str:
    """Describe all clients on one line, as in ``client 0 training for 12 s · client 1 replied after 8.1 s``."""
    return " · ".join(f"client {client} {_state_now(site, now)}" for client, site in sorted(sites.items()))


def _state_now(site: Site, now: float) -> str:
    if site.state == TRAINING:
        return f"training for {max(0.0, now - site.since):.0f} s"
    return state_text(site)
