"""A client's limits, from its node configuration. No message of the server and no setting of a run can change them.

They bind runs of this code: whoever chooses the code of a run can leave them out (docs/deployment.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import get_type_hints

from client.node_data import NODE_DATA_KEYS
from fedsvd.config import Config
from fedsvd.config.messages import did_you_mean
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.errors import LimitError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget
from fedsvd.privacy.noise_share import discloses_counts
from fedsvd.privacy.plan import configured_budget
from fedsvd.trainer.settings import TRAINER_KEYS

# Keys of a node configuration that are not limits. Flower's simulation adds the first two.
_OTHER_KEYS = ("partition-id", "num-partitions", "ledger", "ledger-policy", *NODE_DATA_KEYS, *TRAINER_KEYS)
LEDGER_POLICIES = ("continue", "strict")


@dataclass(frozen=True)
class NodeLimits:
    """What this client allows any run to do; None is no limit. The keys of the node configuration have dashes.

    Attributes:
        max_epsilon: Maximum ε of all runs on this client's data together, at ``max_delta``.
        max_delta: Maximum δ. A run may use a smaller δ; the ledger's ε is still computed at ``max_delta`` and compared
            with ``max_epsilon``.
        max_grad_norm: Maximum clipping norm.
        min_noise_multiplier: Minimum noise multiplier.
        max_steps: Maximum number of local steps per round.
        min_survivors: Send updates only through secure aggregation over at least this many clients. A client that
            limits ε, δ, clipping or noise accepts a share of the noise (``privacy.noise_share``) only if it also sets
            this limit.
        share_counts: Whether the server may learn the number of examples. The default is False for a node with its own
            data. Such a node takes part only in runs whose clients have equal weights, as with
            ``federation.weighting=uniform``: where weights are counts, they are sent, or follow from secure sums.
        share_errors: Whether the server may learn the words of errors that may quote the node's own data, such as a
            label that the run does not know. The default is False: the server learns the kind of the error. See
            `client.node_data.FREE_OF_DATA`.
        require_privacy: Refuse runs without DP-SGD, or without ``privacy.secure_random``, on this client. Implied by
            every limit above except ``max_steps``, ``min_survivors``, ``share_counts`` and ``share_errors``.
    """

    max_epsilon: float | None = None
    max_delta: float | None = None
    max_grad_norm: float | None = None
    min_noise_multiplier: float | None = None
    max_steps: int | None = None
    min_survivors: int | None = None
    share_counts: bool | None = None
    share_errors: bool | None = None
    require_privacy: bool | None = None

    def check(self, config: Config) -> None:
        """Check a run's configuration against the limits, before anything is loaded or spent.

        Raises:
            LimitError: If the run exceeds a limit.
        """
        privacy = config.privacy
        if self.max_steps is not None and config.train.local_steps > self.max_steps:
            raise _limit_exceeded("train.local_steps", config.train.local_steps, "at most", self.max_steps)
        self._check_survivors(config)
        self._check_counts(config)
        if self._requires_privacy and privacy.name != "dp_sgd":
            raise LimitError(f"privacy = {privacy.name}, but this client allows only dp_sgd: set privacy=dp_sgd.")
        if self._requires_privacy and not privacy.secure_random:
            raise LimitError(
                "privacy.secure_random = False, but this client has privacy limits, and noise of torch's generators "
                "can be found by trying their 2^32 seeds: set privacy.secure_random=true."
            )
        if privacy.name != "dp_sgd":
            return
        for key, maximum in (
            ("target_epsilon", self.max_epsilon),
            ("target_delta", self.max_delta),
            ("max_grad_norm", self.max_grad_norm),
        ):
            if maximum is not None and getattr(privacy, key) > maximum:
                raise _limit_exceeded(f"privacy.{key}", getattr(privacy, key), "at most", maximum)

    def _check_survivors(self, config: Config) -> None:
        federation = config.federation
        if self.min_survivors is not None and not federation.secure_aggregation:
            raise LimitError(
                "federation.secure_aggregation = False, but this client requires secure aggregation "
                f"(min-survivors = {self.min_survivors}): set federation.secure_aggregation=true."
            )
        if self.min_survivors is not None and federation.min_survivors < self.min_survivors:
            raise _limit_exceeded("federation.min_survivors", federation.min_survivors, "at least", self.min_survivors)
        if self.min_survivors is None and self._requires_privacy and config.privacy.noise_share:
            raise LimitError(
                "privacy.noise_share = True, but this client has privacy limits without min-survivors, so it must add "
                "all of its noise itself: set privacy.noise_share=false."
            )

    def _check_counts(self, config: Config) -> None:
        if self.share_counts is not False or not discloses_counts(config):
            return
        weighting, secure = f"federation.weighting = {config.federation.weighting}", ""
        if config.federation.secure_aggregation:
            secure = (
                " A secure sum has the total of these counts, from which a client's own follows as soon as the clients "
                "of two sums differ."
            )
        raise LimitError(
            f"{weighting}, but this client does not disclose its example count (share-counts = false): set "
            f"federation.weighting=uniform.{secure}"
        )

    def check_noise(self, spend: Spend) -> None:
        """Check a run's calibrated noise multiplier against the limit.

        Raises:
            LimitError: If it is too small.
        """
        minimum = self.min_noise_multiplier
        if minimum is not None and spend.noise_multiplier < minimum:
            raise _limit_exceeded("noise multiplier", round(spend.noise_multiplier, 4), "at least", minimum)

    def budget(self, privacy: PrivacyConfig) -> Budget:
        """Return this client's own budget if it has one, else the run's."""
        run = configured_budget(privacy)
        if self.max_epsilon is None or self.max_delta is None:
            return run
        return Budget(run.target_epsilon, run.target_delta, self.max_epsilon, self.max_delta, run.accountant)

    @property
    def _requires_privacy(self) -> bool:
        privacy_limits = (self.max_epsilon, self.max_delta, self.max_grad_norm, self.min_noise_multiplier)
        return bool(self.require_privacy) or any(value is not None for value in privacy_limits)


def read_limits(node_config: Mapping[str, object]) -> NodeLimits:
    """Read the limits from a node configuration.

    Raises:
        LimitError: If a value has the wrong type or is out of range, a key is unknown, or a limit on ε lacks the δ or
            the ledger that it needs. Otherwise a node's owner could rely on a limit or ledger that has no effect.
    """
    hints = get_type_hints(NodeLimits)
    limits = {field.name.replace("_", "-"): field.name for field in fields(NodeLimits)}
    _check_keys(node_config, [*limits, *_OTHER_KEYS])
    ledger = node_config.get("ledger", "ledger.sqlite")
    if not isinstance(ledger, str) or not ledger:
        raise LimitError(
            f"node configuration: ledger = {ledger!r} is invalid: expected the path of a file in quotes, as in "
            'ledger="/private/ledger.sqlite".'
        )
    values = {name: _parse(key, node_config[key], hints[name]) for key, name in limits.items() if key in node_config}
    if ("max_epsilon" in values) != ("max_delta" in values):
        raise LimitError("node configuration: max-epsilon and max-delta have no effect alone: set both or neither.")
    if "max_epsilon" in values and not node_config.get("ledger"):
        raise LimitError(
            "node configuration: max-epsilon has no effect without a ledger: set ledger to the path of a file that is "
            'used by all runs, as in ledger="/private/ledger.sqlite".'
        )
    if "data-path" in node_config:
        values.setdefault("share_counts", False)
    return NodeLimits(**values)  # type: ignore[arg-type]


def has_strict_ledger(node_config: Mapping[str, object]) -> bool:
    """Return whether the node's ledger refuses data that have changed, as ``ledger-policy`` says.

    Raises:
        LimitError: If the policy is unknown, or has no effect because the node configuration names no ledger.
    """
    policy = node_config.get("ledger-policy", "continue")
    if policy not in LEDGER_POLICIES:
        raise LimitError(
            f"node configuration: ledger-policy = {policy!r} is invalid: expected one of {', '.join(LEDGER_POLICIES)}, "
            'as in ledger-policy="strict".'
        )
    if "ledger-policy" in node_config and not node_config.get("ledger"):
        raise LimitError(
            "node configuration: ledger-policy has no effect without a ledger: set ledger to the path of a file that "
            'is used by all runs, as in ledger="/private/ledger.sqlite".'
        )
    return policy == "strict"


def _parse(key: str, value: object, hint: object) -> float | int | bool:
    if hint == bool | None:
        if isinstance(value, bool):
            return value
        raise LimitError(f"node configuration: {key} = {value!r} is invalid: expected true or false.")
    integer, upper = hint == int | None, 1.0 if key == "max-delta" else math.inf
    number = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < upper:  # type: ignore[operator]
        expected = f"{'an integer' if integer else 'a number'} {'between 0 and 1' if key == 'max-delta' else '> 0'}"
        raise LimitError(f"node configuration: {key} = {value!r} is invalid: expected {expected}.")
    return value if integer else float(value)  # type: ignore[return-value,arg-type]


def _check_keys(node_config: Mapping[str, object], known: list[str]) -> None:
    for key in node_config:
        if key not in known:
            # The server reads this error, too: the value of a misspelled key may be private, such as a path.
            raise LimitError(
                f"node configuration: {key} is not a known key{did_you_mean(key.replace('_', '-').lower(), known)}: "
                f"expected one of {', '.join(known)}. Correct or remove it."
            )


def _limit_exceeded(key: str, value: object, comparison: str, limit: object) -> LimitError:
    return LimitError(f"{key} = {value}, but this client allows {comparison} {limit}.")
