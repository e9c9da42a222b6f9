"""The schema of the group ``federation``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from pydantic.dataclasses import dataclass

from fedsvd.config.group import ConfigGroup
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.config.train import TrainConfig
from fedsvd.config.types import Count, NonEmptyTuple, Text
from fedsvd.errors import ConfigError

Address = Annotated[str, Field(pattern=r"^\S+:[0-9]+$", description="host:port")]
AbsolutePath = Annotated[str, Field(pattern=r"^/.*$", description="an absolute path")]


@dataclass(frozen=True)
class FederationConfig(ConfigGroup):
    """The clients and the backend that runs them.

    Attributes:
        name: ``local`` (in this process), ``simulation`` (Flower's simulation engine) or ``remote`` (a running
            SuperLink); ``flwr run`` ignores it.
        num_clients: Number of clients in the federation; each holds one partition.
        participants: Partition IDs of the clients that take part; the others are never asked to train. ``[0]`` trains
            on the data of client 0 alone. null for all.
        clients_per_round: Number of clients sampled in each round; null for all that take part.
        client_ranks: LoRA rank of each client, at most ``model.rank``; null: ``model.rank`` for all.
        min_replies: Minimum number of valid replies in a round (with secure aggregation, of updates in the sum); with
            fewer, the model stays unchanged.
        weighting: Weight of each client in the aggregate: ``examples``, its number of examples, which it sends to the
            server; ``uniform``, equal weights, with the number of examples not sent; or ``inverse_variance``, one over
            the variance of the noise in its update, which gives the mean with the least noise (Cochran 1937).
        min_completion: Minimum fraction of a round's clients that must send valid replies; with fewer, the model stays
            unchanged. 0: only ``min_replies`` applies.
        secure_aggregation: The server learns the sum of the clients' updates, and no single update.
        min_survivors: Minimum number of clients in a secure sum; with fewer, the round is skipped.
        round_timeout_s: Timeout of a round in seconds; the round then continues without the missing replies. With
            secure aggregation, training ends after 90 % of it, and the rest is for unmasking.
        connect_timeout_s: Timeout in seconds for all clients to connect at the start, and for a new client to identify
            itself. A node with its own data loads it within this time. With client-level privacy, except with
            ``privacy.noise_share``, every client loads its data and charges its ledger.
        retries: How often a message is resent within a round to a client that has disconnected or crashed. If the
            client's ledger was charged for the failed attempt, it is charged again for the new one. With secure
            aggregation, no message of a round is resent: a client answers each stage once.
        retry_after_s: Delay before the first retry, in seconds; doubled for each further one.
        max_num_examples: Largest number of examples that the server accepts from a client.
        max_reply_norm: Largest L2 norm of a client's update that the server accepts; DP-SGD's clipping implies a lower
            limit.
        client_num_cpus: CPU cores of a simulated client; ``auto``: as many clients run at the same time as fit into the
            memory of this machine, which is measured on a training step before the run.
        client_num_gpus: GPUs of a simulated client, which sees no others; 0: it trains on the CPU; a fraction lets
            clients share one. ``auto`` as above.
        ray_address: Address of a running Ray cluster; null starts a local one.
        superlink: Address of the SuperLink, ``host:port``.
        root_certificates: CA certificate that verifies the SuperLink's certificate; null: no TLS.
        connection: Name of a connection in Flower's ``config.toml``, used instead of ``superlink`` and
            ``root_certificates``.
        server_runs: Parent directory of run directories on the machine of the ServerApp.
        fetch: Command that copies a run directory to this machine, with the placeholders ``{remote}`` and ``{local}``
            for the two directories; null if ``server_runs`` is a directory of this machine.
    """

    group: ClassVar[str] = "federation"

    name: Literal["local", "simulation", "remote"]
    num_clients: Count = 4
    participants: NonEmptyTuple[NonNegativeInt] | None = None
    clients_per_round: Count | None = None
    client_ranks: NonEmptyTuple[Count] | None = None
    min_replies: Count = 1
    weighting: Literal["examples", "uniform", "inverse_variance"] = "examples"
    min_completion: Annotated[float, Field(ge=0, le=1)] = 0.0
    secure_aggregation: bool = False
    min_survivors: Annotated[int, Field(ge=2)] = 2
    round_timeout_s: PositiveFloat = 3600.0
    connect_timeout_s: PositiveFloat = 300.0
    retries: NonNegativeInt = 1
    retry_after_s: NonNegativeFloat = 1.0
    max_num_examples: Count = 10_000_000
    max_reply_norm: PositiveFloat = 10_000.0
    client_num_cpus: PositiveFloat | Literal["auto"] = 1.0
    client_num_gpus: NonNegativeFloat | Literal["auto"] = 0.0
    ray_address: Text | None = None
    superlink: Address = "127.0.0.1:8000"
    root_certificates: Text | None = "certs/ca.crt"
    connection: Text | None = None
    server_runs: AbsolutePath = "/app/runs"
    fetch: Text | None = None

    def __post_init__(self) -> None:
        _check_participants(self)
        sampled = self.num_sampled
        if sampled > self.num_participants:
            limit = f"num_clients = {self.num_clients}"
            if self.participants is not None:
                limit = f"participants = {list(self.participants)}"
            raise ConfigError(
                f"federation.clients_per_round = {sampled} is more than federation.{limit}: give 1 to "
                f"{self.num_participants}, or null for all clients."
            )
        if self.min_replies > sampled:
            raise ConfigError(
                f"federation.min_replies = {self.min_replies} is more than the {sampled} clients of a round, so no "
                f"round could succeed: give 1 to {sampled}."
            )
        if self.secure_aggregation and sampled < self.min_survivors:
            raise ConfigError(
                f"federation.min_survivors = {self.min_survivors} is more than the {sampled} clients of a round, so no "
                "secure sum could be computed: lower it, or sample more clients."
            )
        _check_client_ranks(self)
        if self.ray_address is not None and self.name != "simulation":
            raise ConfigError(
                f"federation.ray_address = {self.ray_address!r} has no effect with federation.name = {self.name}: "
                "use federation=simulation, or set federation.ray_address=null."
            )
        if self.fetch is not None and not all(field in self.fetch for field in ("{remote}", "{local}")):
            raise ConfigError(
                f"federation.fetch = {self.fetch!r} is invalid: it needs the placeholders {{remote}}, for the run "
                "directory on the server, and {local}, for the one on this machine. Add them, or set it to null."
            )

    @property
    def num_participants(self) -> int:
        """Number of clients that take part in the run."""
        return self.num_clients if self.participants is None else len(self.participants)

    @property
    def num_sampled(self) -> int:
        """Number of clients that are asked to train in a round."""
        return self.clients_per_round or self.num_participants

    @property
    def sends_counts(self) -> bool:
        """Whether each client sends the server its number of examples.

        See `fedsvd.privacy.noise_share.discloses_counts` for runs in which it follows from sums.
        """
        return self.weighting != "uniform" and not self.secure_aggregation

    @property
    def participating(self) -> list[int]:
        """Partition IDs of the clients that take part in the run, in ascending order."""
        return [number for number in range(self.num_clients) if self.takes_part(number)]

    def takes_part(self, partition_id: int) -> bool:
        """Return whether a client takes part in the run."""
        return self.participants is None or partition_id in self.participants


def settings_of_unknown_noise(train: TrainConfig, federation: FederationConfig) -> list[str]:
    """Return the settings with which the server does not know the noise of DP-SGD in each client's update."""
    settings = {
        f"train.optimizer = {train.optimizer}": train.optimizer != "sgd",
        f"train.momentum = {train.momentum}": train.momentum > 0,
        "federation.secure_aggregation = True": federation.secure_aggregation,
    }
    return [setting for setting, is_set in settings.items() if is_set]


def check_weighting(federation: FederationConfig, privacy: PrivacyConfig, train: TrainConfig) -> None:
    """Check that the server knows the noise in each update, if the clients' weights depend on it.

    Raises:
        ConfigError: A setting makes it unknown.
    """
    if federation.weighting != "inverse_variance":
        return
    without_noise = [] if privacy.name == "dp_sgd" else [f"privacy.name = {privacy.name}"]
    if conflicts := [*without_noise, *settings_of_unknown_noise(train, federation)]:
        raise ConfigError(
            f"federation.weighting = inverse_variance is not possible with {conflicts[0]}: the server must know the "
            "noise in each client's update. Use privacy=dp_sgd with plain SGD and without secure aggregation, or "
            "federation.weighting=examples."
        )


def _check_participants(federation: FederationConfig) -> None:
    numbers = list(federation.participants or ())
    if len(set(numbers)) < len(numbers) or any(number >= federation.num_clients for number in numbers):
        raise ConfigError(
            f"federation.participants = {numbers} is invalid: give different numbers from 0 to "
            f"{federation.num_clients - 1}, since federation.num_clients = {federation.num_clients}, or null for all "
            "clients."
        )


def _check_client_ranks(federation: FederationConfig) -> None:
    if federation.client_ranks is None:
        return
    ranks = list(federation.client_ranks)
    if len(ranks) != federation.num_clients:
        raise ConfigError(
            f"federation.client_ranks = {ranks} has {len(ranks)} items for federation.num_clients = "
            f"{federation.num_clients} clients: give one rank per client, or null."
        )
    if federation.secure_aggregation:
        raise ConfigError(
            f"federation.client_ranks = {ranks} is not possible with federation.secure_aggregation = True: vectors of "
            "different lengths cannot be summed. Set one of them to its default."
        )
