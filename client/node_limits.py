"""A client's own limits, from its node's configuration: the server and whoever submits a run cannot touch them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import get_type_hints

from client.node_data import NODE_DATA_KEYS
from fedsvd.config import Config
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.errors import LimitError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget
from fedsvd.privacy.plan import configured_budget

# Other keys of a node's configuration that lie near ours in spelling or in prefix, and are not limits.
_KNOWN = ("partition-id", "num-partitions", "ledger", *NODE_DATA_KEYS)
_PREFIXES = ("max-", "min-", "require-", "share-")


@dataclass(frozen=True)
class NodeLimits:
    """What this client allows any run; None allows everything. In the node's configuration: with dashes.

    Attributes:
        max_epsilon: Most ε of all runs on this client's data together, at ``max_delta``.
        max_delta: Largest δ; a run may ask for a smaller one, and the ledger is still held to ``max_epsilon`` at this.
        max_grad_norm: Largest clipping norm.
        min_noise_multiplier: Least noise multiplier.
        max_steps: Most local steps in a round.
        min_survivors: Send nothing but into secure sums over at least so many clients. A client with a limit on ε, δ,
            clipping or noise shares its noise with others (``privacy.noise_share``) only if it has this one, too.
        share_counts: Whether the server may learn how many examples there are. False where the node brings its own data
            and says nothing of it; such a node takes part where all count alike (``federation.weighting=uniform``), or
            where counts are hidden in a secure sum.
        require_privacy: Refuse runs without DP-SGD on this client; the limits above imply it, ``max_steps`` and
            ``min_survivors`` apart.
    """

    max_epsilon: float | None = None
    max_delta: float | None = None
    max_grad_norm: float | None = None
    min_noise_multiplier: float | None = None
    max_steps: int | None = None
    min_survivors: int | None = None
    share_counts: bool | None = None
    require_privacy: bool | None = None

    def check(self, config: Config) -> None:
        """Refuse a run that asks for more than is allowed, before anything is loaded or spent.

        Raises:
            LimitError: What it asks for, and what is allowed.
        """
        privacy = config.privacy
        if self.max_steps is not None and config.train.local_steps > self.max_steps:
            raise _refused("train.local_steps", config.train.local_steps, "at most", self.max_steps)
        self._check_survivors(config)
        self._check_counts(config)
        if self._demands_privacy and privacy.name != "dp_sgd":
            raise LimitError(f"privacy = {privacy.name}, but this client trains with privacy = dp_sgd alone.")
        if privacy.name != "dp_sgd":
            return
        for asked, most in (
            ("target_epsilon", self.max_epsilon),
            ("target_delta", self.max_delta),
            ("max_grad_norm", self.max_grad_norm),
        ):
            if most is not None and getattr(privacy, asked) > most:
                raise _refused(f"privacy.{asked}", getattr(privacy, asked), "at most", most)

    def _check_survivors(self, config: Config) -> None:
        federation = config.federation
        if self.min_survivors is not None and not federation.secure_aggregation:
            raise LimitError(
                "federation.secure_aggregation = False, but this client sends nothing but into secure sums "
                f"(min-survivors = {self.min_survivors})."
            )
        if self.min_survivors is not None and federation.min_survivors < self.min_survivors:
            raise _refused("federation.min_survivors", federation.min_survivors, "at least", self.min_survivors)
        if self.min_survivors is None and self._demands_privacy and config.privacy.noise_share:
            raise LimitError(
                "privacy.noise_share = True, but this client has limits of its own and no min-survivors among them: it "
                "adds all of its noise itself."
            )

    def _check_counts(self, config: Config) -> None:
        federation = config.federation
        if self.share_counts is False and federation.weighting != "uniform" and not federation.secure_aggregation:
            raise LimitError(
                f"federation.weighting = {federation.weighting}, but this client does not tell how many examples it "
                "has (share-counts = false): set federation.weighting=uniform, or federation.secure_aggregation=true."
            )

    def check_noise(self, spend: Spend) -> None:
        """Refuse a run whose calibrated noise is below the least that is allowed; raises `LimitError`."""
        least = self.min_noise_multiplier
        if least is not None and spend.noise_multiplier < least:
            raise _refused("noise multiplier", round(spend.noise_multiplier, 4), "at least", least)

    def budget(self, privacy: PrivacyConfig) -> Budget:
        """Return this client's budget: its own where it has one, else the run's."""
        run = configured_budget(privacy)
        if self.max_epsilon is None or self.max_delta is None:
            return run
        return Budget(run.target_epsilon, run.target_delta, self.max_epsilon, self.max_delta, run.accountant)

    @property
    def _demands_privacy(self) -> bool:
        others = (self.max_epsilon, self.max_delta, self.max_grad_norm, self.min_noise_multiplier)
        return bool(self.require_privacy) or any(value is not None for value in others)


def read_limits(node_config: Mapping[str, object]) -> NodeLimits:
    """Read the limits out of a node's configuration.

    Raises:
        LimitError: A value of the wrong type or out of range, a key that looks like a misspelt limit, or a limit on ε
            without the δ or the ledger that it needs: a limit that does not hold must not look as if it did.
    """
    hints = get_type_hints(NodeLimits)
    ours = {field.name.replace("_", "-"): field.name for field in fields(NodeLimits)}
    for key, value in node_config.items():
        if key not in ours and key not in _KNOWN and _looks_like_ours(key, list(ours)):
            raise LimitError(f"the node's configuration has {key} = {value!r}, which is no limit; there are: {_all()}.")
    given = {name: _value(key, node_config[key], hints[name]) for key, name in ours.items() if key in node_config}
    if ("max_epsilon" in given) != ("max_delta" in given):
        raise LimitError("the node's configuration needs max-epsilon and max-delta together: one bounds nothing alone.")
    if "max_epsilon" in given and not node_config.get("ledger"):
        raise LimitError(
            "the node's configuration has max-epsilon but no ledger; give the path of a file that outlives runs, as in "
            'ledger="/private/ledger.sqlite".'
        )
    if "data-path" in node_config:
        given.setdefault("share_counts", False)
    return NodeLimits(**given)  # type: ignore[arg-type]


def _value(key: str, value: object, hint: object) -> float | int | bool:
    if hint == bool | None:
        if isinstance(value, bool):
            return value
        raise LimitError(f"{key} = {value!r} in the node's configuration; true or false is allowed.")
    whole, highest = hint == int | None, 1.0 if key == "max-delta" else math.inf
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < highest:  # type: ignore[operator]
        allowed = "a number between 0 and 1" if key == "max-delta" else f"a {'whole ' if whole else ''}number above 0"
        raise LimitError(f"{key} = {value!r} in the node's configuration; {allowed} is allowed.")
    return value if whole else float(value)  # type: ignore[return-value,arg-type]


def _looks_like_ours(key: str, ours: list[str]) -> bool:
    written = key.replace("_", "-").lower()
    return written.startswith(_PREFIXES) or bool(
        difflib.get_close_matches(written, [*ours, "ledger", *NODE_DATA_KEYS], cutoff=0.8)
    )


def _all() -> str:
    return ", ".join(field.name.replace("_", "-") for field in fields(NodeLimits))


def _refused(what: str, asked: object, how: str, limit: object) -> LimitError:
    return LimitError(f"{what} = {asked}, but this client allows {how} {limit}.")
